"""Grades a folder of submissions with nbgrader: repair, autograde, gradebook, feedback, table.

What was handed in is only read. The repaired notebooks go to `repaired/` in the course directory,
from where nbgrader grades them one student at a time, each in processes of its own: what one
submission does, ends with it. A submission that has not changed since it was graded keeps its
scores, so that an interrupted run goes on where it stopped.
"""

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import click
import nbformat
from nbgrader.api import Gradebook, MissingEntry
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder.course import prepare_course, run_nbgrader
from autograder.live_results import LARGEST_BYTES, live_results, shared_results
from autograder.submissions import Submission, find_submissions
from inferlab.handin.notebook_file import Refused, read_notebook
from inferlab.handin.repair import check_student, repair
from inferlab.handin.validate import live_result_paths
from inferlab.lab.json_file import write_json

ROOT = Path(__file__).resolve().parents[1]
SECONDS_PER_SUBMISSION = 1800
Report = Callable[[str], None]


@dataclass
class Row:
    """What became of one submission."""

    student: str
    status: str  # graded, refused or failed
    notes: list[str] = field(default_factory=list)
    exercises: dict[str, float] = field(default_factory=dict)
    other: dict[str, float] = field(default_factory=dict)
    by_hand: list[str] = field(default_factory=list)  # cells that a human has yet to mark

    @property
    def exercise_points(self) -> float:
        """Points of all exercises together."""
        return round(sum(self.exercises.values()), 2)

    @property
    def points(self) -> float:
        """All points so far; those to be given by hand are not in it yet."""
        return round(self.exercise_points + sum(self.other.values()), 2)


def grade_week(course: Path, week: str, submissions: Path, report: Report) -> list[Row]:
    """Grade everything in `submissions`; returns a row for each, in the order of the students.

    Raises Refused when the week has not been released or there is nothing to grade.
    """
    released = sorted((course / "release" / week).glob("*.ipynb"))
    if len(released) != 1:
        raise Refused(f"{week} has no release in {course}: run `make release WEEK={week[4:]}`.")
    original = released[0]
    prepare_course(course)
    rows = []
    for submission in find_submissions(submissions, week):
        report(f"Grading {submission.student}")
        rows.append(grade_one(course, week, original, submission))
    folders = {row.student: course / "repaired" / row.student / week for row in rows}
    for student, notes in shared_results(folders, week).items():
        next(row for row in rows if row.student == student).notes += notes
    return rows


def grade_one(course: Path, week: str, original: Path, submission: Submission) -> Row:
    """Grade one submission, whatever it is; a reason not to becomes the row's note."""
    student = submission.student
    try:
        notebook = submission.notebook(original.name)
        fixed, notes = repair(read_notebook(notebook), nbformat.read(original, as_version=4))
        notes += check_student(fixed, student)
    except Refused as refusal:
        return Row(student, "refused", [str(refusal)])
    try:
        if prepare(course, week, student, nbformat.writes(fixed), original, submission):
            autograde(course, week, student)
        row = read_scores(course, week, original.stem, student)
    except (RuntimeError, MissingEntry, OSError) as error:
        return Row(student, "failed", [*notes, str(error)])
    row.notes = notes + row.notes
    return row


