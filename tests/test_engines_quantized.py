"""Real vLLM on quantised checkpoints: the tokens our engine gives with the same weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inferlab import models
from inferlab.engine import LLM
from inferlab.engine.quantization import Int4Linear, Int8Linear, replace_projections
from inferlab.lab import upstream
from inferlab.models import quantized
from tests import oracle

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.full]
SCRIPT = Path(__file__).parent / "upstream" / "vllm_generate.py"
# vLLM's int4 kernel computes in half precision only.
DTYPES = {"int8": "float32", "int4": "float16", "int4-awq": "float16"}
W8A8 = partial(Int8Linear.from_dense, int8_activations=True)


@pytest.fixture(scope="module")
def vllm_tokens() -> dict[str, list[list[int]]]:
    """What real vLLM generates greedily from each checkpoint, in one process."""
    asked = oracle.prompts(LLM(models.path("tiny-chat"), num_blocks=2))
    jobs: dict[str, dict[str, Any]] = {
        form: {
            "checkpoint": str(quantized.path(f"tiny-chat-{form}")),
            "dtype": dtype,
            "prompts": asked,
            "max_tokens": oracle.MAX_NEW_TOKENS,
            "ignore_eos": True,
        }
        for form, dtype in DTYPES.items()
    }
    tokens: dict[str, list[list[int]]] = upstream(SCRIPT.read_text(), jobs)
    return tokens


def near_ties(replace: Callable[..., Any], tokens: list[list[int]]) -> int:
    """Prompts whose tokens differ where our engine, with these layers, hardly preferred its own."""
    llm = LLM(models.path("tiny-chat"), num_blocks=2048)
    replace_projections(llm.model, replace)
    return oracle.disagreements(llm, oracle.prompts(llm), tokens)


def test_int8_answers_as_our_engine_does_in_int8(
    vllm_tokens: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last bit can move an activation to the next of 255 steps, which moves logits by 0.1: five
    prompts of 61 differ, where the margin is 0.14 or less.

    Control: activations that are not rounded are another function.
    """
    monkeypatch.setattr(oracle, "MARGIN", 0.3)
    assert near_ties(W8A8, vllm_tokens["int8"]) <= 10
    with pytest.raises(AssertionError, match="with a margin of"):
        near_ties(Int8Linear.from_dense, vllm_tokens["int8"])


def test_int4_answers_as_our_engine_does_in_int4(
    vllm_tokens: dict[str, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float16, and ours in float32: one prompt of 61 differs, where the margin is 0.02.

    Control: int8 weights are others.
    """
    monkeypatch.setattr(oracle, "MARGIN", 0.1)
    assert near_ties(Int4Linear.from_dense, vllm_tokens["int4"]) <= 5
    with pytest.raises(AssertionError, match="with a margin of"):
        near_ties(Int8Linear.from_dense, vllm_tokens["int4"])


def test_the_order_of_the_nibbles_is_no_matter(vllm_tokens: dict[str, list[list[int]]]) -> None:
    assert vllm_tokens["int4-awq"] == vllm_tokens["int4"]
