"""Probes of the small course. Grading finds them where `small_course.probes_of` is patched in."""

from typing import Any

import numpy as np

from autograder.probe import Probe, probe


def nothing(random: np.random.Generator) -> None:
    return None


def numbers(random: np.random.Generator) -> list[int]:
    return [*range(10, 100), int(random.integers(1000))]


@probe(title="Twice three", exercise="week04-double", inputs=nothing, message="It is six.")
def double_of_three(code: Any, inputs: Any) -> int:
    return code.double(3)


@probe(
    title="Twice any number",
    exercise="week04-double",
    inputs=numbers,
    trials=3,
    message="It doubles every number.",
)
def double_of_any(code: Any, inputs: Any) -> list[int]:
    return [code.double(number) for number in inputs]


@probe(title="Three times three", exercise="week04-square", inputs=nothing, message="It is nine.")
def square_of_three(code: Any, inputs: Any) -> int:
    return code.square(3)


@probe(
    title="The square of any number",
    exercise="week04-square",
    inputs=numbers,
    message="It squares every number.",
)
def square_of_any(code: Any, inputs: Any) -> list[int]:
    return [code.square(number) for number in inputs]


def probes_of(exercise: str) -> list[Probe]:
    """In place of `autograder.probe.probes_of`."""
    found = [double_of_three, double_of_any, square_of_three, square_of_any]
    return [one for one in found if one.exercise == exercise]
