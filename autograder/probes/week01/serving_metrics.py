"""Probes of the serving metrics: timestamps in, what a user would have felt out."""

from itertools import accumulate
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week01-serving-metrics"
CLOSE = 1e-6


def drawn(random: np.random.Generator, count: int, longest: int = 9) -> list[list[Any]]:
    """Requests as [when it was sent, when its tokens came, length of its prompt], in seconds."""
    requests = []
    for sent_s in 50 + random.uniform(0, 3, count):
        gaps = random.uniform(0.002, 0.09, int(random.integers(2, longest)))
        gaps[0] += random.uniform(0.01, 0.4)
        token_s = [float(time_s) for time_s in accumulate([sent_s, *gaps])][1:]
        requests.append([float(sent_s), token_s, int(random.integers(3, 90))])
    return requests


def answers(code: Any, requests: Any) -> list[Any]:
    return [code.Answer(sent_s, token_s, tokens) for sent_s, token_s, tokens in requests]


def floats(metrics: Any, names: Any) -> list[float]:
    return [float(metrics[name]) for name in names]


def of(kind: str) -> list[str]:
    return [f"{kind}_{end}_ms" for end in ("mean", "p50", "p90", "p99", "max")]


def a_run(random: np.random.Generator) -> dict[str, Any]:
    return {"requests": drawn(random, int(random.integers(7, 16)))}


@probe(
    title="TTFT, TPOT and E2E of single requests",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=a_run,
    message="Each latency of a request counts from the right moment, in milliseconds.",
)
def latencies_one_by_one(code: Any, inputs: Any) -> list[list[float]]:
    return [
        [float(one.ttft_ms), float(one.tpot_ms), float(one.e2e_ms)]
        for one in answers(code, inputs["requests"])
    ]


@probe(
    title="Percentiles over requests and over intervals",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=a_run,
    message="TTFT, TPOT and E2E are distributions over requests, ITL is one over all intervals of "
    "all requests; mean, percentiles and maximum of each.",
)
def four_distributions(code: Any, inputs: Any) -> list[float]:
    metrics = code.summary(answers(code, inputs["requests"]))
    return floats(metrics, [*of("ttft"), *of("tpot"), *of("itl"), *of("e2e")])


def late_start(random: np.random.Generator) -> dict[str, Any]:
    requests = drawn(random, 9)
    # Who is sent first is not first in the list, and who ends last was not sent last.
    requests.sort(key=lambda request: -request[0])
    first = requests.pop()
    requests.insert(2, first)
    first[1][-1] = max(request[1][-1] for request in requests) + float(random.uniform(0.5, 2))
    return {"requests": requests}


@probe(
    title="How long a run lasts, and its throughput, for requests in any order",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=late_start,
    message="A run lasts from the first request that is sent to the last token that comes, "
    "whichever requests these belong to.",
)
def length_and_rates_of_a_run(code: Any, inputs: Any) -> list[float]:
    metrics = code.summary(answers(code, inputs["requests"]))
    rates = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")
    return floats(metrics, ["duration_s", "input_tokens", "output_tokens", *rates])


def one_token(random: np.random.Generator) -> dict[str, Any]:
    requests = drawn(random, 8)
    for request in requests[:3]:
        request[1] = request[1][:1]
    alone = [[*request[:1], request[1][:1], *request[2:]] for request in requests]
    return {"requests": requests, "alone": alone}


@probe(
    title="Answers of one token, among others and alone",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=one_token,
    message="An answer of one token has a TTFT and no interval: it must not pull TPOT or ITL down, "
    "and a run of such answers has zeros there.",
)
def answers_of_one_token(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for requests in (inputs["requests"], inputs["alone"]):
        metrics = code.summary(answers(code, requests))
        seen.append(floats(metrics, [*of("ttft"), *of("tpot"), *of("itl")]))
    seen.append([float(one.tpot_ms) for one in answers(code, inputs["requests"])])
    return seen


def failures(random: np.random.Generator) -> dict[str, Any]:
    requests = drawn(random, 10)
    for number in random.permutation(10)[:3]:
        requests[number][1] = []
    requests[int(random.integers(0, 10))][0] -= 0.0
    failed = next(request for request in requests if not request[1])
    failed[0] = min(request[0] for request in requests) - float(random.uniform(0.5, 2))
    return {"requests": requests, "limit": float(random.uniform(150, 400))}


@probe(
    title="Requests that failed",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=failures,
    message="A failed request has no latency and no tokens, but it was sent: it is counted, it may "
    "begin the run, and it did not keep to the objective.",
)
def requests_that_failed(code: Any, inputs: Any) -> list[float]:
    objective = {"ttft_ms": inputs["limit"], "tpot_ms": 60.0}
    metrics = code.summary(answers(code, inputs["requests"]), objective)
    counts = ("num_requests", "failed_requests", "input_tokens", "duration_s", "requests_per_s")
    goodput = ("good_share", "goodput_requests_per_s")
    return floats(metrics, [*counts, *goodput, *of("ttft"), *of("itl"), *of("e2e")])


def bundled(random: np.random.Generator) -> dict[str, Any]:
    requests = drawn(random, 6)
    for request in requests:
        request[1] = [time_s for time_s in request[1] for _ in range(int(random.integers(1, 4)))]
    return {"requests": requests}


@probe(
    title="Several tokens in one message",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=bundled,
    message="Tokens that come in one message are tokens all the same: between them lies an "
    "interval of zero, and every one counts for TPOT and throughput.",
)
def bundled_tokens(code: Any, inputs: Any) -> list[float]:
    metrics = code.summary(answers(code, inputs["requests"]))
    return floats(metrics, [*of("itl"), *of("tpot"), "output_tokens", "output_tokens_per_s"])


def objectives(random: np.random.Generator) -> dict[str, Any]:
    # Powers of two, so that no rounding decides who is on the edge.
    requests = []
    for number in range(16):
        sent_s = float(number)
        ttft_s, tpot_s = (float(random.choice([0.125, 0.25, 0.5])) for _ in range(2))
        token_s = [sent_s + ttft_s + i * tpot_s for i in range(int(random.integers(1, 5)))]
        requests.append([sent_s, token_s, 4])
    return {"requests": requests, "ttft_ms": 250.0, "tpot_ms": 250.0}


@probe(
    title="Goodput of answers that keep to one limit, to both, and exactly",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=objectives,
    message="An answer is good if it keeps to both limits, and one that meets a limit exactly "
    "keeps to it.",
)
def kept_to_the_objective(code: Any, inputs: Any) -> list[Any]:
    objective = {"ttft_ms": inputs["ttft_ms"], "tpot_ms": inputs["tpot_ms"]}
    made = answers(code, inputs["requests"])
    metrics = code.summary(made, objective)
    plain = code.summary(made)
    return [
        [bool(code.is_good(one, objective)) for one in made],
        floats(metrics, ["good_share", "goodput_requests_per_s"]),
        "good_share" in plain,
    ]


def nothing(random: np.random.Generator) -> dict[str, Any]:
    return {"sent_s": float(random.uniform(0, 9))}


@probe(
    title="A run without a single answer",
    exercise=EXERCISE,
    inputs=nothing,
    message="A run of no requests, and one in which all failed, cannot be summarised: ValueError.",
)
def no_answer_at_all(code: Any, inputs: Any) -> list[bool]:
    failed = [code.Answer(inputs["sent_s"], [], 5)] * 2
    return [refuses(lambda: code.summary([])), refuses(lambda: code.summary(failed))]
