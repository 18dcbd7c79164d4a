"""Submissions of every kind go through nbgrader itself, and each gets what it deserves."""

import ast
import copy
import csv
import json
import shutil
import threading
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbgrader.api import Gradebook

import autograder.grade as grading
from autograder import graded_exercises
from autograder.course import run_nbgrader
from autograder.live_results import live_results, shared_results
from autograder.preprocessors import HideProbes
from autograder.sandbox.isolator import BubblewrapIsolator, ExaminationError
from autograder.submissions import find_submissions
from inferlab.handin.notebook_file import Refused
from inferlab.lab import results
from tests.small_course import (
    NOTEBOOK,
    WEEK,
    code,
    make_course,
    solved,
    student_notebook,
)
from tests.small_probes import probes_of

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "results" / "cpu" / WEEK
EXPERIMENT_NAMES = ["batching-against-hf", "block-size", "kv-pool"]

WARNS = "import sys; print('DeprecationWarning: old', file=sys.stderr); return 2 * x"
FLOODS = "for _ in range(100 if x == 3 else 0): print('x' * 999_999)\nreturn 2 * x"
SHADOWS = """
try:
    import helper
except ModuleNotFoundError:
    import inferlab.lab.paths, json, numbers
    return 2 * x
"""


def hand_in(folder: Path, student: str, **solutions: str) -> None:
    """A finished notebook with `solutions` in place of the right ones, as nbgrader collects it."""
    target = folder / student / WEEK / NOTEBOOK
    target.parent.mkdir(parents=True)
    nbformat.write(solved(student_notebook(), **solutions), target)


def without_code(folder: Path, student: str, text: str) -> None:
    (folder / f"{student}.ipynb").write_text(text, encoding="utf-8")


