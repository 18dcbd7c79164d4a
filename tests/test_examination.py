"""Verdicts: what a submission passes, decided outside the box from what was seen inside."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograder import graded_exercises as graded
from autograder.examination import Examination, Verdict, verdicts
from autograder.probe_source import observations
from autograder.sandbox.isolator import Isolator
from autograder.sandbox.task import Answer, Seen, Task
from tests.small_course import EXERCISES, WEEK, make_course
from tests.small_probes import probes_of


class Reference(Isolator):
    """Sees what the reference would show, and lets the test change it."""

    def __init__(self, change=lambda seen: None):
        self.change = change
        self.tasks: list[Task] = []

    def require(self) -> None:
        pass

    def examine(self, task: Task) -> Answer:
        self.tasks.append(task)
        found = {}
        for exercise in task.exercises:
            names: dict[str, object] = {}
            function, body, _, _ = EXERCISES[exercise.name]
            exec(f"def {function}(x): return {body}", names)
            probes = {probe.name: probe.observe for probe in probes_of(exercise.name)}
            found[exercise.name] = Seen(
                observations=[
                    json.loads(observations(probes[one.name], names, one.inputs))
                    for one in exercise.tasks
                ]
            )
        self.change(found["week04-double"])
        return Answer(exercises=found)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_course(tmp_path_factory.mktemp("course") / "course")


@pytest.fixture
def course(released: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The course, with nothing examined yet."""
    monkeypatch.setattr(graded, "probes_of", probes_of)
    for name in ("source", "release", "packages"):
        (tmp_path / name).symlink_to(released / name)
    return tmp_path


def verdict(course: Path, change) -> Verdict:
    """The verdict on the first exercise when a part of what is seen is changed."""
    found = verdicts(Examination(course, WEEK, {}), Reference(change))
    assert found["week04-square"].passed == [True, True], "one exercise never costs another"
    return found["week04-double"]


def test_what_the_reference_shows_passes(course: Path) -> None:
    found = verdict(course, lambda seen: None)
    assert found == Verdict(passed=[True, True])
    assert found.points(5) == 5


def setting(probe: int, trial: int, text: str | None):
    def change(seen: Seen) -> None:
        seen.observations[probe][trial] = text

    return change


@pytest.mark.parametrize("text", [None, "7", "6.0", '"6"', "true", "NaN", "{", "[6]", "null", ""])
def test_whatever_else_is_seen_fails_its_probe_only(text: str | None, course: Path) -> None:
    assert verdict(course, setting(0, 0, text)).passed == [False, True]


def test_every_trial_counts(course: Path) -> None:
    found = verdict(course, setting(1, 2, "[]"))
    assert found.passed == [True, False]
    assert found.points(5) == 2.5


@pytest.mark.parametrize("observations", [[], [[], []], [["6"], []]])
def test_a_trial_that_was_not_seen_is_not_passed(observations, course: Path) -> None:
    def change(seen: Seen) -> None:
        seen.observations = observations

    assert verdict(course, change).passed == [observations[:1] == [["6"]], False]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("", ""),
        ("NameError", "NameError"),
        ("TimeoutError", "TimeoutError"),
        ("KernelGoneError", "Exception"),
        ("the reference is x + x", "Exception"),
        ("print", "Exception"),
        ("__doc__", "Exception"),
    ],
)
def test_of_an_error_only_pythons_own_names_are_shown(said, shown, course: Path) -> None:
    def change(seen: Seen) -> None:
        seen.error, seen.line = said, 10**9

    found = verdict(course, change)
    assert found.error == shown
    assert found.line <= 10_000


def test_the_same_cells_are_examined_once(course: Path) -> None:
    isolator = Reference()
    for cell in ("a", "a", "b"):
        verdicts(Examination(course, WEEK, {"week04-double": cell}), isolator)
    assert [task.exercises[0].cells[-1] for task in isolator.tasks] == ["a", "b"]


def test_other_cells_are_asked_something_else(course: Path) -> None:
    isolator = Reference()
    for cell in ("a", "b"):
        verdicts(Examination(course, WEEK, {"week04-double": cell}), isolator)
    first, second = (task.exercises[0].tasks[1].inputs for task in isolator.tasks)
    assert not set(first) & set(second)


def test_what_runs_is_the_instructors_setup_and_the_students_cell(course: Path) -> None:
    isolator = Reference()
    verdicts(
        Examination(course, WEEK, {"week04-double": "mine", "week04-setup": "not mine"}), isolator
    )
    (task,) = isolator.tasks
    assert [exercise.cells for exercise in task.exercises] == [
        ["import math", "mine"],
        ["import math", ""],
    ]
    assert "secret" not in task.model_dump_json()


def test_a_week_without_a_release_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="week05 has no release"):
        verdicts(Examination(tmp_path, "week05", {}), Reference())


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 40))
def test_points_are_the_share_of_the_probes(passed: list[bool], most: int) -> None:
    points = Verdict(passed=passed).points(most)
    assert 0 <= points <= most
    assert (points == most) == all(passed)
    assert (points == 0) == (not any(passed))
