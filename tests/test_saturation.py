"""Locating saturation: what was put in is found, on made-up runs and on recorded ones."""

from math import inf

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inferlab import lab
from inferlab.analysis import locate_saturation


def durations(rates, counts, capacity, tail_s):
    return [n * max(1 / rate, 1 / capacity) + tail_s for rate, n in zip(rates, counts)]


@given(
    st.lists(st.floats(0.5, 200), min_size=2, max_size=8, unique=True),
    st.floats(1, 150),
    st.floats(0, 2),
    st.randoms(),
)
def test_a_server_that_is_what_the_model_says_is_found_exactly(rates, capacity, tail_s, random):
    assume(min(rates) < 0.95 * capacity)
    assume(min(abs(rate / capacity - 1) for rate in rates) > 0.05)
    rates = [*rates, inf]
    random.shuffle(rates)
    counts = [random.randint(20, 500) for _ in rates]
    found = locate_saturation(rates, counts, durations(rates, counts, capacity, tail_s))
    assert found.requests_per_s == pytest.approx(capacity, rel=1e-6)
    assert found.tail_s == pytest.approx(tail_s, abs=1e-6)
    assert found.num_followed == sum(rate <= capacity for rate in rates)


@given(st.integers(0, 10_000))
def test_no_other_rate_fits_better(seed):
    random = np.random.default_rng(seed)
    rates = np.sort(random.uniform(5, 60, 6))
    counts = random.integers(50, 300, 6)
    made = np.array(durations(rates, counts, capacity=float(random.uniform(8, 50)), tail_s=0.5))
    made *= 1 + random.normal(0, 0.05, 6)
    try:
        found = locate_saturation(rates, counts, made)
    except ValueError:
        return
    gaps = np.append(np.linspace(1 / rates[-1], 1 / rates[0], 500), 1 / found.requests_per_s)
    models = counts * np.maximum(1 / rates, gaps[:, None])
    tails = (made - models).mean(axis=1, keepdims=True)
    squares = ((made - models - tails) ** 2).sum(axis=1)
    assert squares[-1] <= squares.min() * (1 + 1e-9) + 1e-12
    assert found.tail_s == pytest.approx(tails[-1, 0], abs=1e-9)


def test_the_plain_quotient_falls_short_where_the_server_follows():
    """Why the tail is in the model: the run is short, and the server keeps up."""
    rates, counts = [8, 32, 96, inf], [128] * 4
    made = durations(rates, counts, capacity=110, tail_s=0.3)
    assert 128 / made[2] < 0.85 * 96
    assert locate_saturation(rates, counts, made).num_followed == 3


def test_too_few_runs_and_runs_that_are_all_followed_are_refused():
    with pytest.raises(ValueError, match="2 runs"):
        locate_saturation([1, inf], [10, 10], [10, 1])
    rates = [1.0, 2.0, 4.0]
    with pytest.raises(ValueError, match="full at every rate, or at none"):
        locate_saturation(rates, [10] * 3, [10 / rate + 0.5 for rate in rates])
    with pytest.raises(ValueError, match="full at every rate, or at none"):
        locate_saturation(rates, [10] * 3, [20.5] * 3)  # full at the lowest already


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("workload", ["short-short", "long-short"])
def test_the_recorded_servers_are_full_where_a_burst_says_within_a_tenth(engine, workload):
    rows = lab.load("week01/request-rates").where(engine=engine, workload=workload)
    found = locate_saturation(
        [float(row["request_rate"]) for row in rows],
        [int(row["num_requests"]) for row in rows],
        [row["duration_s"] for row in rows],
    )
    (burst,) = (row for row in rows if row["request_rate"] == "inf")
    corrected = burst["num_requests"] / (burst["duration_s"] - found.tail_s)
    assert np.isclose(found.requests_per_s, corrected, rtol=0.15)
