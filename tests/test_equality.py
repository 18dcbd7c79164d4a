"""Greedy tokens of every way to set up the engine equal transformers', for both architectures.

Real vLLM's are compared in `test_engines_oracle.py`, several processes' in `test_parallel.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from inferlab import models
from inferlab.engine import LLM, SamplingParams
from inferlab.engine.model import LlamaModel
from inferlab.engine.speculation import DraftModelProposer, NgramProposer
from tests.oracle import MAX_NEW_TOKENS, disagreements, expected_tokens, prompts

pytestmark = pytest.mark.slow
GREEDY = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)


def drafted_by(name: str) -> DraftModelProposer:
    return DraftModelProposer(LlamaModel.from_pretrained(models.path(name)), 3)


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "as it comes": dict,
    "one at a time": partial(dict, max_num_seqs=1),
    "three at a time": partial(dict, max_num_seqs=3),
    "blocks of 1": partial(dict, block_size=1, num_blocks=6000),
    "blocks of 64": partial(dict, block_size=64),
    "chunks of 16": partial(dict, max_num_batched_tokens=16),
    "chunks of 37": partial(dict, max_num_batched_tokens=37, max_num_seqs=8),
    "long prompts in fives": partial(dict, long_prefill_token_threshold=5),
    "no cache": partial(dict, enable_prefix_caching=False),
    "radix tree": partial(dict, prefix_cache="radix"),
    "cramped": partial(dict, num_blocks=20),
    "cramped, no cache": partial(dict, num_blocks=20, enable_prefix_caching=False),
    "cramped radix tree": partial(dict, num_blocks=20, prefix_cache="radix"),
    "n-grams": lambda: dict(proposer=NgramProposer(1, 3, 4)),
    "drafts": lambda: dict(proposer=drafted_by("tiny-draft")),
    "drafts, cramped, in chunks": lambda: dict(
        proposer=drafted_by("tiny-draft-weak"), num_blocks=20, max_num_batched_tokens=48
    ),
}


@pytest.fixture(scope="module", params=["tiny-chat", "tiny-moe"])
def case(request: pytest.FixtureRequest) -> tuple[str, list[list[int]], list[list[int]]]:
    """A checkpoint, prompts of at most 257 tokens, and transformers' greedy tokens."""
    name: str = request.param
    asked = [prompt for prompt in prompts(LLM(models.path(name))) if len(prompt) <= 257][::3]
    return name, asked, expected_tokens(models.path(name), asked)


@pytest.mark.parametrize("setup", SETUPS)
def test_tokens_equal_those_of_transformers(
    setup: str, case: tuple[str, list[list[int]], list[list[int]]]
) -> None:
    name, asked, expected = case
    llm = LLM(models.path(name), **SETUPS[setup]())
    assert disagreements(llm, asked, expected) <= 1
    if "cramped" in setup:
        assert sum(c.num_preemptions for c in llm.generate(asked, GREEDY)) > 0
    elif llm.scheduler.kv_cache_manager.num_free_blocks and setup == "as it comes":
        assert sum(c.num_cached_tokens for c in llm.generate(asked, GREEDY)) > 0
    if llm.proposer is not None:
        assert sum(accepted * n for (_, accepted), n in llm.verifications.items()) > 0
