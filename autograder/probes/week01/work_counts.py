"""Probes of the work counts: the loops run on a model that counts what it is asked to compute."""

from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week01-work-counts"


class CountingModel:
    """Its next token depends on every key and value; it notes each call, and can be one-off."""

    def __init__(self, modulus: int = 89) -> None:
        self.calls: list[list[int]] = []
        self.modulus = modulus

    def __call__(self, token_ids: Any, kv: Any) -> int:
        self.calls.append([len(kv), len(token_ids)])
        for token_id in token_ids:
            kv.append((len(kv) + 3) * (int(token_id) + 11) % 1009)
        return int(sum(kv) % self.modulus)

    @property
    def computed(self) -> int:
        return sum(count for _, count in self.calls)


def prompts(random: np.random.Generator) -> dict[str, Any]:
    return {
        "prompt": random.integers(0, 89, int(random.integers(2, 30))).tolist(),
        "num_new": int(random.integers(3, 25)),
    }


def shortest(random: np.random.Generator) -> dict[str, Any]:
    return {"token": int(random.integers(0, 89)), "length": int(random.integers(3, 12))}


@probe(
    title="Generation without a cache: the tokens, and what each step computes",
    exercise=EXERCISE,
    trials=3,
    inputs=prompts,
    message="Without a cache every step starts from nothing and computes the whole sequence.",
)
def work_without_cache(code: Any, inputs: Any) -> list[Any]:
    model = CountingModel()
    tokens = list(code.generate_without_cache(model, list(inputs["prompt"]), inputs["num_new"]))
    return [tokens, model.calls]


@probe(
    title="Generation with a cache: the same tokens, and what each step computes",
    exercise=EXERCISE,
    trials=3,
    inputs=prompts,
    message="With a cache each position is computed once, and behind those that are there already.",
)
def work_with_cache(code: Any, inputs: Any) -> list[Any]:
    model = CountingModel()
    tokens = list(code.generate_with_cache(model, list(inputs["prompt"]), inputs["num_new"]))
    return [tokens, model.calls]


@probe(
    title="A prompt of one token, and an answer of one token",
    exercise=EXERCISE,
    trials=2,
    inputs=shortest,
    message="The shortest prompt and the shortest answer are ordinary cases, and an answer of one "
    "token takes one call.",
)
def shortest_cases(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []
    long_prompt = list(range(inputs["length"]))
    for name in ("generate_without_cache", "generate_with_cache"):
        for prompt, num_new in (([inputs["token"]], inputs["length"]), (long_prompt, 1)):
            model = CountingModel()
            seen.append([list(getattr(code, name)(model, list(prompt), num_new)), model.calls])
    return seen


@probe(
    title="Two answers in a row to the same prompt, and the prompt afterwards",
    exercise=EXERCISE,
    trials=2,
    inputs=prompts,
    message="One answer must leave nothing behind for the next, neither in the prompt that it was "
    "given nor in a cache.",
)
def nothing_left_behind(code: Any, inputs: Any) -> list[Any]:
    seen: list[Any] = []
    for name in ("generate_without_cache", "generate_with_cache"):
        prompt = list(inputs["prompt"])
        for _ in range(2):
            model = CountingModel(modulus=61)
            seen.append([list(getattr(code, name)(model, prompt, inputs["num_new"])), model.calls])
        seen.append(prompt)
    return seen


def sizes(random: np.random.Generator) -> dict[str, Any]:
    return {"sizes": [[int(n) for n in pair] for pair in random.integers(1, 5000, (6, 2))]}


@probe(
    title="The formulas for prompts and answers of any length",
    exercise=EXERCISE,
    trials=2,
    inputs=sizes,
    message="The formulas count positions exactly, as whole numbers, for an answer of one token "
    "as for one of thousands.",
)
def formulas_for_any_length(code: Any, inputs: Any) -> list[Any]:
    pairs = [*inputs["sizes"], [1, 1], [7, 1], [1, 7]]
    return [
        [code.positions_without_cache(*pair), code.positions_with_cache(*pair)] for pair in pairs
    ]


def impossible(random: np.random.Generator) -> dict[str, Any]:
    return {"some": int(random.integers(1, 9))}


@probe(
    title="An empty prompt, and no token asked for",
    exercise=EXERCISE,
    trials=2,
    inputs=impossible,
    message="An empty prompt and an empty answer are a ValueError, before anything is computed.",
)
def refused_before_computing(code: Any, inputs: Any) -> list[Any]:
    some = inputs["some"]
    model = CountingModel()
    seen: list[Any] = [
        refuses(partial(function, num_prompt, num_new))
        for function in (code.positions_without_cache, code.positions_with_cache)
        for num_prompt, num_new in ((0, some), (some, 0))
    ]
    seen += [
        refuses(partial(function, model, prompt, num_new))
        for function in (code.generate_without_cache, code.generate_with_cache)
        for prompt, num_new in (([], some), ([1] * some, 0), ([1], -some))
    ]
    return [seen, model.computed]
