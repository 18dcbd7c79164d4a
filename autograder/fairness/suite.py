"""Grades submissions that deserve full marks, or an exact part of them, and says who got less."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml
from nbformat import NotebookNode

from autograder.grade import Assignment, grade_week
from autograder.grade_table import Row
from autograder.graded_exercises import graded_exercises
from autograder.practice_course import (
    EXERCISE,
    WEEK,
    answered,
    fresh_notebook,
    hand_in,
    practice_course,
)
from autograder.sandbox.isolator import BubblewrapIsolator
from inferlab.handin.cells import grade_id

CELLS = Path(__file__).with_name("cells.yml")
ALL = -1


class Fair(NamedTuple):
    """A submission, and the number of probes that it deserves to pass (`ALL` or fewer)."""

    name: str
    passed: int
    change: Callable[[NotebookNode], NotebookNode]  # makes it of the student's notebook


class Graded(NamedTuple):
    """A submission with what it got and what it deserves."""

    fair: Fair
    row: Row
    deserved: float

    @property
    def got(self) -> float | None:
        """Its points; None if it was not graded."""
        return self.row.exercise_points if self.row.status == "graded" else None


def all_fair() -> list[Fair]:
    """Every submission of the suite."""
    found = yaml.safe_load(CELLS.read_text(encoding="utf-8"))
    prelude = found["prelude"]
    of_cells = [
        Fair(entry["name"], entry.get("passed", ALL), _with_cell(f"{prelude}\n{entry['cell']}"))
        for entry in found["cells"] + found["near misses"]
    ]
    return of_cells + [
        Fair(name, ALL, _changed(prelude, change)) for name, change in NOTEBOOKS.items()
    ]


def run_fairness(
    submissions: list[Fair], folder: Path, progress: Callable[[int, int], None], jobs: int = 1
) -> list[Graded]:
    """Grade `submissions` in a course made in `folder`."""
    course = practice_course(folder)
    (exercise,) = graded_exercises(course, WEEK)
    names = {f"fair-{number:02d}": fair for number, fair in enumerate(submissions)}
    for name, fair in names.items():
        notebook = fair.change(fresh_notebook(course))
        hand_in(course, folder / "submissions", name, notebook)
    assignment = Assignment(course, WEEK, BubblewrapIsolator())
    rows = {
        row.student: row for row in grade_week(assignment, folder / "submissions", progress, jobs)
    }
    probes = len(exercise.probes)
    shares = {name: (probes if f.passed == ALL else f.passed) / probes for name, f in names.items()}
    return [
        Graded(fair, rows[name], round(exercise.points * shares[name], 2))
        for name, fair in names.items()
    ]


def _with_cell(source: str) -> Callable[[NotebookNode], NotebookNode]:
    return lambda notebook: answered(notebook, {EXERCISE: source})


def _changed(
    prelude: str, change: Callable[[NotebookNode], None]
) -> Callable[[NotebookNode], NotebookNode]:
    def make(notebook: NotebookNode) -> NotebookNode:
        change(answered(notebook, {EXERCISE: prelude}))
        return notebook

    return make


def _more_cells(notebook: NotebookNode) -> None:
    for position in (0, 2, len(notebook.cells)):
        notebook.cells.insert(position, nbformat.v4.new_code_cell("1 / 0"))
        notebook.cells.insert(position, nbformat.v4.new_markdown_cell("A note of mine."))


def _other_order(notebook: NotebookNode) -> None:
    notebook.cells.sort(key=lambda cell: cell.source)


def _no_metadata(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})


def _no_tests(notebook: NotebookNode) -> None:
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) in ("", EXERCISE)]


def _other_kernel(notebook: NotebookNode) -> None:
    notebook.metadata.kernelspec = {"name": "conda-env-mine-py", "display_name": "Mine"}


def _executed(notebook: NotebookNode) -> None:
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        text = nbformat.v4.new_output("stream", name="stderr", text="DeprecationWarning: old\n" * 9)
        cell.update(execution_count=number + 1, outputs=[text])


def _colab(notebook: NotebookNode) -> None:
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({"id": f"x{number}", "colab": {"base_uri": "x"}})
        cell.source = cell.source.rstrip("\n") + "\n"
    notebook.metadata.colab = {"provenance": []}


NOTEBOOKS: dict[str, Callable[[NotebookNode], None]] = {
    "more cells, some of which fail": _more_cells,
    "cells in another order": _other_order,
    "no metadata": _no_metadata,
    "the tests deleted": _no_tests,
    "a kernel of another name": _other_kernel,
    "executed, with warnings": _executed,
    "saved by Colab": _colab,
}
