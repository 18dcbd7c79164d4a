"""Probes of the benchmark summary: intervals of drawn samples, and samples that say nothing."""

from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week02-benchmark-summary"


def numbers(summary: Any) -> list[Any]:
    return [int(summary.num_samples), *(float(value) for value in summary[1:4])]


def confidences(random: np.random.Generator) -> dict[str, Any]:
    return {"values": [0.5, 0.75, 0.9375, 0.95, 0.99, 1e-9, *random.uniform(0.01, 0.9999, 6)]}


@probe(
    title="How many samples a confidence needs",
    exercise=EXERCISE,
    trials=2,
    inputs=confidences,
    message="With n samples, all of them are on one side of the median with a probability of "
    "2 · (1/2)^n; as many are needed as make the rest reach the confidence.",
)
def samples_needed(code: Any, inputs: Any) -> list[Any]:
    needed = [int(code.fewest_samples(value)) for value in inputs["values"]]
    wrong = [0.0, 1.0, -0.3, 1.5]
    return [needed, [refuses(lambda value=value: code.fewest_samples(value)) for value in wrong]]


def skewed(random: np.random.Generator) -> dict[str, Any]:
    return {
        "samples": random.lognormal(1.0, 1.2, int(random.integers(9, 30))).round(4).tolist(),
        "seed": int(random.integers(100)),
        "confidence": float(random.choice([0.8, 0.9, 0.95, 0.99])),
    }


@probe(
    title="Median and interval of skewed samples",
    exercise=EXERCISE,
    trials=4,
    inputs=skewed,
    tolerance=1e-9,
    message="The interval holds the middle share of the medians of the resamples that the seed "
    "gives, and the summary is centred on the samples' own median.",
)
def skewed_samples(code: Any, inputs: Any) -> list[Any]:
    samples = list(inputs["samples"])
    found = code.summarise(samples, inputs["confidence"], inputs["seed"])
    default = code.summarise(np.array(samples))
    return [numbers(found), numbers(default), samples == inputs["samples"]]


def few(random: np.random.Generator) -> dict[str, Any]:
    return {"samples": random.uniform(1, 2, 12).tolist()}


@probe(
    title="Too few samples, and just enough",
    exercise=EXERCISE,
    trials=2,
    inputs=few,
    message="How many samples are too few depends on the confidence; with one more there is an "
    "interval.",
)
def too_few_samples(code: Any, inputs: Any) -> list[bool]:
    samples = inputs["samples"]
    seen = []
    for confidence, needed in ((0.5, 2), (0.8, 4), (0.95, 6), (0.99, 8)):
        for count in (0, 1, needed - 1, needed, needed + 1):
            short = samples[:count]
            one = refuses(lambda short=short, c=confidence: code.summarise(short, c))
            two = refuses(lambda short=short, c=confidence: code.speedup(short, samples, c))
            three = refuses(lambda short=short, c=confidence: code.speedup(samples, short, c))
            seen += [one, two, three]
    return seen


def failed_run(random: np.random.Generator) -> dict[str, Any]:
    return {"samples": random.uniform(1, 2, 9).tolist(), "place": int(random.integers(9))}


@probe(
    title="A failed run among the samples",
    exercise=EXERCISE,
    trials=2,
    inputs=failed_run,
    message="A sample that is not a finite number is a ValueError wherever it stands: it may not "
    "be dropped, nor may it spread into the result.",
)
def failed_runs(code: Any, inputs: Any) -> list[bool]:
    good, seen = inputs["samples"], []
    for wrong in (float("nan"), float("inf"), -float("inf")):
        bad = [*good]
        bad[inputs["place"]] = wrong
        seen.append(refuses(lambda bad=bad: code.summarise(bad)))
        seen.append(refuses(lambda bad=bad: code.speedup(good, bad)))
        seen.append(refuses(lambda bad=bad: code.speedup(bad, good)))
    return [*seen, refuses(lambda: code.summarise(good)), refuses(lambda: code.speedup(good, good))]


def before_and_after(random: np.random.Generator) -> dict[str, Any]:
    return {
        "before": (2 * random.lognormal(0, 0.4, int(random.integers(7, 20)))).round(4).tolist(),
        "after": random.lognormal(0, 0.6, int(random.integers(7, 20))).round(4).tolist(),
        "seed": int(random.integers(100)),
        "confidence": float(random.choice([0.8, 0.9, 0.95])),
    }


@probe(
    title="The interval of a speed-up",
    exercise=EXERCISE,
    trials=4,
    inputs=before_and_after,
    tolerance=1e-9,
    message="Both sides are resampled, the one before first and with one generator, and each pair "
    "of medians gives one ratio.",
)
def ratio_intervals(code: Any, inputs: Any) -> list[Any]:
    found = code.speedup(inputs["before"], inputs["after"], inputs["confidence"], inputs["seed"])
    return [numbers(found), numbers(code.speedup(inputs["after"], inputs["before"]))]


def not_durations(random: np.random.Generator) -> dict[str, Any]:
    return {"samples": random.uniform(1, 2, 8).tolist(), "place": int(random.integers(8))}


@probe(
    title="Durations of zero, and samples that may be negative",
    exercise=EXERCISE,
    trials=2,
    inputs=not_durations,
    tolerance=1e-9,
    message="A ratio needs durations above zero on both sides; a summary of one side does not.",
)
def zero_durations(code: Any, inputs: Any) -> list[Any]:
    good, seen = inputs["samples"], []
    for wrong in (0.0, -1.5):
        bad = [*good]
        bad[inputs["place"]] = wrong
        seen.append(refuses(lambda bad=bad: code.speedup(good, bad)))
        seen.append(refuses(lambda bad=bad: code.speedup(bad, good)))
        seen.append(numbers(code.summarise(bad)))
    return seen
