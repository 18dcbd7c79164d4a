"""The engines' own classes, asked again, say what the chapters replay."""

import runpy
from typing import Any

import pytest

from inferlab.lab import upstream_answer
from inferlab.lab.upstream import SCRIPTS, ask, questions

pytestmark = [pytest.mark.engines, pytest.mark.slow]
# Names of the fields of an answer in which moments have a say.
TIMED: dict[str, tuple[str, ...]] = runpy.run_path(str(SCRIPTS / "questions.py"))["TIMED"]


def without(fields: tuple[str, ...], answer: Any) -> Any:
    """The answer with these fields left out, wherever they are."""
    if isinstance(answer, dict):
        return {name: without(fields, part) for name, part in answer.items() if name not in fields}
    if isinstance(answer, list):
        return [without(fields, part) for part in answer]
    return answer


def test_the_engines_still_give_the_recorded_answers() -> None:
    known = questions()
    assert set(TIMED) <= set(known)
    now = ask(list(known.values()))
    different = []
    for name, answer in zip(known, now, strict=True):
        fields = TIMED.get(name, ())
        if without(fields, answer) != without(fields, upstream_answer(name)[1]):
            different.append(name)
    assert different == [], "Read why, then `python -m inferlab.lab upstream --record`."


def test_only_the_named_fields_are_left_out() -> None:
    answer = {"first": {"found": [1, 2], "text": "a"}, "rest": [{"found": 3, "text": "b"}]}
    assert without(("found",), answer) == {"first": {"text": "a"}, "rest": [{"text": "b"}]}
    assert without((), answer) == answer
