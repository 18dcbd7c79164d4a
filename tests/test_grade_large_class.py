"""Grading many: killed and taken up again, and examined by the tasks of a SLURM array."""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from autograder.grade import Assignment, grade_week
from autograder.graded_exercises import graded_exercises
from autograder.practice_course import (
    EXERCISE,
    WEEK,
    answered,
    fresh_notebook,
    hand_in,
    practice_course,
)
from autograder.sandbox.isolator import BubblewrapIsolator, Isolator
from autograder.sandbox.isolators import ISOLATORS
from autograder.sandbox.task import Answer, Task
from tests.slurm_fixture import single_node_slurm

REPOSITORY = Path(__file__).parents[1]
# What the grader that gets killed runs: it notes what it examined, and prints the points.
GRADER = """
import json, sys
from pathlib import Path
from autograder.grade import Assignment, grade_week
from tests.test_grade_large_class import Noting
course, folder = Path(sys.argv[1]), Path(sys.argv[2])
assignment = Assignment(course, "week04", Noting(course / "examinations"))
rows = grade_week(assignment, folder, lambda done, total: None, jobs=2)
print(json.dumps({row.student: [row.status, row.exercise_points] for row in rows}))
"""


class Noting(BubblewrapIsolator):
    """Writes down when an examination begins and ends."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def examine(self, task: Task) -> Answer:
        cell = task.exercises[0].cells[-1].splitlines()[-1]
        self.note(f"begins {cell}")
        answer = super().examine(task)
        self.note(f"ends {cell}")
        return answer

    def note(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return practice_course(tmp_path_factory.mktemp("practice"))


def course_with_class(practice: Path, folder: Path, students: int) -> tuple[Path, Path]:
    """A fresh course, and submissions that differ: every third is right, the others in part."""
    course, submissions = folder / "course", folder / "submissions"
    shutil.copytree(practice, course)
    (exercise,) = graded_exercises(course, WEEK)
    half = exercise.solution.replace("-(-length // block_size)", "length // block_size")
    assert half != exercise.solution
    for number in range(students):
        source = exercise.solution if number % 3 == 0 else half
        cells = {EXERCISE: f"{source}\n# student {number}"}
        hand_in(course, submissions, f"s{number:03d}", answered(fresh_notebook(course), cells))
    return course, submissions


def graded_in_one_go(course: Path, submissions: Path) -> dict[str, list[object]]:
    assignment = Assignment(course, WEEK, BubblewrapIsolator())
    rows = grade_week(assignment, submissions, lambda done, total: None, jobs=2)
    return {row.student: [row.status, row.exercise_points] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("students", "kills"), [(30, 2), pytest.param(300, 10, marks=pytest.mark.full)]
)
def test_a_grader_that_is_killed_grades_everybody_once(
    students: int, kills: int, practice: Path, tmp_path: Path
) -> None:
    undisturbed = graded_in_one_go(*course_with_class(practice, tmp_path / "one", students))
    assert Counter(status for status, _ in undisturbed.values()) == {"graded": students}
    assert {points for _, points in undisturbed.values()} == {5.0, 2.14}
    course, submissions = course_with_class(practice, tmp_path / "killed", students)
    log = course / "examinations"
    log.touch()
    chance = random.Random(students)
    targets = sorted(chance.sample(range(1, 2 * students - 2), kills))  # lines of the log
    command = [sys.executable, "-c", GRADER, str(course), str(submissions)]
    for target in targets:
        grader = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        wait_for_lines(log, target, grader)
        time.sleep(chance.random() / 4)
        grader.send_signal(signal.SIGKILL)
        assert grader.wait() == -signal.SIGKILL, "it was still grading"
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == undisturbed
    ended = Counter(line for line in log.read_text().splitlines() if line.startswith("ends"))
    assert len(ended) == students
    # Two are examined at a time, and of each the verdict is on the disk an instant later.
    assert sum(ended.values()) <= students + 2 * kills
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        graded = Counter(one.student.id for one in gradebook.assignment_submissions(WEEK))
    assert graded == dict.fromkeys(undisturbed, 1)


def wait_for_lines(log: Path, count: int, grader: subprocess.Popen[bytes]) -> None:
    """Return once `log` has `count` lines. What was killed may have begun something twice."""
    while len(log.read_text().splitlines()) < count:
        assert grader.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


class Refusing(Isolator):
    """Grading itself has nothing left to examine."""

    def require(self) -> None:
        pass

    def examine(self, task: Task) -> Answer:
        raise AssertionError("This had been examined.")


@pytest.mark.slow
def test_a_slurm_array_examines_and_grading_takes_its_verdicts(
    practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograder import grade_on_slurm

    monkeypatch.setattr(grade_on_slurm, "MOST_PER_TASK", 2)
    course, submissions = course_with_class(practice, tmp_path, 5)
    (submissions / "broken.ipynb").write_text("{")
    said: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        single_node_slurm(Path(folder)) as variables,
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        grade_on_slurm.examine_on_slurm(
            Assignment(course, WEEK, BubblewrapIsolator()), submissions, said.append, poll_s=0.1
        )
    assert said[0] == "3 of 3 tasks are waiting or running"
    assert len(list((course / "examined" / WEEK).iterdir())) == 5
    assignment = Assignment(course, WEEK, Refusing())
    with monkeypatch.context() as patch:
        patch.setitem(ISOLATORS, "bubblewrap", Refusing)
        rows = grade_week(assignment, submissions, lambda done, total: None)
    assert Counter(row.status for row in rows) == {"graded": 5, "refused": 1}
    assert {row.exercise_points for row in rows if row.status == "graded"} == {5.0, 2.14}
