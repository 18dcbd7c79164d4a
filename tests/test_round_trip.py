"""Week 4 through nbgrader's own exchange: released, fetched, handed in, graded, given back."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder.course import run_nbgrader
from autograder.grade import Assignment, grade_week
from autograder.grade_table import Row, write_table
from autograder.gradebook import read_scores
from autograder.probe import load
from autograder.sandbox.isolator import BubblewrapIsolator
from inferlab.publish.leaks import leaks
from tests.release_fixture import (
    COURSE,
    NOTEBOOK,
    REPOSITORY,
    WEEK,
    fresh_copy,
    reference_solutions,
    released_bundle,
    solve,
)

pytestmark = pytest.mark.slow
NAMED = "--course=inference-engineering"
POINTS = {
    "fragmentation": 5,
    "free-queue": 6,
    "block-pool": 9,
    "allocate-slots": 7,
    "paged-attention": 8,
    "paged-kernel": 5,
}
# One line of `admit_paged` that goes wrong: the last block of a sequence is not counted.
MISTAKE = ("-(-length // block_size)", "length // block_size")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course directory with week 4 released, and nobody graded yet."""
    released_bundle()
    made = tmp_path_factory.mktemp("round-trip") / "course"
    shutil.copytree(COURSE, made)
    return made


def hand_in(course: Path, student: str, solutions: dict[str, str]) -> None:
    """Fetch the assignment through the exchange, fill in `solutions`, and hand it in."""
    exchange = f"--Exchange.root={course.parent / 'exchange'}"
    cache = f"--Exchange.cache={course.parent / 'cache' / student}"
    home = course.parent / "homes" / student
    home.mkdir(parents=True)
    who = f"--CourseDirectory.student_id={student}"
    run_nbgrader(home, "fetch_assignment", WEEK, NAMED, exchange, cache, who)
    if solutions:
        solve(home / WEEK / NOTEBOOK, solutions)
    run_nbgrader(home, "submit", WEEK, NAMED, exchange, cache, who)


@pytest.fixture(scope="module")
def rows(course: Path) -> dict[str, Row]:
    """What became of three students: one hands in the reference, one nothing, one a mistake."""
    exchange_root = course.parent / "exchange"
    exchange_root.mkdir()
    exchange_root.chmod(0o777)
    exchange = f"--Exchange.root={exchange_root}"
    run_nbgrader(course, "release_assignment", WEEK, exchange)
    reference = reference_solutions()
    mistaken = dict(reference)
    assert MISTAKE[0] in mistaken["week04-fragmentation"]
    mistaken["week04-fragmentation"] = mistaken["week04-fragmentation"].replace(*MISTAKE)
    hand_in(course, "reference", reference)
    hand_in(course, "untouched", {})
    hand_in(course, "mistaken", mistaken)
    # On one machine all three have the same owner; on a hub each is owned by its student.
    run_nbgrader(course, "collect", WEEK, exchange, "--ExchangeCollect.check_owner=False")
    assignment = Assignment(course, WEEK, BubblewrapIsolator())
    graded = grade_week(assignment, course / "submitted", lambda done, total: None, jobs=2)
    return {row.student: row for row in graded}


def test_the_reference_earns_all_points_and_an_untouched_notebook_none(
    rows: dict[str, Row],
) -> None:
    assert set(rows) == {"reference", "untouched", "mistaken"}
    assert {row.status for row in rows.values()} == {"graded"}
    assert rows["reference"].exercises == POINTS
    assert sum(POINTS.values()) == rows["reference"].exercise_points == 40
    assert rows["untouched"].exercises == dict.fromkeys(POINTS, 0)


def test_a_mistake_costs_its_own_exercise_a_part_and_the_others_nothing(
    rows: dict[str, Row],
) -> None:
    got = rows["mistaken"].exercises
    assert 0 < got["fragmentation"] < POINTS["fragmentation"]
    assert {name: got[name] for name in POINTS if name != "fragmentation"} == {
        name: points for name, points in POINTS.items() if name != "fragmentation"
    }


def test_plain_nbgrader_with_our_configuration_gives_the_same_marks(
    course: Path, rows: dict[str, Row], tmp_path: Path
) -> None:
    """The same class, collected by nbgrader and never seen by `make grade`."""
    fresh = tmp_path / "course"
    unseen = ("autograded", "examined", "graded", "repaired", "feedback", "gradebook.db")
    shutil.copytree(course, fresh, ignore=shutil.ignore_patterns(*unseen))
    run_nbgrader(fresh, "generate_assignment", WEEK, "--force", "--create")
    # As some front ends save it, and as nobody can tell whose answer is which.
    for student, unclear in (("stripped", False), ("unclear", True)):
        notebook = nbformat.read(course / "submitted" / "reference" / WEEK / NOTEBOOK, as_version=4)
        for cell in notebook.cells:
            cell.metadata = nbformat.from_dict({})
            if unclear and cell.source.startswith("# exercise: week04-block-pool"):
                cell.source += "\n# exercise: week04-free-queue\n"
        target = fresh / "submitted" / student / WEEK / NOTEBOOK
        target.parent.mkdir(parents=True)
        nbformat.write(notebook, target)
    with pytest.raises(RuntimeError, match="for student 'unclear'"):
        run_nbgrader(fresh, "autograde", WEEK, "--create")
    assert len(list((fresh / "examined" / WEEK).iterdir())) == len(rows)
    expected = {student: row.exercises for student, row in rows.items()} | {"stripped": POINTS}
    for student, exercises in expected.items():
        stem = NOTEBOOK.removesuffix(".ipynb")
        assert read_scores(fresh, WEEK, stem, student).exercises == exercises
    assert not (fresh / "autograded" / "unclear").exists(), "no silent 0"


