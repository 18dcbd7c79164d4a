"""Intervals that cover as often as they claim, and samples that are refused."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from inferlab.analysis.benchmark import fewest_samples, speedup, summarise

SAMPLES = st.lists(st.floats(0.1, 100), min_size=6, max_size=30)


def test_the_fewest_samples_are_those_whose_range_covers_often_enough() -> None:
    assert [fewest_samples(c) for c in (0.5, 0.75, 0.9, 0.95, 0.99)] == [2, 3, 5, 6, 8]
    for confidence in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            fewest_samples(confidence)


@given(SAMPLES)
def test_the_interval_lies_in_the_range_and_holds_the_median_of_the_medians(
    samples: list[float],
) -> None:
    found = summarise(samples)
    assert min(samples) <= found.low <= found.high <= max(samples)
    assert found.median == np.median(samples)
    assert found == summarise(samples), "the same seed gives the same interval"


@given(SAMPLES, st.floats(0.5, 20))
def test_the_unit_does_not_matter(samples: list[float], factor: float) -> None:
    scaled = summarise([factor * sample for sample in samples])
    assert np.allclose(scaled[1:], np.multiply(factor, summarise(samples)[1:]))


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = summarise(rng.exponential(size=25).tolist())
        hits += found.low <= np.log(2) <= found.high
    assert 0.90 <= hits / 400 <= 0.98


def test_more_confidence_gives_a_wider_interval() -> None:
    samples = np.random.default_rng(1).exponential(size=20).tolist()
    narrow, wide = summarise(samples, 0.8), summarise(samples, 0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_equal_samples_have_an_interval_of_no_width() -> None:
    assert summarise([3.0] * 8)[1:] == (3, 3, 3)
    assert speedup([4.0] * 8, [2.0] * 9) == (8, 2, 2, 2)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([1.0, 2, 3], "3 samples give no interval .* it takes 6 or more"),
        ([], "0 samples"),
        ([1.0, 2, 3, 4, 5, float("nan")], "One of the samples is nan"),
        ([1.0, 2, 3, 4, 5, float("inf"), 7], "One of the samples is inf"),
    ],
)
def test_samples_that_say_nothing_are_refused(samples: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(samples)
    with pytest.raises(ValueError, match=message):
        speedup([1.0] * 6, samples)


def test_a_ratio_needs_durations_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        speedup([1.0] * 6, [1.0] * 5 + [0.0])


def test_the_same_samples_show_no_difference() -> None:
    rng = np.random.default_rng(2)
    samples = rng.exponential(size=30)
    found = speedup(samples.tolist(), rng.exponential(size=30).tolist())
    assert found.low < 1 < found.high
    assert speedup((2 * samples).tolist(), samples.tolist()).median == 2
