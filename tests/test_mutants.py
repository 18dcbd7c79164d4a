"""Mutants keep the probes honest: wrong solutions that pass the visible test, and are caught."""

import io
import sys
from contextlib import redirect_stdout
from functools import cache
from types import SimpleNamespace

import pytest

from autograder.hidden_cell import SEED, cases_of, reference, run_cell, sees_as_expected
from autograder.mutants import Mutant, load_mutants
from autograder.probe import probes_of
from inferlab.publish import expand
from tests.chapters import EXERCISES, PAGES, week_of
from tests.site_fixture import REPOSITORY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # mutants overflow
]

MUTANTS = [mutant for week in PAGES for mutant in load_mutants(week)]
CELLS = [cell for page in PAGES.values() for cell in page.cells if cell.kind == "code"]
TESTS = {
    cell.source.partition("\n")[0].removeprefix("# test: "): cell.source
    for cell in CELLS
    if cell.source.startswith("# test: ")
}


def setups():
    """The setup cells above each exercise and below the one before it, in the same chapter."""
    found = {}
    for page in PAGES.values():
        waiting = []
        for cell in page.cells:
            if "setup" in cell.metadata.get("tags", []):
                waiting.append(cell.source)
            elif cell.source.startswith("# exercise: "):
                found[cell.source.partition("\n")[0].removeprefix("# exercise: ")] = waiting
                waiting = []
    return found


SETUPS = setups()


def nothing(*arguments, **options):
    """In place of what a notebook shows, and of `install`, which would change the package."""


@cache
def names_before(exercise):
    """The notebook's variables when the reader comes to the exercise, all earlier ones solved."""
    chapter = [name for name in EXERCISES if week_of(name) == week_of(exercise)]
    earlier = chapter[: chapter.index(exercise)]
    names = {}
    if earlier:
        names = visible_test(earlier[-1], expand(REPOSITORY, EXERCISES[earlier[-1]], solution=True))
    for setup in SETUPS[exercise]:
        run_cell(setup, names)
    return names | {"say": nothing, "show": nothing, "install": nothing}


def visible_test(exercise, source):
    """Run `source` as the exercise's cell, then the visible test; returns the variables."""
    names = dict(names_before(exercise))
    with redirect_stdout(io.StringIO()):
        run_cell(source, names)
        return run_cell(TESTS[exercise], names)


@cache
def cases(exercise):
    return cases_of(probes_of(exercise), reference(REPOSITORY, EXERCISES[exercise]), SEED)


@cache
def caught_by(number):
    """Names of the probes that the mutant does not pass."""
    mutant = MUTANTS[number]
    source = mutant.of(expand(REPOSITORY, EXERCISES[mutant.exercise], solution=True))
    code = SimpleNamespace(**visible_test(mutant.exercise, source))
    return {
        case.observe.__name__
        for case in cases(mutant.exercise)
        if not sees_as_expected(case.observe, code, case.trials, case.tolerance)
    }


def test_a_visible_test_that_fails_is_noticed():
    name = "week04-free-queue"
    with pytest.raises(NotImplementedError):
        visible_test(name, expand(REPOSITORY, EXERCISES[name], solution=False))


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_has_five_mutants(name):
    assert sum(mutant.exercise == name for mutant in MUTANTS) >= 5


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            number,
            id=f"{mutant.exercise}-{mutant.why}",
            marks=[pytest.mark.slow] if "kernel" in mutant.exercise else [],
        )
        for number, mutant in enumerate(MUTANTS)
    ],
)
def test_a_mutant_passes_the_visible_test_and_some_but_not_all_probes(number):
    assert 0 < len(caught_by(number)) < len(probes_of(MUTANTS[number].exercise))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXERCISES)
def test_every_probe_catches_a_mutant(name):
    numbers = [number for number, mutant in enumerate(MUTANTS) if mutant.exercise == name]
    caught = set().union(*(caught_by(number) for number in numbers))
    assert {probe.name for probe in probes_of(name)} - caught == set()


def test_a_mutant_whose_line_is_not_in_the_reference_is_refused():
    source = expand(REPOSITORY, EXERCISES["week04-free-queue"], solution=True)
    mutant = {"exercise": "week04-free-queue", "member": "FreeBlockQueue.remove", "why": "Never."}
    for line, count in (("return 3", 0), ("self.num_free_blocks += 1", 0)):
        with pytest.raises(ValueError, match=f"holds the line .* {count} times"):
            Mutant(line=line, becomes="pass", **mutant).of(source)
