"""Grades a folder of submissions: repair, examine in boxes, mark with nbgrader, feedback, table.

What was handed in is only read. The repaired notebooks go to `repaired/` in the course directory.
Submissions are examined several at a time, while nbgrader, which runs nothing of theirs, marks one
after another. Whatever is finished is on the disk: a run that was interrupted goes on where it
stopped, and a submission that has not changed since it was graded keeps its scores.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import click
import nbformat
from nbformat import NotebookNode
from nbgrader.api import MissingEntry
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import SAWarning

from autograder.course import nbgrader_of, prepare_course, run_nbgrader
from autograder.examination import USUAL, Examination, Seconds
from autograder.grade_table import Row, show, write_table
from autograder.gradebook import read_scores
from autograder.graded_exercises import released_notebook, source_notebook
from autograder.live_results import LARGEST_BYTES, shared_results
from autograder.lms_export import FILE, LmsExport
from autograder.preprocessors import answers
from autograder.sandbox.bubblewrap import NoIsolationError
from autograder.sandbox.isolator import Isolator
from autograder.sandbox.isolators import ISOLATORS
from autograder.sandbox.task import Answer
from autograder.submissions import Submission, find_submissions
from inferlab.handin.notebook_file import Refused, read_notebook
from inferlab.handin.repair import check_student, repair
from inferlab.handin.validate import live_result_paths
from inferlab.lab.cluster import SlurmError
from inferlab.lab.json_file import write_json

ROOT = Path(__file__).resolve().parents[1]
Report = Callable[[int, int], None]  # submissions finished, and how many there are
AHEAD = 2  # submissions begun for each that is in a box, so that no box waits for the next


class Assignment(NamedTuple):
    """One week of a course, and where its submissions are run."""

    course: Path
    week: str
    isolator: Isolator
    seconds: Seconds = USUAL

    @property
    def released(self) -> Path:
        """The notebook that students were given."""
        return released_notebook(self.course, self.week)

    def refuse_unreleased(self) -> None:
        """Raise Refused unless the week has been released in this course."""
        try:
            source_notebook(self.course, self.week)
        except FileNotFoundError as error:
            raise Refused(str(error)) from error


def grade_week(
    assignment: Assignment, submissions: Path, report: Report, jobs: int = 1
) -> list[Row]:
    """Grade everything in `submissions`; returns a row for each, in the order of the students.

    Raises:
        Refused: when the week has not been released or there is nothing to grade.
        NoIsolationError: when nothing can be isolated here; nothing has run then.
    """
    course, week = assignment.course, assignment.week
    assignment.refuse_unreleased()
    assignment.isolator.require()
    prepare_course(course)
    found = find_submissions(submissions, week)
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(jobs) as boxes:
        try:
            for row in graded(assignment, found, boxes, AHEAD * jobs):
                rows[row.student] = row
                report(len(rows), len(found))
        except BaseException:
            boxes.shutdown(cancel_futures=True)
            raise
    folders = {student: course / "repaired" / student / week for student in rows}
    for student, notes in shared_results(folders, week).items():
        rows[student].notes += notes
    return [rows[student] for student in sorted(rows)]


def graded(
    assignment: Assignment, submissions: Iterable[Submission], boxes: Executor, most: int
) -> Iterator[Row]:
    """A row for each submission as it is finished; `most` of them are in `boxes` or wait there.

    Only what the isolator does is done by other threads, for the reason that `Examination` gives.
    """
    waiting = deque(submissions)
    inside: dict[Future[Answer], Begun] = {}
    while waiting or inside:
        while waiting and len(inside) < most:
            begun = begin(assignment, waiting.popleft())
            if isinstance(begun, Row):
                yield begun
            elif not begun.is_new or begun.examination.remembered() is not None:
                yield mark(assignment, begun)
            else:
                task = begun.examination.task
                inside[boxes.submit(assignment.isolator.examine, task)] = begun
        for answer in wait(inside, return_when=FIRST_COMPLETED).done:
            yield conclude(assignment, inside.pop(answer), answer)


class Begun(NamedTuple):
    """A submission that can be examined."""

    student: str
    notes: list[str]
    examination: Examination
    is_new: bool  # whether it has to be marked (again)


def begin(assignment: Assignment, submission: Submission) -> Begun | Row:
    """Repair a submission and write it to `repaired/`; a reason not to becomes a row's note."""
    course, week, student = assignment.course, assignment.week, submission.student
    try:
        notebook = read_notebook(submission.notebook(assignment.released.name))
        fixed, notes = repair(notebook, nbformat.read(assignment.released, as_version=4))
        notes += check_student(fixed, student)
        is_new = prepare(assignment, fixed, submission)
    except Refused as refusal:
        return Row(student, "refused", [str(refusal)])
    except OSError as error:
        return Row(student, "failed", [str(error)])
    return Begun(
        student, notes, Examination(course, week, answers(fixed), assignment.seconds), is_new
    )


