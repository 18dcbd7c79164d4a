"""Probes of sampling: which tokens survive, with which probability, and for how many draws."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.request import SamplingParams

EXERCISE = "week01-sampling"
CLOSE = 1e-9


class OneNumber:
    """A generator that gives numbers from a list, and notes how many were asked for."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = list(numbers)
        self.asked = 0

    def random(self) -> float:
        self.asked += 1
        return float(self.numbers[(self.asked - 1) % len(self.numbers)])


def probabilities(code: Any, logits: Any, **settings: Any) -> np.ndarray:
    found = code.token_probabilities(logits, SamplingParams(**settings))
    return np.asarray(found, dtype=np.float64)


def some_logits(random: np.random.Generator) -> dict[str, Any]:
    return {
        "logits": random.normal(0, 3, int(random.integers(8, 60))),
        "temperatures": [0.3, 1.0, 1.7],
    }


@probe(
    title="Probabilities at several temperatures",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=some_logits,
    message="The logits are divided by the temperature, and the result is a distribution.",
)
def at_temperatures(code: Any, inputs: Any) -> list[np.ndarray]:
    return [
        probabilities(code, inputs["logits"], temperature=temperature)
        for temperature in inputs["temperatures"]
    ]


def huge_logits(random: np.random.Generator) -> dict[str, Any]:
    return {
        "logits": (random.normal(0, 400, 20) + 3000).astype(np.float32),
        "low": random.normal(-5000, 1, 12),
    }


@probe(
    title="Logits far from zero, in single precision, at a low temperature",
    exercise=EXERCISE,
    trials=3,
    tolerance=CLOSE,
    inputs=huge_logits,
    message="Large logits must not overflow, and the logits that were handed over stay as they "
    "were.",
)
def far_from_zero(code: Any, inputs: Any) -> list[np.ndarray]:
    logits = np.array(inputs["logits"])
    found = probabilities(code, logits, temperature=0.01, top_p=0.9)
    return [found, probabilities(code, inputs["low"], temperature=1.0), logits]


def for_top_k(random: np.random.Generator) -> dict[str, Any]:
    size = int(random.integers(6, 30))
    return {
        "logits": random.normal(0, 2, size),
        "ties": random.integers(0, 3, size).astype(float),
        "k": int(random.integers(1, size)),
    }


@probe(
    title="Top-k, with ties at its edge and with k beyond the vocabulary",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=for_top_k,
    message="Top-k keeps exactly k tokens, of equal ones those with the lower ids; 0 and any k of "
    "at least the vocabulary keep all.",
)
def exactly_k_survive(code: Any, inputs: Any) -> list[np.ndarray]:
    size = len(inputs["logits"])
    return [
        probabilities(code, logits, top_k=k)
        for logits in (inputs["logits"], inputs["ties"])
        for k in (inputs["k"], 1, 0, size - 1, size, size + 5)
    ]


def for_top_p(random: np.random.Generator) -> dict[str, Any]:
    # No threshold is a sum of sixteenths: rounding must not decide who is in the set.
    parts = random.permutation([6.0, 4.0, 2.0, 2.0, 1.0, 1.0]) / 16
    return {"logits": np.log(parts), "thresholds": [0.3, 0.53, 0.7, 0.8, 0.9, 0.97, 0.01]}


@probe(
    title="Top-p: the smallest set that reaches p",
    exercise=EXERCISE,
    trials=4,
    tolerance=CLOSE,
    inputs=for_top_p,
    message="The token that takes the sum to p belongs to the set, no other after it does, and at "
    "least one token is kept.",
)
def smallest_set_survives(code: Any, inputs: Any) -> list[np.ndarray]:
    return [probabilities(code, inputs["logits"], top_p=p) for p in inputs["thresholds"]]


def for_order(random: np.random.Generator) -> dict[str, Any]:
    return {
        "logits": random.normal(0, 2.5, 25),
        "temperature": float(random.choice([0.4, 2.5])),
        "top_k": int(random.integers(4, 12)),
        "top_p": float(random.uniform(0.45, 0.85)),
    }


@probe(
    title="Temperature, top-k and top-p together",
    exercise=EXERCISE,
    trials=6,
    tolerance=CLOSE,
    inputs=for_order,
    message="Temperature acts first, then top-k, then top-p on what top-k has left, and what "
    "remains is a distribution again.",
)
def three_filters_in_order(code: Any, inputs: Any) -> np.ndarray:
    settings = {name: inputs[name] for name in ("temperature", "top_k", "top_p")}
    return probabilities(code, inputs["logits"], **settings)


def for_draws(random: np.random.Generator) -> dict[str, Any]:
    parts = random.integers(1, 9, 10) / 64
    parts[random.permutation(10)[:4]] = 0
    edges = np.cumsum(parts / parts.sum())
    numbers = [0.0, 0.999999999, *random.random(12).tolist(), *edges[:-1].tolist()]
    return {"probabilities": parts / parts.sum(), "numbers": numbers}


@probe(
    title="The token that a number between 0 and 1 falls on",
    exercise=EXERCISE,
    trials=4,
    inputs=for_draws,
    message="Each token owns as much of the line from 0 to 1 as it is likely, from its left end, "
    "included, to its right end, excluded; a token without probability is never drawn.",
)
def drawn_tokens(code: Any, inputs: Any) -> list[Any]:
    return [
        int(code.draw(inputs["probabilities"], OneNumber([number]))) for number in inputs["numbers"]
    ]


def for_rounding(random: np.random.Generator) -> dict[str, Any]:
    alive = int(random.integers(2, 6))
    return {"alive": alive, "dead": int(random.integers(1, 5))}


@probe(
    title="Probabilities whose sum falls short of 1",
    exercise=EXERCISE,
    trials=2,
    inputs=for_rounding,
    message="Rounding can leave the sum below 1; a number beyond it falls on the last token that "
    "has a probability.",
)
def short_of_one(code: Any, inputs: Any) -> int:
    parts = np.array([1 / inputs["alive"] - 1e-9] * inputs["alive"] + [0.0] * inputs["dead"])
    return int(code.draw(parts, OneNumber([1 - 1e-12])))


def for_greed(random: np.random.Generator) -> dict[str, Any]:
    logits = random.normal(0, 2, 15)
    best = random.permutation(15)[:2]
    logits[best] = logits.max() + 1
    return {"logits": logits}


@probe(
    title="Temperature 0 beside every other setting, and how many numbers are drawn",
    exercise=EXERCISE,
    trials=3,
    inputs=for_greed,
    message="At temperature 0 the first of the most likely tokens is taken and nothing is drawn; "
    "above it, exactly one number is drawn for a token.",
)
def greedy_and_number_of_draws(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for settings in ({"temperature": 0}, {"temperature": 0, "top_k": 3, "top_p": 0.2}):
        generator = OneNumber([0.99])
        token = code.sample_token(inputs["logits"], SamplingParams(**settings), generator)
        seen.append([int(token), generator.asked])
    for settings in ({"temperature": 1.0}, {"temperature": 0.5, "top_k": 1}, {"top_p": 0.05}):
        generator = OneNumber([0.7])
        token = code.sample_token(inputs["logits"], SamplingParams(**settings), generator)
        seen.append([int(token), generator.asked])
    return seen
