"""Grading when the gradebook is locked or the disk is full: it says so, and loses nothing."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from autograder import graded_exercises
from autograder.grade import Assignment, grade_week
from autograder.grade_table import Row
from autograder.sandbox.isolator import BubblewrapIsolator
from tests.small_course import NOTEBOOK, WEEK, make_course, solved, student_notebook
from tests.small_probes import probes_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
STUDENTS = {"ada": "return 2 * x", "ben": "return 0"}
POINTS = {"ada": 9, "ben": 4}
# Runs in a namespace of its own, where the course lies on a disk of a few megabytes. The last line
# that it prints holds, for each run of the command, its exit status and what it said.
ON_A_SMALL_DISK = """
import json, shutil, sys
from pathlib import Path
from click.testing import CliRunner
import autograder.grade as grading
from autograder import graded_exercises
from tests.small_probes import probes_of
root, submissions, spare = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
grading.ROOT, graded_exercises.probes_of = root, probes_of
said = []
filler = root / "filler"
with filler.open("wb") as file:
    file.write(bytes(shutil.disk_usage(root).free - spare))
assert shutil.disk_usage(root).free <= spare
for full in (True, False):
    result = CliRunner().invoke(grading.grade, ["04", submissions])
    said.append([result.exit_code, result.output, repr(result.exception)])
    if full:
        filler.unlink()
table = root / "build" / "grade" / "week04.csv"
print(json.dumps([said, table.read_text()]))
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_course(tmp_path_factory.mktemp("course") / "course")


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    for student, double in STUDENTS.items():
        target = tmp_path / "in" / student / WEEK / NOTEBOOK
        target.parent.mkdir(parents=True)
        nbformat.write(solved(student_notebook(), double=double), target)
    return tmp_path / "in"


def test_a_locked_gradebook_is_named_and_its_submissions_are_graded_later(
    released: Path, submissions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graded_exercises, "probes_of", probes_of)
    course = tmp_path / "course"
    shutil.copytree(released, course)

    def grade() -> list[Row]:
        assignment = Assignment(course, WEEK, BubblewrapIsolator())
        return grade_week(assignment, submissions, lambda done, total: None, jobs=2)

    other = sqlite3.connect(course / "gradebook.db")
    other.execute("BEGIN EXCLUSIVE")
    rows = grade()
    assert [row.status for row in rows] == ["failed", "failed"]
    assert all("database is locked" in " ".join(row.notes) for row in rows), rows
    other.rollback()
    other.close()
    assert {row.student: row.exercise_points for row in grade()} == POINTS


@pytest.mark.parametrize("spare", [0, 150_000])
def test_on_a_full_disk_nothing_is_lost(
    spare: int, released: Path, submissions: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=6m tmpfs {disk} && mkdir {disk}/build "
        f'&& cp -r {released} {disk}/build && exec "$@"'
    )
    python = [sys.executable, "-c", ON_A_SMALL_DISK, str(disk), str(submissions), str(spare)]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *python],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (full, free), table = json.loads(done.stdout.splitlines()[-1])
    assert full[0] not in (0, None), full
    assert "disk" in full[1].lower() or "space" in full[1].lower(), full
    assert "SystemExit" in full[2], full
    assert free[0] == 0, free
    for student, points in POINTS.items():
        (row,) = (line for line in table.splitlines() if line.startswith(student))
        assert f",{points:g}" in row
