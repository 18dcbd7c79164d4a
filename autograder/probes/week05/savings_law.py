"""Probes of the savings law: tokens, as whole numbers."""

from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe

EXERCISE = "week05-savings-law"


def tokens(random: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in random.integers(0, 500, count)]


def cases(random: np.random.Generator) -> list[list[int]]:
    found = []
    for _ in range(30):
        prompt, block = (int(n) for n in random.integers([2, 1], [90, 20]))
        found.append([prompt, int(random.integers(0, prompt)), block])
    return found


@probe(
    title="Prompts, shared tokens and block sizes at random",
    exercise=EXERCISE,
    trials=2,
    inputs=cases,
    message="A hit is not the whole blocks of what is shared.",
)
def hits_at_random(code: Any, inputs: Any) -> list[Any]:
    return [code.hit_tokens(*case) for case in inputs]


def complete(random: np.random.Generator) -> list[list[int]]:
    blocks = random.integers(1, 33, 12).tolist()
    whole = [[block * count, block * count, block] for block, count in zip(blocks, range(1, 13))]
    return [*whole, *([p + 1, p + 1, b] for p, _, b in whole), [1, 1, 1], [1, 0, 4], [2, 2, 1]]


@probe(
    title="Prompts that are shared completely, of whole blocks and others",
    exercise=EXERCISE,
    trials=2,
    inputs=complete,
    message="A prompt that is cached completely hits a wrong number of tokens.",
)
def hits_of_whole_prompts(code: Any, inputs: Any) -> list[Any]:
    return [code.hit_tokens(*case) for case in inputs]


@probe(
    title="Arguments that make no sense",
    exercise=EXERCISE,
    inputs=lambda random: [
        [0, 0, 4],
        [-3, 0, 4],
        [8, 4, 0],
        [8, 4, -2],
        [8, 9, 4],
        [8, -1, 4],
        [8, 8, 4],
        [8, 0, 1],
    ],
    message="An impossible prompt, block or number of shared tokens is accepted, or a possible one "
    "refused.",
)
def refused_arguments(code: Any, inputs: Any) -> list[Any]:
    def hit(case: list[int]) -> Any:
        return lambda: code.hit_tokens(*case)

    return [refusal(hit(case), lambda: None) for case in inputs]


@probe(
    title="No request, one request, and many",
    exercise=EXERCISE,
    trials=2,
    inputs=lambda random: [
        [count, *case] for count, case in zip([0, 1, 2, 9, 40], cases(random)[:5])
    ],
    message="What several requests save is not what all of them but the first find.",
)
def saved_by_requests(code: Any, inputs: Any) -> list[Any]:
    return [code.saved_tokens(*case) for case in inputs]


def forest(random: np.random.Generator) -> dict[str, Any]:
    trunks = [tokens(random, 24) for _ in range(3)]
    prompts = []
    for _ in range(12):
        trunk = trunks[int(random.integers(3))]
        cut, rest = (int(n) for n in random.integers([0, 1], [25, 9]))
        prompts.append([*trunk[:cut], *tokens(random, rest)])
    return {"block_size": int(random.choice([1, 3, 4])), "prompts": prompts}


@probe(
    title="Prompts that grow out of several trunks, in any order",
    exercise=EXERCISE,
    trials=3,
    inputs=forest,
    message="A prompt shares with whichever of the earlier sequences it agrees with longest.",
)
def hits_in_a_forest(code: Any, inputs: Any) -> list[Any]:
    return list(code.predicted_hits(inputs["prompts"], inputs["block_size"]))


def conversation(random: np.random.Generator) -> dict[str, Any]:
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    transcript: list[int] = []
    for _ in range(6):
        transcript = [*transcript, *tokens(random, int(random.integers(1, 7)))]
        prompts.append(transcript)
        answers.append(tokens(random, int(random.integers(1, 8))))
        transcript = [*transcript, *answers[-1]]
    return {"block_size": int(random.choice([1, 2, 4])), "prompts": prompts, "answers": answers}


@probe(
    title="A conversation whose answers come back in the next prompt",
    exercise=EXERCISE,
    trials=4,
    inputs=conversation,
    message="Tokens of an answer are counted that were never computed, or not counted that were.",
)
def hits_of_turns(code: Any, inputs: Any) -> list[Any]:
    return [
        list(code.predicted_hits(inputs["prompts"], inputs["block_size"], inputs["answers"])),
        list(code.predicted_hits(inputs["prompts"], inputs["block_size"])),
    ]


@probe(
    title="More or fewer answers than prompts, and none of either",
    exercise=EXERCISE,
    inputs=lambda random: tokens(random, 6),
    message="Answers that do not belong to a prompt each are accepted, or an empty list refused.",
)
def answers_for_prompts(code: Any, inputs: Any) -> list[Any]:
    prompts = [inputs, inputs]

    def predict(answers: list[list[int]]) -> Any:
        return lambda: code.predicted_hits(prompts, 2, answers)

    refused = [refusal(predict([inputs] * count), lambda: prompts) for count in (0, 1, 2, 3)]
    return [refused, list(code.predicted_hits([], 4)), list(code.predicted_hits([], 4, []))]
