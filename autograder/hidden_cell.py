"""The nbgrader cell that gives marks for an exercise: its probes, their inputs, what they must see.

Used where an instructor runs plain `nbgrader autograde` on a class that he trusts: the answers of
the reference stand in the cell, computed for fixed seeds.
"""

import hashlib
import linecache
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from autograder.observation import decode, equal
from autograder.probe import Probe, probes_of
from autograder.probe_source import needed_of, observed, source_of
from inferlab.publish.exercise import Exercise
from inferlab.publish.expand import expand

SEED = 4

CELL = """\
# probes: {name}
# Your code is observed on inputs that are not shown. Each line is worth as much as the others:
{titles}
### BEGIN HIDDEN TESTS
_probes = {{}}
exec(r'''
{source}
''', _probes)
_probes["score"](globals(), _probes["CASES"], {points})
### END HIDDEN TESTS
"""


class Case(NamedTuple):
    """A probe with the inputs of its trials and what it must see, both as encoded text."""

    observe: Callable[[Any, Any], Any]
    title: str
    message: str
    tolerance: float
    trials: list[tuple[str, str]]


def hidden_cell(root: Path, exercise: Exercise, seed: int = SEED) -> str:
    """Source of the cell; its value is the marks as a float from 0 to `exercise.points`.

    Raises ValueError when the exercise has no probe or cannot be expanded.
    """
    probes = probes_of(exercise.name)
    code = reference(root, exercise)
    observing = needed_of("autograder.probe_source", "observed")
    scoring = needed_of(__name__, "score", known=["observed"])
    copied = source_of(probes, [*observing, *scoring])
    source = "\n\n\n".join([copied, _cases(probes, code, seed)])
    if "'''" in source or "HIDDEN TESTS" in source:
        raise ValueError(
            f"The probes of {exercise.name} hold ''' or nbgrader's own marker; write them without."
        )
    titles = "\n".join(f"# - {probe.title}" for probe in probes)
    return CELL.format(name=exercise.name, titles=titles, source=source, points=exercise.points)


def reference(root: Path, exercise: Exercise) -> SimpleNamespace:
    """The names that the exercise cell defines when it is solved."""
    return SimpleNamespace(**run_cell(expand(root, exercise, solution=True), {}))


def run_cell(source: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a cell's source in `names`, as a notebook does, and return `names`.

    Triton reads the source of a kernel again, so it has to be found under the file's name. Kernels
    are interpreted, as they are in a box; Triton asks for that when it is imported.
    """
    os.environ.setdefault("TRITON_INTERPRET", "1")
    file = f"<cell {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names.setdefault("__name__", "__main__")
    exec(compile(source, file, "exec"), names)
    return names


def cases_of(probes: list[Probe], code: SimpleNamespace, seed: int) -> list[Case]:
    """The probes on the inputs of `seed`, with what they see of `code`."""
    return [
        Case(
            probe.observe,
            probe.title,
            probe.message,
            probe.tolerance,
            [
                (inputs, observed(probe.observe, code, inputs))
                for inputs in probe.encoded_inputs(seed)
            ],
        )
        for probe in probes
    ]


def score(names: dict[str, Any], cases: list[Case], points: float) -> float:
    """Print a line for each case, and return the share of `points` that those passed are worth.

    nbgrader gives full marks for a value that is negative or no number; this is neither.
    """
    code = SimpleNamespace(**names)
    passed = 0
    for observe, title, message, tolerance, trials in cases:
        if sees_as_expected(observe, code, trials, tolerance):
            passed += 1
            print(f"passed: {title}")
        else:
            print(f"not passed: {title}. {message}")
    return round(points * passed / len(cases), 2)


def sees_as_expected(
    observe: Callable[[Any, Any], Any],
    code: SimpleNamespace,
    trials: list[tuple[str, str]],
    tolerance: float,
) -> bool:
    """Whether the observation is as expected in every trial; an exception counts as no.

    An interrupt is passed on: it is how nbgrader ends a cell that takes too long.
    """
    try:
        return all(
            equal(decode(expected), decode(observed(observe, code, inputs)), tolerance)
            for inputs, expected in trials
        )
    except KeyboardInterrupt:
        raise
    except BaseException:
        return False


def _cases(probes: list[Probe], code: SimpleNamespace, seed: int) -> str:
    lines = ["CASES = ["]
    for probe, case in zip(probes, cases_of(probes, code, seed)):
        lines.append(f"    ({probe.name}, {case.title!r}, {case.message!r}, {case.tolerance}, [")
        lines += [f"        {trial!r}," for trial in case.trials]
        lines.append("    ]),")
    return "\n".join([*lines, "]"])
