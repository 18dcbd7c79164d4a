"""The engines' own classes, asked again, say what the chapters replay."""

import pytest

from inferlab.lab import upstream_answer
from inferlab.lab.upstream import ask, questions

pytestmark = [pytest.mark.engines, pytest.mark.slow]


def test_the_engines_still_give_the_recorded_answers() -> None:
    known = questions()
    now = ask(list(known.values()))
    different = [name for name, answer in zip(known, now) if answer != upstream_answer(name)[1]]
    assert different == [], "Read why, then `python -m inferlab.lab upstream --record`."
