"""Sampling: which tokens survive, in which order the filters act, and who draws what."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from inferlab.engine import Request, Sampler, SamplingParams
from inferlab.engine.sampler import apply_penalties, sample_token, token_probabilities

logits_vectors = arrays(np.float32, 12, elements=st.floats(-1000, 1000, width=32))


@given(logits_vectors, st.integers(1, 15), st.floats(0.05, 1), st.floats(0.1, 5))
def test_probabilities_are_a_distribution_that_keeps_the_best_token(
    logits: np.ndarray, top_k: int, top_p: float, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    probabilities = token_probabilities(logits, params)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[np.argmax(logits)] > 0
    assert np.count_nonzero(probabilities) <= max(1, min(top_k, 12))


def test_top_k_keeps_exactly_k_also_on_ties_and_all_when_it_exceeds_the_vocabulary() -> None:
    ties = np.zeros(5)
    assert np.flatnonzero(token_probabilities(ties, SamplingParams(top_k=2))).tolist() == [0, 1]
    assert np.count_nonzero(token_probabilities(ties, SamplingParams(top_k=9))) == 5


def test_top_p_keeps_the_smallest_nucleus_including_the_token_that_crosses() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    kept = [
        np.count_nonzero(token_probabilities(logits, SamplingParams(top_p=p)))
        for p in (0.4, 0.6, 0.9, 1.0)
    ]
    assert kept == [1, 2, 3, 4]


def test_temperature_acts_before_top_p() -> None:
    """At temperature 4 the distribution is flat enough for the nucleus to need a third token."""
    logits = np.log([0.8, 0.15, 0.05])
    sharp = token_probabilities(logits, SamplingParams(temperature=1.0, top_p=0.78))
    flat = token_probabilities(logits, SamplingParams(temperature=4.0, top_p=0.78))
    assert (np.count_nonzero(sharp), np.count_nonzero(flat)) == (1, 3)


def test_min_p_is_relative_to_the_best_token() -> None:
    logits = np.log([0.6, 0.3, 0.1])
    assert np.count_nonzero(token_probabilities(logits, SamplingParams(min_p=0.4))) == 2


@given(logits_vectors)
def test_greedy_is_the_lowest_argmax_and_draws_nothing(logits: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    token = sample_token(logits, SamplingParams(temperature=0, top_k=3, top_p=0.1), generator)
    assert token == int(np.argmax(logits))
    assert generator.bit_generator.state == state


def test_frequencies_follow_the_distribution() -> None:
    """Pearson's chi-square over 20,000 draws; 30.7 is the 1e-6 quantile at 3 degrees of freedom."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    generator = np.random.default_rng(7)
    draws = [sample_token(logits, SamplingParams(), generator) for _ in range(20_000)]
    expected = np.array([0.4, 0.3, 0.2, 0.1]) * len(draws)

    def chi_square(counts: np.ndarray) -> float:
        return float(((counts - expected) ** 2 / expected).sum())

    assert chi_square(np.bincount(draws, minlength=4)) < 30.7
    broken = [sample_token(logits, SamplingParams(temperature=1.1), generator) for _ in draws]
    assert chi_square(np.bincount(broken, minlength=4)) > 30.7  # the test has the power to fail


def test_penalties_act_on_what_was_seen() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0])
    repeated = apply_penalties(logits, [0], [1], SamplingParams(repetition_penalty=2.0))
    assert repeated.tolist() == [1.0, -4.0, 1.0, 0.0]
    counted = apply_penalties(
        logits, [0], [1, 1, 2], SamplingParams(frequency_penalty=0.5, presence_penalty=1.0)
    )
    assert counted.tolist() == [2.0, -4.0, -0.5, 0.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_a_seeded_request_samples_the_same_whoever_its_neighbours_are() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 50))
    alone, crowded = Sampler(seed=1), Sampler(seed=2)
    mine = Request("mine", [1], SamplingParams(seed=11))
    other = Request("other", [1], SamplingParams())
    by_itself = [alone.sample(logits[:1], [mine])[0] for _ in range(20)]
    together = [crowded.sample(logits, [mine, other])[0] for _ in range(20)]
    assert by_itself == together
    assert len(set(by_itself)) > 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("top_p", 0.0), ("top_k", -1), ("min_p", 2.0)],
)
def test_impossible_parameters_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