def prepare(
    course: Path, week: str, student: str, notebook: str, original: Path, submission: Submission
) -> bool:
    """Write the submission to `repaired/`; returns whether it has to be graded (again)."""
    folder = course / "repaired" / student / week
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / original.name).write_text(notebook, encoding="utf-8")
    for path in extra_files(submission, week):
        target = folder / path.relative_to(submission.folder or path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    digest = hashlib.sha256()
    source = course / "source" / week / original.name
    for path in [source, *sorted(p for p in folder.rglob("*") if p.is_file())]:
        digest.update(path.name.encode() + path.read_bytes())
    graded = fingerprint_file(course, week, student)
    is_new = (
        not graded.exists()
        or json.loads(graded.read_text()) != digest.hexdigest()
        or not (course / "gradebook.db").exists()
        or not (course / "autograded" / student / week / original.name).exists()
    )
    if is_new:
        graded.unlink(missing_ok=True)
        write_json(graded.with_suffix(".new"), digest.hexdigest())
    return is_new


def fingerprint_file(course: Path, week: str, student: str) -> Path:
    """Says what was last graded of a student; exists only when that grading came to its end."""
    return course / "graded" / week / f"{student}.json"


def extra_files(submission: Submission, week: str) -> Iterable[Path]:
    """The files that matter beside the notebook: the time of handing in, and live results.

    Everything else stays behind, modules and links above all.
    """
    if submission.folder:
        wanted = [submission.folder / "timestamp.txt"]
        wanted += live_result_paths(submission.folder, f"{week}/*")
        for path in wanted:
            inside = path.resolve().is_relative_to(submission.folder.resolve())
            if inside and path.is_file() and path.stat().st_size <= LARGEST_BYTES:
                yield path


def autograde(course: Path, week: str, student: str) -> None:
    """Run nbgrader on one student, then give the points for live results.

    Raises RuntimeError when nbgrader fails. Marks given by hand stay.
    """
    run_nbgrader(
        course,
        "autograde",
        week,
        # A purely numeric id would otherwise be read as a number.
        f'--CourseDirectory.student_id="{student}"'
        if student.isdigit()
        else f"--student={student}",
        "--CourseDirectory.submitted_directory=repaired",
        "--force",
        seconds=SECONDS_PER_SUBMISSION,
    )
    give_execution_points(course, week, student)
    fresh = fingerprint_file(course, week, student).with_suffix(".new")
    fresh.replace(fresh.with_suffix(".json"))


def give_execution_points(course: Path, week: str, student: str) -> None:
    """Score the cell `weekNN-execution` by the share of experiments with a valid live result.

    It is an automatic score, so a mark that a human gives or gave takes precedence.
    """
    verdicts = live_results(course / "repaired" / student / week, week)
    name = f"{week}-execution"
    with open_gradebook(course) as gradebook:
        (notebook,) = gradebook.find_submission(week, student).notebooks
        for grade in notebook.grades:
            if grade.name == name:
                share = sum(not problem for problem in verdicts.values()) / len(verdicts)
                grade.auto_score = round(share * grade.max_score, 2)
                grade.needs_manual_grade = False
        for comment in notebook.comments:
            if comment.name == name:
                comment.auto_comment = "\n".join(
                    f"{experiment}: {problem or 'a valid live result.'}"
                    for experiment, problem in verdicts.items()
                )
        gradebook.db.commit()


def open_gradebook(course: Path) -> Gradebook:
    """The course's gradebook, to be used in a `with` block."""
    return Gradebook(f"sqlite:///{course}/gradebook.db")


def read_scores(course: Path, week: str, notebook: str, student: str) -> Row:
    """The row of a graded student, from the gradebook."""
    row = Row(student, "graded")
    with open_gradebook(course) as gradebook:
        for grade in gradebook.find_submission_notebook(notebook, week, student).grades:
            name = grade.name.removeprefix(f"{week}-")
            if name.endswith("-probes"):
                row.exercises[name.removesuffix("-probes")] = grade.score
            else:
                row.other[name] = grade.score
            if grade.needs_manual_grade:
                row.by_hand.append(name)
        penalty = gradebook.find_submission(week, student).late_submission_penalty
        if penalty:
            row.notes.append(f"Handed in late: nbgrader takes {penalty:g} points off.")
    return row


def write_table(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV, a column for each graded cell."""
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    other = list(dict.fromkeys(name for row in rows for name in row.other))
    head = ["student", "status", *exercises, "exercises", *other, "points", "by hand", "notes"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            graded = row.status == "graded"
            cells = [row.exercises.get(name, "") for name in exercises]
            cells += [row.exercise_points if graded else ""]
            cells += [row.other.get(name, "") for name in other]
            cells += [row.points if graded else "", " ".join(row.by_hand), " ".join(row.notes)]
            writer.writerow(map(plain_text, [row.student, row.status, *cells]))


def plain_text(value: object) -> object:
    """A spreadsheet takes a text that begins like a formula for one; a student may write such."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def show(rows: list[Row], console: Console) -> None:
    """Print the rows as a table, and every note below it."""
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    table = Table("student", *exercises, "exercises", "points so far", "by hand")
    for row in rows:
        if row.status != "graded":
            cells = [""] * len(exercises) + [f"[red]{row.status}[/]", "", ""]
        else:
            cells = [f"{row.exercises[name]:g}" for name in exercises]
            cells += [f"{row.exercise_points:g}", f"{row.points:g}", str(len(row.by_hand))]
        table.add_row(escape(row.student), *cells)
    console.print(table)
    for row in rows:
        for note in row.notes:
            console.print(f"[bold]{escape(row.student)}[/]: {escape(note)}", soft_wrap=True)


@click.command()
@click.argument("week")
@click.argument("submissions", type=click.Path(path_type=Path))
def grade(week: str, submissions: Path) -> None:
    """Grade the folder SUBMISSIONS of WEEK (04); table, CSV, feedback and nbgrader's export."""
    console = Console(highlight=False)
    course, tables = ROOT / "build" / "course", ROOT / "build" / "grade"
    name = f"week{week.removeprefix('week'):0>2}"
    try:
        rows = grade_week(course, name, submissions, lambda step: console.print(escape(step)))
    except Refused as refusal:
        console.print(f"[red]Refused.[/] {escape(str(refusal))}", soft_wrap=True)
        sys.exit(2)
    show(rows, console)
    write_table(rows, tables / f"{name}.csv")
    try:
        run_nbgrader(course, "generate_feedback", name, "--force")
        run_nbgrader(course, "export", "--to", str(tables / "gradebook.csv"))
    except RuntimeError as error:
        console.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        sys.exit(1)
    console.print(f"The table is in build/grade/{name}.csv, the feedback in build/course/feedback.")
    sys.exit(any(row.status != "graded" for row in rows))
