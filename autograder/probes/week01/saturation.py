"""Probes of the fit: the rate at which a made-up server is full, found from its runs."""

from functools import partial
from math import inf
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week01-saturation"
CLOSE = 1e-6


def server(random: np.random.Generator) -> dict[str, Any]:
    """Rates below and above a capacity, none within a tenth of it, and the lengths of the runs."""
    capacity = float(random.uniform(5, 90))
    below = capacity * np.sort(random.uniform(0.1, 0.9, int(random.integers(1, 4))))
    above = capacity * np.sort(random.uniform(1.2, 3, int(random.integers(2, 4))))
    return {
        "capacity": capacity,
        "tail_s": float(random.uniform(0.05, 1.5)),
        "rates": [*below.tolist(), *above.tolist()],
    }


def durations(inputs: Any, rates: Any, counts: Any) -> list[float]:
    slowest = [max(1 / rate, 1 / inputs["capacity"]) for rate in rates]
    return [count * gap + inputs["tail_s"] for count, gap in zip(counts, slowest)]


def found(result: Any) -> list[Any]:
    return [float(result.requests_per_s), float(result.tail_s), int(result.num_followed)]


def equal_runs(random: np.random.Generator) -> dict[str, Any]:
    drawn = server(random)
    lowest, *others = drawn["rates"]
    above = [rate for rate in others if rate > drawn["capacity"]]
    return drawn | {"rates": [lowest, *above], "count": int(random.integers(40, 300))}


@probe(
    title="Runs of equal length, of which the server followed one",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=equal_runs,
    message="A server that does what the model says is found exactly: what it sustains, what the "
    "last answer takes, and how many rates it followed.",
)
def exact_server(code: Any, inputs: Any) -> list[Any]:
    counts = [inputs["count"]] * len(inputs["rates"])
    made = durations(inputs, inputs["rates"], counts)
    return found(code.locate_saturation(inputs["rates"], counts, made))


def mixed_runs(random: np.random.Generator) -> dict[str, Any]:
    drawn = server(random)
    order = random.permutation(len(drawn["rates"]))
    counts = random.integers(20, 400, len(drawn["rates"])).tolist()
    return drawn | {"order": order.tolist(), "counts": counts}


@probe(
    title="Runs of different lengths, in any order",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=mixed_runs,
    message="Each run keeps its own rate, number of requests and duration, in whichever order the "
    "runs are listed.",
)
def runs_in_any_order(code: Any, inputs: Any) -> list[Any]:
    made = durations(inputs, inputs["rates"], inputs["counts"])
    rates, counts, made = (
        [values[place] for place in inputs["order"]]
        for values in (inputs["rates"], inputs["counts"], made)
    )
    return found(code.locate_saturation(rates, counts, made))


def burst_runs(random: np.random.Generator) -> dict[str, Any]:
    capacity = float(random.uniform(5, 90))
    below = capacity * np.sort(random.uniform(0.1, 0.9, int(random.integers(2, 5))))
    counts = random.integers(20, 400, len(below) + 1).tolist()
    drawn = {"capacity": capacity, "tail_s": float(random.uniform(0.05, 1.5))}
    return drawn | {"rates": below.tolist(), "counts": counts}


@probe(
    title="A run that sends all requests at once",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=burst_runs,
    message="An infinite rate is a rate: its run says what the server does when it is never short "
    "of work.",
)
def burst_among_runs(code: Any, inputs: Any) -> list[Any]:
    rates = [inf, *inputs["rates"]]
    made = durations(inputs, rates, inputs["counts"])
    return found(code.locate_saturation(rates, inputs["counts"], made))


def noisy_runs(random: np.random.Generator) -> dict[str, Any]:
    drawn = server(random)
    shares = [0.4, 0.86, 0.9, 0.94, 0.98, 1.02, 1.06, 1.1, 1.14]
    rates = [share * drawn["capacity"] for share in shares]
    noise = random.normal(0, 0.02, len(rates)).tolist()
    return drawn | {"rates": rates, "noise": noise, "count": 200}


@probe(
    title="Measured runs, with noise and with rates close to the edge",
    exercise=EXERCISE,
    trials=12,
    tolerance=CLOSE,
    inputs=noisy_runs,
    message="No other rate and no other tail leave a smaller sum of squared differences of the "
    "durations.",
)
def noisy_server(code: Any, inputs: Any) -> list[Any]:
    counts = [inputs["count"]] * len(inputs["rates"])
    made = durations(inputs, inputs["rates"], counts)
    measured = [one * (1 + noise) for one, noise in zip(made, inputs["noise"])]
    # Who was followed is left out: C may be one of the rates, and rounding then decides.
    return found(code.locate_saturation(inputs["rates"], counts, measured))[:2]


@probe(
    title="Rates that the server follows throughout, or never",
    exercise=EXERCISE,
    trials=3,
    inputs=equal_runs,
    message="A server that follows every rate, and one that follows none, may be full anywhere "
    "beyond them: ValueError.",
)
def nothing_to_locate(code: Any, inputs: Any) -> list[bool]:
    count, capacity = inputs["count"], inputs["capacity"]
    seen = []
    for shares in ((0.1, 0.3, 0.5, 0.8), (1.5, 2.0, 3.0, 5.0)):
        rates = [share * capacity for share in shares]
        counts = [count] * len(rates)
        made = durations(inputs, rates, counts)
        seen.append(refuses(partial(code.locate_saturation, rates, counts, made)))
    return seen


@probe(
    title="Fewer runs than it takes",
    exercise=EXERCISE,
    inputs=equal_runs,
    message="Two unknowns cannot be found, and checked, with fewer than three runs: ValueError.",
)
def fewer_than_three_runs(code: Any, inputs: Any) -> list[bool]:
    rates = [0.5 * inputs["capacity"], inf]
    made = durations(inputs, rates, [50, 50])
    return [
        refuses(lambda: code.locate_saturation(rates, [50, 50], made)),
        refuses(lambda: code.locate_saturation(rates[:1], [50], made[:1])),
        refuses(lambda: code.locate_saturation([], [], [])),
    ]
