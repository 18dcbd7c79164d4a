"""The engine's output depends on the prompt and the seed alone, and equals transformers'."""

import json
from pathlib import Path

import pytest

from inferlab import models
from inferlab.engine import LLM, SamplingParams
from tests.oracle import disagreements, expected_tokens, prompts

CHECKPOINT = models.path("tiny-chat")
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Twenty of the oracle's prompts, none longer than 257 tokens."""
    return [prompt for prompt in prompts(LLM(CHECKPOINT)) if len(prompt) <= 257][::3]


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
    llm = LLM(CHECKPOINT, num_blocks=2048)
    asked = prompts(llm)
    assert len(asked) >= 50
    assert disagreements(llm, asked, expected_tokens(CHECKPOINT, asked)) <= 2


def test_a_prompt_longer_than_the_cache_is_refused_at_once() -> None:
    llm = LLM(CHECKPOINT, num_blocks=5, block_size=16)
    with pytest.raises(ValueError, match="the cache can hold 64 for one request"):
        llm.generate([[7] * 65])
    assert not llm.scheduler.has_unfinished_requests()


def test_a_refused_prompt_leaves_none_of_its_call_behind() -> None:
    llm = LLM(CHECKPOINT)
    with pytest.raises(ValueError, match="vocabulary"):
        llm.generate([[5, 6, 7], [640]], GREEDY)
    assert not llm.scheduler.has_unfinished_requests()
    assert len(llm.generate([[5, 6, 7]], GREEDY)) == 1


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
