"""The nbgrader cell that gives marks for an exercise: its probes, their inputs, what they must see.

Used where an instructor runs plain `nbgrader autograde` on a class that he trusts: the answers of
the reference stand in the cell, computed for fixed seeds.
"""

import ast
import hashlib
import linecache
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from autograder.observation import decode, encode, equal
from autograder.probe import Probe, probes_of
from inferlab.publish.exercise import Exercise
from inferlab.publish.expand import expand
from inferlab.publish.module import Binding, Module

AUTOGRADER = Path(__file__).parents[1]
SEED = 4
OBSERVATION = "decode encode equal refusal refuses".split()

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
    source = "\n\n\n".join([_copied(probes), _cases(probes, code, seed)])
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

    Triton reads the source of a kernel again, so it has to be found under the file's name.
    """
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


def observed(observe: Callable[[Any, Any], Any], code: SimpleNamespace, inputs: str) -> str:
    """What the probe sees of `code`, as text; whatever is printed meanwhile is dropped.

    nbgrader gives no marks for a cell that writes to standard error, and a warning would.
    """
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return encode(observe(code, decode(inputs)))


def _copied(probes: list[Probe]) -> str:
    """Source of the probes and of all they use; it runs where no `autograder` is installed."""
    observation = Module.read(AUTOGRADER, "autograder.observation")
    own = Module.read(AUTOGRADER, "autograder.hidden_cell")
    week = Module.read(AUTOGRADER, probes[0].observe.__module__)
    names = [probe.name for probe in probes]
    decorators = {"probe", *(probe.inputs.__name__ for probe in probes)}
    needed = [
        *observation.needed_by(OBSERVATION, set()),
        *own.needed_by(["score"], set(OBSERVATION)),
        *week.needed_by(names, {*OBSERVATION, *decorators}),
    ]
    imports = [b.text for b in needed if isinstance(b.node, ast.Import | ast.ImportFrom)]
    definitions = [
        _undecorated(b) if b.name in names else b.text for b in needed if b.text not in imports
    ]
    return "\n\n\n".join(["\n".join(dict.fromkeys(imports)), *dict.fromkeys(definitions)])


def _undecorated(binding: Binding) -> str:
    """Text of a probe's function without the `@probe(…)` above it."""
    node = binding.node
    assert isinstance(node, ast.FunctionDef)
    height = (node.end_lineno or node.lineno) - node.lineno + 1
    return "\n".join(binding.text.splitlines()[-height:])


def _cases(probes: list[Probe], code: SimpleNamespace, seed: int) -> str:
    lines = ["CASES = ["]
    for probe, case in zip(probes, cases_of(probes, code, seed)):
        lines.append(f"    ({probe.name}, {case.title!r}, {case.message!r}, {case.tolerance}, [")
        lines += [f"        {trial!r}," for trial in case.trials]
        lines.append("    ]),")
    return "\n".join([*lines, "]"])
