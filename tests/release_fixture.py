"""Releases as students get them, week 4 unless asked otherwise, and what a student makes of one."""

import functools
import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from autograder.release import release

REPOSITORY = Path(__file__).parents[1]
WEEK = "week04"
NOTEBOOK = "week04-paged-attention.ipynb"
SITE = "http://localhost:8000"
COURSE = REPOSITORY / "build" / "course-of-tests"


def course_of(week: str) -> Path:
    """The course directory of a week's release; `COURSE` holds that of `WEEK` and no other."""
    return COURSE if week == WEEK else COURSE.with_name(f"{COURSE.name}-{week}")


@functools.cache
def released_bundle(week: str = WEEK) -> Path:
    """Make the release once a session; returns the folder of the bundle."""
    course = course_of(week)
    shutil.rmtree(course, ignore_errors=True)
    return release(REPOSITORY, week, course, SITE, lambda step: None)


def fresh_copy(folder: Path, week: str = WEEK) -> Path:
    """A copy of the bundle that a student may write into."""
    shutil.copytree(released_bundle(week), folder)
    return folder


def reference_solutions(week: str = WEEK) -> dict[str, str]:
    """Source of every exercise cell as the reference solves it, by the exercise's name."""
    bundle = released_bundle(week)
    (path,) = bundle.glob("*.ipynb")
    notebook = nbformat.read(course_of(week) / "source" / week / path.name, as_version=4)
    return {
        cell.metadata["nbgrader"]["grade_id"]: cell.source
        for cell in notebook.cells
        if "exercise" in cell.metadata.get("tags", [])
    }


def solve(path: Path, solutions: dict[str, str]) -> NotebookNode:
    """Write `solutions` into the exercise cells of the notebook at `path`."""
    notebook = nbformat.read(path, as_version=4)
    written = set()
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in solutions:
            cell.source = solutions[name]
            written.add(name)
    assert written == set(solutions), "The notebook lacks an exercise that was to be solved."
    nbformat.write(notebook, path)
    return notebook


def executed(path: Path, kernel: str = "python3") -> NotebookNode:
    """The notebook at `path` after its cells have run where it lies, errors and all.

    The environment has to be a student's: see `student` in `tests/test_bundles.py`.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        allow_errors=True,
        kernel_name=kernel,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    return notebook


def failures(notebook: NotebookNode) -> list[str]:
    """First line of every cell that ended with an error, and the error."""
    return [
        f"{cell.source.splitlines()[0]}: {output.ename}: {output.evalue}"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]


def fallen_back(notebook: NotebookNode) -> list[str]:
    """First lines of the cells that showed recorded outputs."""
    return [
        cell.source.splitlines()[0]
        for cell in notebook.cells
        if cell.cell_type == "code" and "which is not finished yet" in str(cell.outputs)
    ]
