"""The metrics of serving: by hand, and as vLLM's benchmark computes them from the same times."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.analysis.serving_metrics import Answer, is_good, summary

RATES = Path(__file__).parents[1] / "results" / "cpu" / "week01" / "request-rates.json"


def test_metrics_by_hand() -> None:
    metrics = summary([Answer(1.0, [1.2, 1.3, 1.5], 10), Answer(2.0, [2.5], 20)])
    assert metrics["duration_s"] == pytest.approx(1.5)
    assert metrics["output_tokens_per_s"] == pytest.approx(4 / 1.5)
    assert metrics["total_tokens_per_s"] == pytest.approx(34 / 1.5)
    assert metrics["ttft_mean_ms"] == pytest.approx(350)
    assert metrics["itl_p50_ms"] == pytest.approx(150)
    assert metrics["itl_max_ms"] == pytest.approx(200)
    assert metrics["tpot_mean_ms"] == pytest.approx(150)
    assert metrics["e2e_p50_ms"] == pytest.approx(500)


def test_answers_of_one_token_have_no_intervals() -> None:
    metrics = summary([Answer(0.0, [0.1], 5)])
    assert metrics["itl_p99_ms"] == metrics["tpot_mean_ms"] == 0.0


def test_goodput_counts_answers_that_keep_to_both() -> None:
    answers = [Answer(0.0, [0.1, 0.12], 1), Answer(0.0, [0.6, 0.62], 1), Answer(0.0, [0.1, 0.2], 1)]
    objective = {"ttft_ms": 500, "tpot_ms": 40}
    assert [is_good(answer, objective) for answer in answers] == [True, False, False]
    metrics = summary(answers, objective)
    assert metrics["good_share"] == pytest.approx(1 / 3)
    assert metrics["goodput_requests_per_s"] == pytest.approx(1 / 0.62)


def test_no_answer_is_refused() -> None:
    for answers in ([], [Answer(0.0, [], 5)]):
        with pytest.raises(ValueError, match="no answer to summarise"):
            summary(answers)


def test_a_failed_request_counts_among_those_asked_for_and_nowhere_else() -> None:
    good, failed = Answer(1.0, [1.2, 1.3], 10), Answer(0.5, [], 99)
    objective = {"ttft_ms": 500, "tpot_ms": 500}
    metrics = summary([good, failed], objective)
    assert (metrics["num_requests"], metrics["failed_requests"]) == (1, 1)
    assert metrics["duration_s"] == pytest.approx(0.8), "it was sent first"
    assert metrics["input_tokens"] == 10
    assert metrics["good_share"] == 0.5
    assert metrics["goodput_requests_per_s"] == pytest.approx(1 / 0.8)
    alone = summary([good], objective)
    for name in ("ttft_p50_ms", "itl_p99_ms", "e2e_max_ms"):
        assert metrics[name] == alone[name]
    assert (alone["failed_requests"], alone["good_share"]) == (0, 1.0)


def test_tokens_of_one_message_have_an_interval_of_zero() -> None:
    metrics = summary([Answer(0.0, [0.1, 0.1, 0.3], 1)])
    assert metrics["itl_p50_ms"] == pytest.approx(100)
    assert metrics["tpot_mean_ms"] == pytest.approx(100)
    assert metrics["output_tokens"] == 3


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8)),
        min_size=1,
        max_size=8,
    )
)
def test_mean_interval_is_the_same_by_request_and_over_all(data) -> None:
    answers = [Answer(sent, list(accumulate(gaps, initial=sent))[1:], 1) for sent, gaps in data]
    metrics = summary(answers)
    intervals = sum(len(answer.token_s) - 1 for answer in answers)
    weighted = sum(answer.tpot_ms * (len(answer.token_s) - 1) for answer in answers)
    if intervals:
        assert metrics["itl_mean_ms"] == pytest.approx(weighted / intervals, rel=1e-6, abs=1e-6)
    assert metrics["ttft_p50_ms"] <= metrics["ttft_p99_ms"] <= metrics["ttft_max_ms"]


def test_vllms_benchmark_computes_the_same_from_the_same_times() -> None:
    compared = 0
    for point in json.loads(RATES.read_text())["points"]:
        metrics, samples = (point["repeats"][0][part] for part in ("metrics", "samples"))
        columns = (samples[name] for name in ("arrival_us", "ttft_us", "itls_us", "input_tokens"))
        answers = [
            Answer(
                sent / 1e6,
                [micros / 1e6 for micros in accumulate([sent + ttft, *intervals])],
                tokens,
            )
            for sent, ttft, intervals, tokens in zip(*columns)
        ]
        if [len(answer.token_s) for answer in answers] != samples["output_tokens"]:
            continue  # several tokens came in one message
        found = summary(answers)
        for name in ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "itl_max_ms"):
            assert found[name] == pytest.approx(metrics[name], rel=1e-3), point["parameters"]
        assert found["tpot_p50_ms"] == pytest.approx(metrics["tpot_p50_ms"], rel=0.01)
        compared += 1
    assert compared >= 5
