"""The cost of operators: vLLM's own figures, and what has to hold of any."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab import lab, models
from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import (
    Operator,
    Precision,
    StepShape,
    distinct_experts,
    operators,
)

LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256)
MIXTRAL = ModelShape(32, 4096, 32, 8, 128, 14336, 32000, num_experts=8, experts_per_token=2)
# Our operator: what vLLM calls its parts, of FLOP, of bytes read and of bytes written.
PARTS = {
    "qkv projection": (
        ["attn.qkv_proj"],
        ["attn.qkv_input", "attn.qkv_weight"],
        ["attn.qkv_output"],
    ),
    "attention": (["attn.attn_qk", "attn.attn_av"], ["attn.attn_input"], ["attn.kv_cache"]),
    "output projection": (
        ["attn.out_proj"],
        ["attn.out_input", "attn.out_weight"],
        ["attn.out_output"],
    ),
    "up and gate projection": (
        [],
        ["ffn.dense_up_gate_input", "ffn.dense_up_gate_weights"],
        ["ffn.dense_up_gate_output"],
    ),
    "activation": ([], ["ffn.dense_silu_input"], ["ffn.dense_silu_output"]),
    "down projection": (
        [],
        ["ffn.dense_down_input", "ffn.dense_down_weights"],
        ["ffn.dense_down_output"],
    ),
    "head": (["unembed.unembed"], ["unembed.input", "unembed.weight"], ["unembed.output"]),
}


def total(found: list[Operator], field: str) -> float:
    return float(sum(getattr(operator, field) for operator in found))


@pytest.mark.parametrize("name", ["tiny-chat", "Llama-3.1-8B"])
def test_operators_equal_vllms(name: str) -> None:
    question, answer = lab.upstream_answer("week03/performance-model")
    shape = ModelShape.from_config(question["models"][name])
    size = {"float32": 4.0, "bfloat16": 2.0}[question["models"][name]["dtype"]]
    for step, theirs in zip(question["steps"], answer[name], strict=True):
        requests = [(*pair, True) for pair in step.get("prefills", [])]
        requests += [(*pair, False) for pair in step.get("decodes", [])]
        found = operators(shape, StepShape.of(requests), Precision(size, size, size))
        assert total(found, "flop") == pytest.approx(sum(theirs["flops"].values()), rel=0.01)
        for ours in found:
            parts = zip(
                ("flop", "read_bytes", "written_bytes"),
                ("flops", "read_bytes", "write_bytes"),
                PARTS[ours.name],
            )
            for mine, kind, names in parts:
                if names:
                    expected = sum(theirs[kind][part] for part in names)
                    assert getattr(ours, mine) == pytest.approx(expected, rel=0.01), (
                        ours.name,
                        mine,
                    )


def test_parameters_are_those_of_the_published_models() -> None:
    assert LLAMA_8B.num_parameters == 8_030_261_248
    assert MIXTRAL.num_parameters == 46_702_792_704
    assert ModelShape(
        16, 2048, 32, 8, 64, 8192, 128256, has_tied_embedding=True
    ).num_parameters == (1_235_814_400)


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-moe", "tiny-draft"])
def test_parameters_are_those_in_the_checkpoint(name: str) -> None:
    import json

    from safetensors import safe_open

    folder = models.path(name)
    shape = ModelShape.from_config(json.loads((folder / "config.json").read_text()))
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118
    assert shape.num_parameters == stored


STEPS = st.builds(
    lambda prefills, decodes: StepShape.of(
        [(new, new + old, True) for new, old in prefills] + [(1, 1 + old, False) for old in decodes]
    ),
    st.lists(st.tuples(st.integers(2, 500), st.integers(0, 4000)), max_size=5),
    st.lists(st.integers(0, 4000), max_size=40),
)


@given(STEPS, st.sampled_from([1, 2, 4, 8]))
def test_gpus_share_the_work(step: StepShape, num_gpus: int) -> None:
    alone, shared = (operators(LLAMA_8B, step, Precision(), n) for n in (1, num_gpus))
    assert num_gpus * total(shared, "flop") == pytest.approx(total(alone, "flop"))
    assert num_gpus * total(shared, "read_bytes") >= total(alone, "read_bytes") * 0.999
    assert total(shared, "bytes") <= total(alone, "bytes")


@given(STEPS)
def test_arrays_give_what_numbers_give(step: StepShape) -> None:
    arrays = StepShape(*(np.array([amount, amount]) for amount in step))
    for one, several in zip(
        operators(MIXTRAL, step, Precision()), operators(MIXTRAL, arrays, Precision())
    ):
        for field in ("flop", "read_bytes", "written_bytes"):
            assert getattr(several, field) == pytest.approx([getattr(one, field)] * 2)


def test_decode_at_batch_one_reads_each_weight_once() -> None:
    found = operators(LLAMA_8B, StepShape.decode(1, 1), Precision())
    weights = 2 * LLAMA_8B.num_active_parameters
    assert total(found, "read_bytes") == pytest.approx(weights, rel=0.001)
    assert total(found, "flop") == pytest.approx(2 * LLAMA_8B.num_active_parameters, rel=0.001)


def test_model_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="3 GPUs cannot share a model of 32 heads"):
        operators(LLAMA_8B, StepShape.decode(1, 1), Precision(), 3)


def test_distinct_experts() -> None:
    assert distinct_experts(MIXTRAL, 1) == pytest.approx(2)
    assert distinct_experts(MIXTRAL, 1000) == pytest.approx(8)
    assert distinct_experts(LLAMA_8B, 5) == 1
    draws = np.random.default_rng(0)
    seen: list[Any] = [
        len({e for _ in range(4) for e in draws.choice(8, 2, replace=False)}) for _ in range(4000)
    ]
    assert distinct_experts(MIXTRAL, 4) == pytest.approx(np.mean(seen), abs=0.05)
