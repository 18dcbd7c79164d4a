"""The week-4 release as students get it, and what a student makes of it."""

import functools
import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.release import release

REPOSITORY = Path(__file__).parents[1]
WEEK = "week04"
NOTEBOOK = "week04-paged-attention.ipynb"
SITE = "http://localhost:8000"
COURSE = REPOSITORY / "build" / "course-of-tests"


@functools.cache
def released_bundle() -> Path:
    """Make the release once a session; returns the folder of the bundle."""
    shutil.rmtree(COURSE, ignore_errors=True)
    return release(REPOSITORY, WEEK, COURSE, SITE, lambda step: None)


def fresh_copy(folder: Path) -> Path:
    """A copy of the bundle that a student may write into."""
    shutil.copytree(released_bundle(), folder)
    return folder


def reference_solutions() -> dict[str, str]:
    """Source of every exercise cell as the reference solves it, by the exercise's name."""
    released_bundle()
    notebook = nbformat.read(COURSE / "source" / WEEK / NOTEBOOK, as_version=4)
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