def conclude(assignment: Assignment, begun: Begun, answer: Future[Answer]) -> Row:
    """Compare what was seen of a submission, and mark it."""
    try:
        begun.examination.conclude(answer)
    except (RuntimeError, OSError) as error:
        return Row(begun.student, "failed", [*begun.notes, str(error)])
    return mark(assignment, begun)


def mark(assignment: Assignment, begun: Begun) -> Row:
    """Have nbgrader mark what was examined; a reason not to becomes the row's note."""
    course, week, student = assignment.course, assignment.week, begun.student
    try:
        if begun.is_new:
            autograde(course, week, student)
        row = read_scores(course, week, assignment.released.stem, student)
    except (RuntimeError, MissingEntry, OSError) as error:
        return Row(student, "failed", [*begun.notes, str(error)])
    row.notes = begun.notes + row.notes
    return row


def prepare(assignment: Assignment, notebook: NotebookNode, submission: Submission) -> bool:
    """Write the submission to `repaired/`; returns whether it has to be marked (again)."""
    course, week = assignment.course, assignment.week
    name = assignment.released.name
    folder = course / "repaired" / submission.student / week
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / name).write_text(nbformat.writes(notebook), encoding="utf-8")
    for path in extra_files(submission, week):
        target = folder / path.relative_to(submission.folder or path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    digest = hashlib.sha256(source_notebook(course, week).read_bytes())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    graded = fingerprint_file(course, week, submission.student)
    is_new = (
        not graded.exists()
        or json.loads(graded.read_text()) != digest.hexdigest()
        or not (course / "autograded" / submission.student / week / name).exists()
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
    """Have nbgrader mark one student.

    Raises RuntimeError when nbgrader fails. Marks given by hand stay.
    """
    with warnings.catch_warnings():
        # nbgrader links its rows before it adds them to the session.
        warnings.simplefilter("ignore", SAWarning)
        result = nbgrader_of(course).autograde(week, student, force=True, create=True)
    if not result["success"]:
        said = result.get("error") or result.get("log") or ""
        tail = "\n".join(said.splitlines()[-15:])
        raise RuntimeError(f"nbgrader could not mark {student}:\n{tail}")
    fresh = fingerprint_file(course, week, student).with_suffix(".new")
    fresh.replace(fresh.with_suffix(".json"))


@click.command()
@click.argument("week")
@click.argument("submissions", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--launcher",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="Where submissions are examined: here, or by the tasks of a SLURM array.",
)
@click.option(
    "--isolator",
    type=click.Choice(list(ISOLATORS)),
    default="bubblewrap",
    show_default=True,
    help="What keeps submissions apart: boxes on this machine, or Jobs of a cluster.",
)
def grade(week: str, submissions: Path, jobs: int, launcher: str, isolator: str) -> None:
    """Grade the folder SUBMISSIONS of WEEK (04); table, CSV, feedback and nbgrader's export."""
    console = Console(highlight=False)
    course, tables = ROOT / "build" / "course", ROOT / "build" / "grade"
    name = f"week{week.removeprefix('week'):0>2}"
    assignment = Assignment(course, name, ISOLATORS[isolator]())
    if shortfall := assignment.isolator.shortfall():
        console.print(f"[yellow]Note.[/] {escape(shortfall)}", soft_wrap=True)
    columns = (TextColumn("Grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        if launcher == "slurm":
            from autograder.grade_on_slurm import examine_on_slurm

            examine_on_slurm(assignment, submissions, console.print)
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("Grading")
            rows = grade_week(
                assignment,
                submissions,
                lambda done, total: progress.update(bar, completed=done, total=total),
                jobs,
            )
    except (Refused, NoIsolationError, SlurmError) as refusal:
        console.print(f"[red]Refused.[/] {escape(str(refusal))}", soft_wrap=True)
        sys.exit(2)
    show(rows, console)
    try:
        write_table(rows, tables / f"{name}.csv")
        run_nbgrader(course, "generate_feedback", name, "--force")
        run_nbgrader(course, "export", "--to", str(tables / "gradebook.csv"))
        exporter = f"--exporter={LmsExport.__module__}.{LmsExport.__name__}"
        run_nbgrader(course, "export", exporter, "--to", str(tables / FILE))
    except (RuntimeError, OSError) as error:
        console.print(f"[red]Not finished.[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    console.print(f"The table is in build/grade/{name}.csv, the feedback in build/course/feedback.")
    sys.exit(any(row.status != "graded" for row in rows))
