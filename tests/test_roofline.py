"""Floors, crossovers and bounds of the roofline: known figures, and what has to hold of any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.analysis.operators import BF16, Operator, Precision, StepShape, operators
from inferlab.analysis.roofline import (
    Ceilings,
    classify,
    decode_floor_ms,
    equal_traffic_context,
    kv_token_bytes,
    step_floor_ms,
    utilisation,
    weights_read_bytes,
)
from inferlab.sim.devices import DEVICES
from inferlab.sim.shapes import SHAPES

LLAMA_8B = SHAPES["Llama-3.1-8B"]
MIXTRAL = SHAPES["Mixtral-8x7B"]
A100 = Ceilings(312e12, 2039e9)


def test_the_ridge_of_an_a100_is_153() -> None:
    assert A100.ridge == pytest.approx(153.0, abs=0.05)
    assert A100.ridge == DEVICES["A100-80GB SXM"].ridge()
    assert A100.attainable([1, 1e6]).tolist() == [2039e9, 312e12]
    assert A100.attainable(A100.ridge) == pytest.approx(312e12)


def test_a_decode_step_of_llama_8b_reads_15_gb_in_7_4_ms() -> None:
    read = weights_read_bytes(LLAMA_8B, BF16, 1)
    assert read == 2 * LLAMA_8B.num_active_parameters == 15_009_316_864
    assert 2 * LLAMA_8B.num_parameters == 16_060_522_496, "the embedding is a gather"
    assert decode_floor_ms(LLAMA_8B, BF16, A100.bytes_per_s) == pytest.approx(7.361, abs=1e-3)


def test_the_floor_of_the_simulators_ideal_engine_is_a_little_higher() -> None:
    """It also moves activations; the two may not be further apart."""
    found = operators(LLAMA_8B, StepShape.decode(8, 8 * 1000), BF16)
    floor = decode_floor_ms(LLAMA_8B, BF16, A100.bytes_per_s, 8, 1000)
    assert floor < step_floor_ms(found, A100) < 1.005 * floor


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 300), st.integers(0, 10_000))
def test_the_floor_counts_what_the_operators_read(name: str, batch: int, context: int) -> None:
    """All but activations: the reads at zero activation bytes, whose head has none either."""
    model = SHAPES[name]
    weightless = Precision(activation=0.0)
    read = sum(
        one.read_bytes for one in operators(model, StepShape.decode(batch, batch * context), BF16)
    )
    inputs = read - sum(
        one.read_bytes
        for one in operators(model, StepShape.decode(batch, batch * context), weightless)
    )
    head = model.embedding_weights * 2
    routers = model.num_layers * model.router_weights * 2
    floor = decode_floor_ms(model, BF16, 1000.0, batch, context)
    assert floor == pytest.approx(read - inputs + head + routers, rel=1e-9)


def test_an_expert_that_nobody_chose_is_not_read() -> None:
    alone = weights_read_bytes(MIXTRAL, BF16, 1)
    assert alone == pytest.approx(2 * MIXTRAL.num_active_parameters)
    everything = weights_read_bytes(MIXTRAL, BF16, 10_000)
    assert everything == pytest.approx(
        2 * (MIXTRAL.num_parameters - MIXTRAL.embedding_weights), rel=1e-4
    )


def test_fewer_bits_leave_the_head_as_it_is() -> None:
    head = 2 * LLAMA_8B.embedding_weights
    full = weights_read_bytes(LLAMA_8B, BF16, 1)
    assert weights_read_bytes(LLAMA_8B, Precision(weight=0.5), 1) == (full - head) / 4 + head


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 300))
def test_at_the_crossover_half_of_the_floor_is_kv(name: str, batch: int) -> None:
    model = SHAPES[name]
    context = equal_traffic_context(model, BF16, batch)
    both = decode_floor_ms(model, BF16, 1e12, batch, context)
    assert both == pytest.approx(2 * decode_floor_ms(model, BF16, 1e12, batch))


def test_llamas_crossover_at_batch_64_is_about_1789_tokens() -> None:
    """With all 16.06 GB, as some compute it, it would be 1,915."""
    assert kv_token_bytes(LLAMA_8B, BF16) == 131_072
    assert equal_traffic_context(LLAMA_8B, BF16, 64) == pytest.approx(1789.2, abs=0.1)


@pytest.mark.parametrize(("batch", "bandwidth"), [(0, 1e9), (-1, 1e9), (1, 0.0), (1, -1.0)])
def test_a_step_without_sequences_or_bandwidth_is_refused(batch: int, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="expected at least one sequence"):
        decode_floor_ms(LLAMA_8B, BF16, bandwidth, batch)


def test_on_the_ridge_arithmetic_bounds() -> None:
    ceilings = Ceilings(200.0, 2.0)
    found = [
        Operator("below", 999, 5, 5),
        Operator("on it", 1000, 4, 6),
        Operator("free", 7, 0, 0),
        Operator("idle", 0, 0, 0),
    ]
    assert classify(found, ceilings) == {
        "below": "memory",
        "on it": "arithmetic",
        "free": "arithmetic",
        "idle": "memory",
    }


OPERATORS = st.lists(
    st.builds(
        Operator,
        st.uuids().map(str),
        st.integers(0, 10**15),
        st.integers(1, 10**12),
        st.integers(0, 10**12),
    ),
    min_size=1,
    max_size=12,
)


@given(OPERATORS)
def test_one_after_the_other_takes_at_least_what_the_roof_says(found: list[Operator]) -> None:
    flop, moved = sum(one.flop for one in found), sum(one.bytes for one in found)
    roof = 1000 * max(flop / A100.flop_per_s, moved / A100.bytes_per_s)
    assert step_floor_ms(found, A100) >= roof * (1 - 1e-12)
    kinds = set(classify(found, A100).values())
    if len(kinds) == 1:
        assert step_floor_ms(found, A100) == pytest.approx(roof)


@given(OPERATORS)
def test_nothing_runs_above_its_own_roof(found: list[Operator]) -> None:
    for one in found:
        seconds = step_floor_ms([one], A100) / 1000
        if seconds:
            share = utilisation(one.flop, one.bytes, seconds, A100)
            assert max(share) == pytest.approx(1)
            roof = float(A100.attainable(one.intensity))
            assert one.flop / seconds == pytest.approx(roof)


def test_utilisation_is_of_each_ceiling() -> None:
    assert utilisation(50.0, 30.0, 2.0, Ceilings(100.0, 20.0)) == (0.25, 0.75)
    with pytest.raises(ValueError, match="a time above 0 s"):
        utilisation(1.0, 1.0, 0.0, A100)


def test_batches_move_a_step_to_the_right_until_kv_holds_it() -> None:
    def intensity(batch: int, context: int) -> float:
        found = operators(LLAMA_8B, StepShape.decode(batch, batch * context), BF16)
        return float(sum(one.flop for one in found) / sum(one.bytes for one in found))

    batches = [1, 8, 64, 256]
    short, long = ([intensity(b, context) for b in batches] for context in (128, 8192))
    assert np.all(np.diff(short) > 0)
    assert np.all(np.diff(long) > 0)
    assert short[-1] > A100.ridge
    assert long[-1] < A100.ridge / 3