def test_marks_by_hand_make_a_hundred(course: Path, rows: dict[str, Row]) -> None:
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        notebook = gradebook.find_submission_notebook(
            NOTEBOOK.removesuffix(".ipynb"), WEEK, "reference"
        )
        for grade in notebook.grades:
            if not grade.name.endswith("-probes"):
                grade.manual_score = grade.max_score
        gradebook.db.commit()
        submission = gradebook.find_submission(WEEK, "reference")
        assert (submission.score, submission.max_score) == (100, 100)


def test_feedback_shows_what_was_not_passed_and_no_probe(
    course: Path, rows: dict[str, Row]
) -> None:
    run_nbgrader(course, "generate_feedback", WEEK, "--force")
    pages = {
        student: next((course / "feedback" / student / WEEK).glob("*.html")).read_text()
        for student in rows
    }
    assert "not passed:" in pages["mistaken"]
    assert "not passed:" not in pages["reference"]
    for page in pages.values():
        assert "HIDDEN TESTS" not in page
        assert not [probe.name for probe in load(WEEK) if f"def {probe.name}" in page]
        assert "__array__" not in page, "no input and no expected value"


def test_the_export_and_the_table_hold_every_student(
    course: Path, rows: dict[str, Row], tmp_path: Path
) -> None:
    run_nbgrader(course, "export", "--to", str(tmp_path / "export.csv"))
    exported = list(csv.DictReader((tmp_path / "export.csv").open()))
    assert {row["student_id"] for row in exported} == set(rows)
    write_table(list(rows.values()), tmp_path / "table.csv")
    table = {row["student"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert float(table["reference"]["exercises"]) == 40
    assert float(table["untouched"]["exercises"]) == 0


def test_the_bundle_and_the_site_hold_no_solution_and_no_probe() -> None:
    """But for chapters that complete the same class: they show this week's members of it.

    They are no secret, as the package is open to read; the guide for instructors says so.
    """
    assert leaks(released_bundle(), REPOSITORY, WEEK) == []
    site = REPOSITORY / "build" / "site" / "_build" / "html"
    assert site.exists(), "The site is not built: run `make book` first."
    pages = {f"notebooks/{path.stem}.html" for path in (REPOSITORY / "notebooks").glob("*.md")}
    own = f"notebooks/{Path(NOTEBOOK).stem}.html"
    assert own in pages
    found = leaks(site, REPOSITORY, WEEK)
    assert [leak for leak in found if leak.partition(":")[0] not in pages - {own}] == []


def in_bundle(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a student does: in the bundle, with nothing of the repository in reach."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_student_validates_before_handing_in(tmp_path: Path) -> None:
    folder = fresh_copy(tmp_path / "bundle")
    before = in_bundle(folder, "-m", "inferlab.handin", NOTEBOOK)
    assert before.returncode == 1, before.stderr
    assert before.stdout.count("not finished") == 6
    solve(folder / NOTEBOOK, reference_solutions())
    solved = (folder / NOTEBOOK).read_bytes()
    after = in_bundle(folder, "-m", "inferlab.handin", NOTEBOOK)
    assert after.returncode == 0, after.stdout + after.stderr
    assert after.stdout.count("passes") == 6
    assert (folder / NOTEBOOK).read_bytes() == solved


def test_experiments_can_be_planned_from_the_bundle(tmp_path: Path) -> None:
    folder = fresh_copy(tmp_path / "bundle")
    shown = in_bundle(folder, "-m", "inferlab.lab", "show", "week04/kv-pool", "--profile", "cpu")
    assert shown.returncode == 0, shown.stderr
    assert "inferlab_checkpoints" in shown.stdout


def test_the_notebook_in_the_bundle_is_the_one_nbgrader_made(course: Path) -> None:
    ours = nbformat.read(released_bundle() / NOTEBOOK, as_version=4)
    theirs = nbformat.read(course / "release" / WEEK / NOTEBOOK, as_version=4)
    assert ours == theirs
    manifest = json.loads((released_bundle() / "bundle.json").read_text())
    assert [exercise["name"].removeprefix("week04-") for exercise in manifest["exercises"]] == list(
        POINTS
    )