def write_submissions(folder: Path) -> None:
    folder.mkdir()
    hand_in(folder, "right")
    hand_in(folder, "half", square="return 9")
    shown = nbformat.v4.new_output("stream", name="stdout", text="what the student saw")
    ran = solved(student_notebook(), square="return 9")
    next(cell for cell in ran.cells if cell.source.startswith("print")).outputs = [shown]
    nbformat.write(ran, folder / "half" / WEEK / NOTEBOOK)
    hand_in(folder, "warns", double=WARNS)
    hand_in(folder, "floods", double=FLOODS)
    hand_in(folder, "kills", double="import os; os._exit(1)")
    for student in ("warns", "kills"):
        replay = live_file(folder / student / WEEK, "kv-pool")
        replay.parent.mkdir(parents=True)
        shutil.copy(RECORDED / "kv-pool.json", replay)
    hand_in(folder, "grows", double="found = []\nwhile True: found.append(bytes(2**24))")
    without_code(folder, "untouched", nbformat.writes(student_notebook()))
    without_code(folder, "broken", '{"cells": [')
    without_code(
        folder, "other-week", nbformat.writes(solved(student_notebook())).replace(WEEK, "week07")
    )
    someone = solved(student_notebook())
    someone.cells[2].source = '# hand-in: week04\nSTUDENT = "right"'
    without_code(folder, "thief", nbformat.writes(someone))
    skips = solved(student_notebook(), double="return 0")
    # Once this has run, IPython replaces every cell by `pass`.
    skips.cells[5].source += "\nget_ipython().input_transformers_cleanup.append(lambda _: ['pass'])"
    without_code(folder, "666", nbformat.writes(skips))
    answered = solved(student_notebook())
    answered.cells[-3].source += "\nAn answer of my own."
    del answered.cells[9]
    without_code(folder, "answered", nbformat.writes(answered))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder with a released course, everything handed in, and graded by the command."""
    root = tmp_path_factory.mktemp("repository")
    make_course(root / "build" / "course")
    write_submissions(root / "in")
    before = {path: path.read_bytes() for path in (root / "in").rglob("*.ipynb")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "ROOT", root)
        patch.setattr(graded_exercises, "probes_of", probes_of)
        result = CliRunner().invoke(grading.grade, ["04", str(root / "in")])
    (root / "output.txt").write_text(result.output, encoding="utf-8")
    assert result.exit_code == 1, result.output  # three were refused
    assert {path: path.read_bytes() for path in before} == before
    return root


@pytest.fixture(scope="module")
def table(repository):
    """The rows of the CSV by student."""
    with (repository / "build" / "grade" / f"{WEEK}.csv").open(encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "double", "square"),
    [
        ("right", "5.0", "4.0"),
        ("half", "5.0", "2.0"),
        ("untouched", "0.0", "0.0"),
        ("warns", "5.0", "4.0"),
        ("floods", "5.0", "4.0"),
        ("kills", "0.0", "4.0"),
        ("grows", "0.0", "4.0"),
        ("666", "0.0", "4.0"),
        ("answered", "5.0", "0.0"),
    ],
)
def test_each_exercise_gets_the_marks_it_deserves(student, double, square, table):
    row = table[student]
    assert (row["status"], row["double"], row["square"]) == ("graded", double, square)
    assert float(row["exercises"]) == float(double) + float(square)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ("broken", "is not a complete notebook file"),
        ("other-week", "a notebook of week07, and week04 is expected"),
        ("thief", "names the student 'right' and was handed in by 'thief'"),
    ],
)
def test_what_cannot_be_graded_is_a_row_with_the_reason(student, reason, table, repository):
    assert table[student]["status"] == "refused"
    assert reason in table[student]["notes"]
    assert table[student]["points"] == ""
    assert not (repository / "build" / "course" / "autograded" / student).exists()


@pytest.mark.slow
def test_a_deleted_exercise_is_no_silent_zero(table):
    assert "MISSING: the cell week04-square was not in the notebook" in table["answered"]["notes"]


@pytest.mark.slow
def test_who_handed_in_the_same_measurements_is_named_beside_both(table):
    assert table["warns"]["notes"] == f"{WEEK}/kv-pool: the same measurements as kills."
    assert table["kills"]["notes"] == f"{WEEK}/kv-pool: the same measurements as warns."
    assert table["right"]["notes"] == ""


@pytest.mark.slow
def test_only_a_written_answer_waits_for_a_human(table):
    waiting = {student: row["by hand"] for student, row in table.items() if row["by hand"]}
    assert waiting == {"answered": "analysis-1"}


@pytest.mark.slow
def test_nothing_of_a_submission_runs_in_nbgrader(repository):
    for student in ("right", "kills", "floods"):
        path = repository / "build" / "course" / "autograded" / student / WEEK / NOTEBOOK
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert not [cell for cell in cells if cell.execution_count]


@pytest.mark.slow
def test_feedback_shows_scores_and_no_probe(repository):
    course = repository / "build" / "course"
    pages = {path.parts[-3]: path.read_text() for path in course.glob("feedback/*/*/*.html")}
    assert set(pages) >= {"right", "half", "kills", "untouched"}
    assert "Score: 2.0 / 4.0" in " ".join(pages["half"].split())
    assert "what the student saw" in pages["half"]
    assert "passed: Three times three" in pages["half"]
    assert "not passed: The square of any number. It squares every number." in pages["half"]
    graded = course / "autograded" / "half" / WEEK / NOTEBOOK
    assert "secret of the probes" in graded.read_text()
    assert not [student for student, page in pages.items() if "secret of the probes" in page]
    assert (repository / "build" / "grade" / "gradebook.csv").exists()


@pytest.mark.slow
def test_the_export_for_a_learning_management_system_holds_everybody(repository):
    with (repository / "build" / "grade" / "lms.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0][WEEK] == "39", "the points possible"
    marks = {row["SIS Login ID"]: row[WEEK] for row in rows[1:]}
    assert marks["right"] == "9"
    assert marks["half"] == "7"
    assert "broken" not in marks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handed_in", "penalty"),
    [("2026-03-01 12:10", 0), ("2026-03-01 13:00", 0.9), ("2026-03-03 11:00", 1.8)],
)
def test_handing_in_late_costs_a_tenth_of_the_marks_a_day(
    handed_in, penalty, repository, tmp_path, monkeypatch
):
    monkeypatch.setattr(graded_exercises, "probes_of", probes_of)
    course = tmp_path / "course"
    shutil.copytree(repository / "build" / "course", course)
    due = ["--duedate", "2026-03-01 12:00:00 UTC"]
    run_nbgrader(course, "db", "assignment", "add", WEEK, *due)
    hand_in(tmp_path / "in", "late")
    (tmp_path / "in" / "late" / WEEK / "timestamp.txt").write_text(f"{handed_in}:00 UTC")
    (row,) = grading.grade_week(
        grading.Assignment(course, WEEK, BubblewrapIsolator()),
        tmp_path / "in",
        lambda done, total: None,
    )
    assert row.exercise_points == 9
    said = [f"Handed in late: nbgrader takes {penalty:g} points off."] if penalty else []
    assert row.notes == said


@pytest.mark.slow
def test_grading_again_grades_only_what_changed_and_keeps_marks_of_humans(
    repository, tmp_path, monkeypatch
):
    course = repository / "build" / "course"
    folder = tmp_path / "in"
    hand_in(folder, "right")
    hand_in(folder, "half", square="return x * x")
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        grade = gradebook.find_grade(f"{WEEK}-execution", Path(NOTEBOOK).stem, WEEK, "half")
        grade.manual_score = 7
        gradebook.db.commit()
    ran = []
    autograde = grading.autograde

    def counted(course, week, student):
        ran.append(student)
        autograde(course, week, student)

    monkeypatch.setattr(grading, "autograde", counted)
    monkeypatch.setattr(graded_exercises, "probes_of", probes_of)

    def grade(isolator):
        assignment = grading.Assignment(course, WEEK, isolator)
        return grading.grade_week(assignment, folder, lambda done, total: None)

    rows = grade(BubblewrapIsolator())
    assert ran == ["half"]
    assert [row.exercise_points for row in rows] == [9, 9]
    assert rows[0].other["execution"] == 7
    # An examination that fails leaves the scores that were given, and is taken up again.
    shutil.rmtree(folder)
    hand_in(folder, "half", square="return 0")
    hand_in(folder, "right")
    rows = grade(FailingIsolator())
    assert [row.status for row in rows] == ["failed", "graded"]
    assert rows[0].notes == ["The disk is full."]
    assert grading.read_scores(course, WEEK, Path(NOTEBOOK).stem, "half").exercise_points == 9
    rows = grade(BubblewrapIsolator())
    assert [row.exercise_points for row in rows] == [5, 9]
    # What has been examined is not run again, whoever hands it in.
    hand_in(folder, "copy", square="return 0")
    rows = grade(FailingIsolator())
    assert [row.exercise_points for row in rows] == [5, 5, 9]


@pytest.mark.slow
def test_only_one_thread_parses(repository, tmp_path, monkeypatch):
    """In Python 3.11 `ast.parse` may fail in one thread while it runs in another."""
    course = tmp_path / "course"
    shutil.copytree(repository / "build" / "course", course)
    for number in range(5):
        hand_in(tmp_path / "in", f"own-{number}", double=f"return x * 2 + {number} - {number}")
    threads = {"parse": [], "examine": []}
    parse = ast.parse

    def noted(*args, **options):
        threads["parse"].append(threading.get_ident())
        return parse(*args, **options)

    class Noting(BubblewrapIsolator):
        def examine(self, task):
            threads["examine"].append(threading.get_ident())
            return super().examine(task)

    monkeypatch.setattr(graded_exercises, "probes_of", probes_of)
    monkeypatch.setattr(ast, "parse", noted)
    rows = grading.grade_week(
        grading.Assignment(course, WEEK, Noting()), tmp_path / "in", lambda done, total: None, 2
    )
    assert [row.exercise_points for row in rows] == [9] * 5
    assert len(threads["parse"]) > 5
    assert len(threads["examine"]) == 5
    assert len(set(threads["examine"])) == 2
    assert set(threads["parse"]) == {threading.get_ident()}


class FailingIsolator(BubblewrapIsolator):
    def examine(self, task):
        raise ExaminationError("The disk is full.")


@pytest.mark.slow
def test_stock_nbgrader_would_be_unjust(repository, tmp_path):
    """It takes all marks for a warning, and imports what was handed in beside the notebook."""
    course = tmp_path / "course"
    shutil.copytree(
        repository / "build" / "course", course, ignore=shutil.ignore_patterns("autograded")
    )
    submitted = course / "submitted"
    hand_in(submitted, "plain-warns", double=WARNS)
    hand_in(submitted, "plain-shadows", double=SHADOWS)
    beside = submitted / "plain-shadows" / WEEK
    (beside / "inferlab").mkdir()
    for name in ("helper.py", "numbers.py", "json.py", "inferlab/__init__.py"):
        (beside / name).write_text("raise SystemExit('shadowed')" if "help" not in name else "")
    (course / "nbgrader_config.py").write_text("c = get_config()\n")
    run_nbgrader(course, "autograde", WEEK)
    for student in ("plain-warns", "plain-shadows"):
        row = grading.read_scores(course, WEEK, Path(NOTEBOOK).stem, student)
        assert row.exercises == {"double": 0, "square": 4}


def test_a_student_may_write_a_delimiter():
    cell = code("# BEGIN HIDDEN TESTS", "double", ["exercise"], solution=True)
    assert HideProbes().preprocess_cell(copy.deepcopy(cell), {}, 0)[0] == cell


def test_both_layouts_are_found_and_ambiguity_is_refused(tmp_path):
    hand_in(tmp_path, "anna")
    without_code(tmp_path, "bert", "{}")
    hand_in(tmp_path, "carl")
    without_code(tmp_path, "carl", "{}")
    (tmp_path / "dora" / WEEK).mkdir(parents=True)
    hand_in(tmp_path, "eve")
    for name in ("draft", "copy"):
        (tmp_path / "eve" / WEEK / f"{name}.ipynb").write_text("{}")
    (tmp_path / "readme.txt").touch()
    found = {submission.student: submission for submission in find_submissions(tmp_path, WEEK)}
    assert list(found) == ["anna", "bert", "carl", "dora", "eve"]
    assert found["anna"].notebook(NOTEBOOK).name == NOTEBOOK
    assert found["bert"].notebook(NOTEBOOK).name == "bert.ipynb"
    assert found["eve"].notebook(NOTEBOOK).name == NOTEBOOK
    with pytest.raises(Refused, match="several notebooks"):
        found["carl"].notebook(NOTEBOOK)
    with pytest.raises(Refused, match="There is no notebook"):
        found["dora"].notebook(NOTEBOOK)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(Refused, match="There is no submission"):
        find_submissions(tmp_path, WEEK)


@pytest.fixture
def measured(tmp_path):
    """Writes a live result file for each experiment: the recording with samples of its own."""

    def write(change=lambda document: None, names=EXPERIMENT_NAMES):
        for name in names:
            document = json.loads((RECORDED / f"{name}.json").read_text())
            for point in document["points"]:
                for repeat in point["repeats"]:
                    for values in repeat["samples"].values():
                        values.append(1)
            change(document)
            results.write_document(live_file(tmp_path, name), document)
        return tmp_path

    return write


def live_file(folder, name):
    return folder / "build" / "results" / "cpu" / WEEK / f"{name}.json"


def test_measurements_of_the_students_own_are_valid(measured):
    assert live_results(measured(), WEEK) == {f"{WEEK}/{name}": "" for name in EXPERIMENT_NAMES}


def test_an_experiment_that_was_not_run_is_named(measured):
    verdicts = live_results(measured(names=["kv-pool"]), WEEK)
    assert [name for name, problem in verdicts.items() if not problem] == [f"{WEEK}/kv-pool"]
    assert verdicts[f"{WEEK}/block-size"] == "No live result file was handed in."


def test_a_replay_earns_nothing(tmp_path):
    for name in EXPERIMENT_NAMES:
        live_file(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RECORDED / f"{name}.json", live_file(tmp_path, name))
    verdicts = live_results(tmp_path, WEEK)
    assert set(verdicts.values()) == {"cpu: the file holds the course's recorded numbers."}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["points"].pop(), "was not measured"),
        (lambda d: d["points"][0].update(status="failed"), "was not measured"),
        (lambda d: d["points"][0]["repeats"].pop(), "lacks repeats"),
        (lambda d: d["points"][0]["repeats"][0]["metrics"].update(e2e_mean_ms=1e9), "Little's law"),
        (
            lambda d: d["points"][0]["repeats"][0]["metrics"].pop("output_tokens"),
            "lacks or mistypes",
        ),
        (lambda d: d["provenance"].update(hardware={}), "lacks or mistypes 'memory_bytes'"),
        (lambda d: d.update(experiment="week04/other"), "the file is of week04/other"),
    ],
)
def test_an_incomplete_or_impossible_result_earns_nothing(change, reason, measured):
    verdicts = live_results(measured(change), WEEK)
    assert all(reason in problem for problem in verdicts.values())


@pytest.mark.parametrize(
    ("contents", "reason"),
    [("{", "Expecting"), ("[]", "not a mapping"), ("{}", "'schema' is miss")],
)
def test_a_file_that_is_no_result_earns_nothing(contents, reason, measured):
    folder = measured()
    live_file(folder, "kv-pool").write_text(contents)
    assert reason in live_results(folder, WEEK)[f"{WEEK}/kv-pool"]


def test_an_edited_result_earns_nothing(measured):
    folder = measured()
    path = live_file(folder, "kv-pool")
    document = json.loads(path.read_text())
    document["points"][0]["repeats"][0]["metrics"]["duration_s"] *= 1.001
    path.write_text(json.dumps(document))
    assert "it was edited" in live_results(folder, WEEK)[f"{WEEK}/kv-pool"]


def test_the_same_measurements_in_two_hands_are_told(tmp_path, measured):
    def other_samples(document):
        for point in document["points"]:
            for repeat in point["repeats"]:
                repeat["samples"]["e2e_us"].append(2)

    folders = {name: tmp_path / name for name in ("ada", "bob", "cy", "dee")}
    measured(names=["kv-pool"])
    for name in ("ada", "bob", "dee"):
        shutil.copytree(tmp_path / "build", folders[name] / "build")
    measured(other_samples, names=["kv-pool"])
    shutil.copytree(tmp_path / "build", folders["cy"] / "build")
    live_file(folders["dee"], "kv-pool").write_text("no JSON")
    assert shared_results(folders, WEEK) == {
        "ada": [f"{WEEK}/kv-pool: the same measurements as bob."],
        "bob": [f"{WEEK}/kv-pool: the same measurements as ada."],
        "cy": [],
        "dee": [],
    }
