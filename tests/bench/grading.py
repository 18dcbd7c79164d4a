"""What a box costs: a kernel's start, one submission against plain nbgrader, a class a minute."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager

from autograder.course import CONFIGURATION, run_nbgrader
from autograder.grade import Assignment, grade_week
from autograder.graded_exercises import graded_exercises, released_notebook, source_notebook
from autograder.practice_course import answered
from autograder.release import generate, release
from autograder.sandbox.isolator import BubblewrapIsolator
from autograder.sandbox.kernel import boxed_kernel
from inferlab.handin.cells import grade_id, has_tag
from tests.bench.measurement import Measurement

TITLE = "Grading week 4, on two cores"
ROOT = Path(__file__).resolve().parents[2]
WEEK = "week04"
CLASS = 12


def measure(repeats: int) -> Iterator[Measurement]:
    """Kernel starts, one submission with nbgrader's own kernel and with ours, then a class."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts: dict[str, list[float]] = {"plain": [], "boxed": []}
        for _ in range(repeats):
            starts["plain"].append(1e3 * plain_start(folder))
            starts["boxed"].append(1e3 * boxed_start(folder))
        for side, samples in starts.items():
            yield Measurement(f"first reply of a kernel, {side}", "ms", samples)
        course = folder / "course"
        release(ROOT, WEEK, course, "http://localhost:8000", lambda step: None)
        alone: dict[str, list[float]] = {"plain nbgrader": [], "ours": []}
        for turn in range(repeats):
            for side, samples in alone.items():
                samples.append(one_submission(course, folder / f"{side}-{turn}", side == "ours"))
        for side, samples in alone.items():
            yield Measurement(f"`nbgrader autograde` on one submission, {side}", "s", samples)
        yield Measurement(
            f"{CLASS} submissions with `make grade`", "s", [whole_class(course, folder)]
        )


def plain_start(folder: Path) -> float:
    """Seconds from the start of a kernel without a box to its first reply."""
    start = time.perf_counter()
    manager = KernelManager(transport="ipc", connection_file=str(folder / "connection.json"))
    manager.start_kernel(extra_arguments=["--log-level=ERROR"])
    client = manager.client()
    client.start_channels(shell=True, control=True, iopub=False, stdin=False, hb=False)
    client.execute("", reply=True, timeout=60)
    seconds = time.perf_counter() - start
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return seconds


def boxed_start(folder: Path) -> float:
    """Seconds from the start of a kernel in a box to its first reply."""
    start = time.perf_counter()
    with boxed_kernel(folder) as kernel:
        kernel.run("", 60)
        return time.perf_counter() - start


def one_submission(released: Path, course: Path, in_boxes: bool) -> float:
    """Seconds that `nbgrader autograde` takes for the reference; both sides run the same cells."""
    for name in ("source", "packages"):
        shutil.copytree(released / name, course / name)
    path = source_notebook(course, WEEK)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if is_run(cell)]
    nbformat.write(notebook, path)
    if in_boxes:
        shutil.copy(released / CONFIGURATION, course)
    else:
        (course / CONFIGURATION).write_text("c = get_config()\n")
    generate(course, WEEK)
    solutions = {one.name: one.solution for one in graded_exercises(course, WEEK)}
    target = course / "submitted" / "student" / WEEK / path.name
    target.parent.mkdir(parents=True)
    fresh = nbformat.read(released_notebook(course, WEEK), as_version=4)
    nbformat.write(answered(fresh, solutions), target)
    start = time.perf_counter()
    run_nbgrader(course, "autograde", WEEK, "--create")
    return time.perf_counter() - start


def is_run(cell: nbformat.NotebookNode) -> bool:
    """Whether grading runs the cell, and plain nbgrader has to as well."""
    name = grade_id(cell)
    needed = has_tag(cell, "setup", "exercise") and not name.endswith("-setup-course")
    return needed or name.endswith("-probes")


def whole_class(course: Path, folder: Path) -> float:
    """Seconds that a class takes, each of whom solved everything in words of their own."""
    for number in range(CLASS):
        solutions = {
            one.name: f"{one.solution}\n# {number}" for one in graded_exercises(course, WEEK)
        }
        fresh = nbformat.read(released_notebook(course, WEEK), as_version=4)
        target = folder / "class" / f"s{number:02d}" / WEEK / released_notebook(course, WEEK).name
        target.parent.mkdir(parents=True)
        nbformat.write(answered(fresh, solutions), target)
    start = time.perf_counter()
    assignment = Assignment(course, WEEK, BubblewrapIsolator())
    grade_week(assignment, folder / "class", lambda done, total: None, jobs=2)
    return time.perf_counter() - start
