"""Where a chapter asks for a written answer: the cell's place, and what an instructor reads there.

In the text notebook the place is an empty directive, `:::{answer} week04-analysis-1`. A student's
notebook gets an answer cell, the book nothing, and the instructor's book the model answer, the
rubric and the marked samples.
"""

import re
from collections.abc import Mapping
from typing import Protocol

ANSWER = re.compile(r"^:::\{answer\} (week\d\d-[a-z0-9-]+)\n:::[ ]*$", re.MULTILINE)


class Question(Protocol):
    """What publishing needs to know of an answer's rubric."""

    @property
    def points(self) -> int:
        """Marks for the whole answer."""

    @property
    def prompt(self) -> str:
        """What the answer cell asks for."""

    @property
    def model_answer(self) -> str:
        """Markdown for the instructor."""

    @property
    def is_written(self) -> bool:
        """Whether the student writes into the cell; otherwise it only holds marks."""

    def for_instructors(self) -> str:
        """Markdown with model answer, rubric and samples."""


Questions = Mapping[str, Question]


def question(questions: Questions, name: str) -> Question:
    """The question of that name; raises ValueError when it has no rubric."""
    if name not in questions:
        known = ", ".join(sorted(questions)) or "none"
        raise ValueError(f"The answer cell {name!r} has no rubric; the rubrics are: {known}.")
    return questions[name]


def without_answers(markdown: str) -> str:
    """The page as its readers see it."""
    return ANSWER.sub("", markdown)


def with_answers(markdown: str, questions: Questions) -> str:
    """The page as instructors see it; raises ValueError for an answer without a rubric."""
    return ANSWER.sub(lambda match: _dropdown(match[1], questions), markdown)


def _dropdown(name: str, questions: Questions) -> str:
    found = question(questions, name)
    head = f"::::{{dropdown}} For instructors: {name} ({found.points} points)"
    return f"{head}\n{found.for_instructors()}\n::::"
