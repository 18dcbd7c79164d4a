"""A course of one exercise, on which the suites of attacks and of fairness are graded."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.course import prepare_course
from autograder.graded_exercises import package_folder, released_notebook, source_notebook
from autograder.release import generate, release
from inferlab.handin.cells import grade_id, has_tag

ROOT = Path(__file__).resolve().parents[1]
WEEK, EXERCISE = "week04", "week04-fragmentation"
KINDS = ("", "-test", "-probes")


def practice_course(folder: Path) -> Path:
    """Release week 4, then make a course in `folder/course` of its first exercise alone."""
    whole = folder / "whole"
    release(ROOT, WEEK, whole, "http://localhost:8000", lambda step: None)
    course = prepare_course(folder / "course")
    path = source_notebook(whole, WEEK)
    notebook = nbformat.read(path, as_version=4)
    names = {f"{EXERCISE}{kind}" for kind in KINDS}
    first = next(i for i, cell in enumerate(notebook.cells) if grade_id(cell) in names)
    notebook.cells = [
        cell
        for i, cell in enumerate(notebook.cells)
        if grade_id(cell) in names
        or (has_tag(cell, "setup") and i < first)
        or cell.source.startswith("# hand-in:")
    ]
    target = course / "source" / WEEK / path.name
    target.parent.mkdir(parents=True)
    nbformat.write(notebook, target)
    generate(course, WEEK)
    shutil.copytree(package_folder(whole, WEEK, EXERCISE), package_folder(course, WEEK, EXERCISE))
    return course


def fresh_notebook(course: Path) -> NotebookNode:
    """The notebook as a student gets it."""
    return nbformat.read(released_notebook(course, WEEK), as_version=4)


def hand_in(course: Path, folder: Path, student: str, notebook: NotebookNode) -> Path:
    """Put the notebook into `folder` as nbgrader's collect would; returns the student's folder."""
    target = folder / student / WEEK
    target.mkdir(parents=True)
    nbformat.write(notebook, target / source_notebook(course, WEEK).name)
    return target


def answered(notebook: NotebookNode, cells: Mapping[str, str]) -> NotebookNode:
    """The notebook with other sources in the cells named."""
    for cell in notebook.cells:
        cell.source = cells.get(grade_id(cell), cell.source)
    return notebook
