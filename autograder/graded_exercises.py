"""The exercises of a released week, as the instructor's notebook has them."""

from pathlib import Path
from typing import NamedTuple

import nbformat

from autograder.probe import Probe, probes_of
from inferlab.handin.cells import grade_id, has_tag

SETUP_COURSE = "-setup-course"  # the cell that fetches the bundle, which grading must not see


class GradedExercise(NamedTuple):
    """An exercise, and what is needed to examine an answer to it."""

    name: str
    points: float
    setup: list[str]  # cells that run before it
    solution: str  # source of its cell
    package: Path  # folder with the course's package, in which only this exercise is unwritten
    probes: list[Probe]


def source_notebook(course: Path, week: str) -> Path:
    """The instructor's notebook of a week.

    Raises:
        FileNotFoundError: if the week has not been released.
    """
    found = sorted((course / "source" / week).glob("*.ipynb"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{week} has no release in {course}: run `make release WEEK={week[4:]}`."
        )
    return found[0]


def released_notebook(course: Path, week: str) -> Path:
    """The notebook of a week as students were given it."""
    return course / "release" / week / source_notebook(course, week).name


def graded_exercises(course: Path, week: str) -> list[GradedExercise]:
    """The exercises of a week in the order of its notebook."""
    cells = nbformat.read(source_notebook(course, week), as_version=4).cells
    points = {grade_id(cell): cell.metadata.get("nbgrader", {}).get("points") for cell in cells}
    setup: list[str] = []
    found = []
    for cell in cells:
        name = grade_id(cell)
        if has_tag(cell, "setup") and not name.endswith(SETUP_COURSE):
            setup.append(cell.source)
        elif has_tag(cell, "exercise"):
            found.append(
                GradedExercise(
                    name,
                    float(points[f"{name}-probes"]),
                    list(setup),
                    cell.source,
                    package_folder(course, week, name),
                    probes_of(name),
                )
            )
    return found


def package_folder(course: Path, week: str, exercise: str) -> Path:
    """Where `make release` puts the package that a kernel of this exercise imports."""
    return course.resolve() / "packages" / week / exercise
