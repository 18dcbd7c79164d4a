"""Turns a load generator's answer into flat metrics and per-request samples."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from inferlab.lab.plan import PERCENTILES

# Enough for a distribution, and few enough that a result file stays below 1 MB: 300 KB on a CPU.
MOST_INTERVALS = 2000
# vLLM's name of a latency → ours; both are milliseconds.
LATENCIES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}


def common_metrics(answer: dict[str, Any]) -> dict[str, float]:
    """Counts and rates that every engine has; only requested tokens are counted."""
    duration, outputs, inputs = answer["duration"], answer["output_lens"], answer["input_lens"]
    return {
        "duration_s": duration,
        "num_requests": len(outputs),
        "input_tokens": sum(inputs),
        "input_max_tokens": max(inputs),
        "output_tokens": sum(outputs),
        "requests_per_s": len(outputs) / duration,
        "output_tokens_per_s": sum(outputs) / duration,
        "total_tokens_per_s": (sum(outputs) + sum(inputs)) / duration,
        "e2e_mean_ms": 1000 * sum(answer["latencies"]) / len(outputs),
    }


def bench_metrics(answer: dict[str, Any], objective: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one `vllm bench serve` result; with an objective, how many answers kept to it.

    Raises:
        ValueError: if a request failed: a rate over the others would be meaningless.
    """
    if answer["failed"]:
        reason = next(error for error in answer["errors"] if error).strip().splitlines()[-1]
        raise ValueError(
            f"{answer['failed']} of {answer['num_prompts']} requests failed; the first: {reason}"
        )
    metrics = {**common_metrics(answer), "failed_requests": 0}
    for theirs, ours in LATENCIES.items():
        metrics[f"{ours}_mean_ms"] = answer[f"mean_{theirs}_ms"]
        for percentile in PERCENTILES:
            metrics[f"{ours}_p{percentile}_ms"] = answer[f"p{percentile}_{theirs}_ms"]
    intervals = (interval for request in answer["itls"] for interval in request)
    metrics["itl_max_ms"] = 1000 * max(intervals, default=0.0)
    if objective:
        metrics["good_share"] = good_share(answer, objective)
        metrics["goodput_requests_per_s"] = metrics["good_share"] * metrics["requests_per_s"]
    return metrics


def completed(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of the load generator with the requests that were answered only."""
    kept = [number for number, error in enumerate(answer["errors"]) if not error]
    lists = {
        name: [values[number] for number in kept]
        for name, values in answer.items()
        if isinstance(values, list) and len(values) == len(answer["errors"])
    }
    return {**answer, **lists}


def good_share(answer: dict[str, Any], objective: Mapping[str, float]) -> float:
    """Share of the requests whose TTFT and TPOT are both within the objective.

    TPOT is the mean time between a request's tokens; an answer of one token has none to exceed.
    """
    good = 0
    for ttft_s, latency_s, tokens in zip(
        answer["ttfts"], answer["latencies"], answer["output_lens"]
    ):
        tpot_ms = 1000 * (latency_s - ttft_s) / max(tokens - 1, 1)
        good += 1000 * ttft_s <= objective["ttft_ms"] and tpot_ms <= objective["tpot_ms"]
    return good / len(answer["output_lens"])


def static_batch_metrics(answer: dict[str, Any]) -> dict[str, float]:
    """Metrics of one run of the static-batch baseline; it streams nothing, so it has no TTFT."""
    metrics = common_metrics(answer)
    real = metrics["input_tokens"] + metrics["output_tokens"]
    metrics["padding_share"] = 1 - real / answer["padded_tokens"]
    return metrics


def samples(answer: dict[str, Any], *, with_intervals: bool) -> dict[str, list[Any]]:
    """Per request, in order of arrival: tokens in and out, and times in microseconds.

    `itls_us` (every interval between two tokens) is far the largest part, so it is kept for the
    first requests of one repeat of a point only, as many as have 2,000 intervals together; the
    percentiles are over all of them.
    """
    kept: dict[str, list[Any]] = {
        "input_tokens": answer["input_lens"],
        "output_tokens": answer["output_lens"],
        "e2e_us": microseconds(answer["latencies"]),
    }
    if "start_times" in answer:
        first = min(answer["start_times"])
        kept["arrival_us"] = microseconds([start - first for start in answer["start_times"]])
        kept["ttft_us"] = microseconds(answer["ttfts"])
        if with_intervals:
            kept["itls_us"] = [microseconds(i) for i in first_intervals(answer["itls"])]
    return kept


def first_intervals(requests: list[list[float]]) -> list[list[float]]:
    """Of the first requests, as many as have at most `MOST_INTERVALS` together."""
    ends = accumulate(len(intervals) for intervals in requests)
    return requests[: sum(end <= MOST_INTERVALS for end in ends)]


def microseconds(seconds: list[float]) -> list[int]:
    return [round(1e6 * value) for value in seconds]
