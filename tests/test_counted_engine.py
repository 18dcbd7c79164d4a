"""The engine with counted products: the same tokens, and loads that the formula predicts."""

import pytest

from inferlab import models
from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.tiled_traffic import tiled_traffic
from inferlab.engine import LLM, SamplingParams
from inferlab.lab.counted_engine import CountedEngine

PARAMS = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
PROMPTS = [[1, 5, 9, 13], [2, 6, 10], [3] * 40]
TINY = ModelShape(4, 256, 4, 2, 64, 768, 640)


def products(rows: int, sampled: int) -> list[tuple[int, int, int]]:
    """Rows, columns and depth of every product of a step."""
    layer = [(rows, 512, 256), (rows, 256, 256), (rows, 1536, 256), (rows, 256, 768)]
    return TINY.num_layers * layer + [(sampled, 640, 256)]


def test_tokens_are_those_of_the_engine_and_loads_those_of_the_formula() -> None:
    engine = CountedEngine(models.path("tiny-chat"), (32, 128, 256))
    tokens = engine.generate(PROMPTS, PARAMS)
    plain = LLM(models.path("tiny-chat")).generate(PROMPTS, PARAMS)
    assert tokens == [completion.token_ids for completion in plain]
    assert [(step.prefill_tokens, step.decode_tokens) for step in engine.steps] == [
        (47, 0),
        (0, 3),
        (0, 3),
    ]
    assert [step.decode_context for step in engine.steps] == [0, 50, 53]
    expected = [
        tiled_traffic(*sides, 32, 128)
        for step in engine.steps
        for sides in products(step.tokens, step.sampled)
    ]
    counts = engine.counts()
    assert counts["steps"] == 3
    loaded = counts["weights_loaded"] + counts["rows_loaded"]
    assert loaded == sum(one.loaded for one in expected)
    assert counts["stored"] == sum(one.stored for one in expected)


def test_a_model_of_experts_is_refused() -> None:
    with pytest.raises(TypeError, match="only dense models are counted"):
        CountedEngine(models.path("tiny-moe"))
