"""The engine's output depends on the prompt and the seed alone, and equals transformers'."""

import json
from pathlib import Path

import pytest

from inferlab import models
from inferlab.engine import LLM, SamplingParams
from tests.oracle import MAX_NEW_TOKENS, disagreements, prompts

CHECKPOINT = models.path("tiny-chat")
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Twenty of the oracle's prompts, none longer than 257 tokens."""
    return [prompt for prompt in prompts(LLM(CHECKPOINT)) if len(prompt) <= 257][::3]


@pytest.fixture(scope="module")
def expected(asked: list[list[int]]) -> list[list[int]]:
    """Each prompt alone, in one chunk, with no cache: the plainest way to run it."""
    llm = LLM(CHECKPOINT, enable_prefix_caching=False)
    return [llm.generate([prompt], GREEDY)[0].token_ids for prompt in asked]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 1, "num_blocks": 6000},
        {"block_size": 32},
        {"max_num_batched_tokens": 16},
        {"long_prefill_token_threshold": 5},
        {"max_num_seqs": 3},
        {"enable_prefix_caching": False},
        {"num_blocks": 20},
        {"num_blocks": 20, "enable_prefix_caching": False, "max_num_batched_tokens": 48},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_how_the_engine_is_set_up(
    options: dict[str, int], asked: list[list[int]], expected: list[list[int]]
) -> None:
    llm = LLM(CHECKPOINT, **options)  # type: ignore[arg-type]
    first = llm.generate(asked, GREEDY)
    assert [completion.token_ids for completion in first] == expected
    again = llm.generate(asked, GREEDY)
    assert [completion.token_ids for completion in again] == expected
    if options.get("num_blocks") == 20:
        assert sum(completion.num_preemptions for completion in first) > 0
    if not options:
        assert sum(completion.num_cached_tokens for completion in again) > 0


def test_seeded_samples_do_not_depend_on_the_neighbours(asked: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)
    alone = [LLM(CHECKPOINT).generate([prompt], params)[0].token_ids for prompt in asked[:4]]
    crowd = LLM(CHECKPOINT, max_num_batched_tokens=64, num_blocks=24)
    together = crowd.generate(asked[:4] + asked, [params] * 4 + [GREEDY] * len(asked))
    assert [completion.token_ids for completion in together[:4]] == alone
    assert alone[0] != LLM(CHECKPOINT).generate(asked[:1], GREEDY)[0].token_ids


def test_a_model_that_ignored_its_cache_would_be_noticed(asked: list[list[int]]) -> None:
    """Control: K and V corrupted between two steps change the tokens that follow."""
    prompt = max(asked, key=len)

    def run(corrupt: bool) -> list[int]:
        llm = LLM(CHECKPOINT)
        request = llm.add_request(prompt, GREEDY)
        llm.step()
        if corrupt:
            llm.kv_cache.values *= -1
        while llm.scheduler.has_unfinished_requests():
            llm.step()
        return request.output_token_ids

    assert run(corrupt=False) != run(corrupt=True)


def test_greedy_tokens_equal_those_of_transformers() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    llm = LLM(CHECKPOINT, num_blocks=2048)
    asked = prompts(llm)
    assert len(asked) >= 50
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    expected = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        expected.append(output[0, len(prompt) :].tolist())
    assert disagreements(llm, asked, expected) <= 2


def test_a_prompt_longer_than_the_cache_is_refused_at_once() -> None:
    llm = LLM(CHECKPOINT, num_blocks=5, block_size=16)
    with pytest.raises(ValueError, match="the cache can hold 64 for one request"):
        llm.generate([[7] * 65])
    assert not llm.scheduler.has_unfinished_requests()


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary has ids 0 to 639"):
        LLM(CHECKPOINT).add_request([5, 640])


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        LLM(CHECKPOINT).add_request([])


def test_generation_stops_at_the_end_token_and_says_so() -> None:
    llm = LLM(CHECKPOINT)
    prompt = "<|bos|><|user|>What is 12 + 34?<|end|><|assistant|>"
    (stopped,) = llm.generate([prompt], SamplingParams(max_tokens=40, temperature=0))
    assert (stopped.finish_reason, stopped.token_ids[-1]) == ("stop", 2)
    exact = SamplingParams(max_tokens=len(stopped.token_ids), temperature=0)
    assert llm.generate([prompt], exact)[0].finish_reason == "stop"  # not "length" on the boundary
    shorter = SamplingParams(max_tokens=len(stopped.token_ids) - 1, temperature=0)
    assert llm.generate([prompt], shorter)[0].finish_reason == "length"


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"]}))
    (tmp_path / "model.safetensors").write_bytes((CHECKPOINT / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="OPTForCausalLM"):
        LLM(tmp_path)
