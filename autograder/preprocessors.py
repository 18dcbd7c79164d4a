"""The course's own steps of nbgrader's autograde and feedback."""

import os
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_solution
from traitlets import Enum, Unicode

from autograder.examination import Examination, Verdict, verdicts
from autograder.gradebook import give_execution_points
from autograder.graded_exercises import GradedExercise, graded_exercises, released_notebook
from autograder.inert import make_inert
from autograder.sandbox.isolators import ISOLATORS
from inferlab.handin.cells import grade_id
from inferlab.handin.repair import check_student, repair


def is_probes(cell: NotebookNode) -> bool:
    """Whether the cell is one whose last expression gives the points of an exercise."""
    return cell.cell_type == "code" and is_grade(cell) and not is_solution(cell)


class RepairNotebook(NbGraderPreprocessor):  # type: ignore[misc]
    """Lays the submission over the released notebook, as `make grade` does before.

    Without it an answer whose cell a front end has stripped of nbgrader's metadata would get a 0
    that nobody notices. What cannot be repaired without guessing ends the grading of this
    submission with an error, and of no other.
    """

    course = Unicode(help="The course directory.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        known = resources["nbgrader"]
        released = released_notebook(Path(self.course), known["assignment"])
        repaired, notes = repair(nb, nbformat.read(released, as_version=4))
        for note in [*notes, *check_student(repaired, known["student"])]:
            self.log.warning(note)
        return repaired, resources


class MakeInert(NbGraderPreprocessor):  # type: ignore[misc]
    """Takes from a submission what could act in the browser of whoever looks at it."""

    course = Unicode(help="The course directory.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        released = released_notebook(Path(self.course), resources["nbgrader"]["assignment"])
        make_inert(nb, nbformat.read(released, as_version=4))
        return nb, resources


class ExamineExercises(NbGraderPreprocessor):  # type: ignore[misc]
    """Gives every exercise its points, without running anything of the submission in nbgrader.

    Where `make grade` has examined the submission before, its verdict is taken.
    """

    course = Unicode(help="The course directory.").tag(config=True)
    isolator = Enum(list(ISOLATORS), "bubblewrap", help="What runs it.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        course, week = Path(self.course), resources["nbgrader"]["assignment"]
        examination = Examination(course, week, answers(nb), jobs=os.cpu_count() or 1)
        found = verdicts(examination, ISOLATORS[self.isolator]())
        exercises = {f"{one.name}-probes": one for one in graded_exercises(course, week)}
        for cell in nb.cells:
            if is_probes(cell):
                exercise = exercises[grade_id(cell)]
                cell.outputs = outputs(exercise, found[exercise.name])
        return nb, resources


class GiveExecutionPoints(NbGraderPreprocessor):  # type: ignore[misc]
    """Gives the points for the experiments, of which the student handed in result files."""

    course = Unicode(help="The course directory.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        known = resources["nbgrader"]
        student, week = known["student"], known["assignment"]
        folder = Path(self.course) / "autograded" / student / week
        give_execution_points(known["db_url"], folder, week, student)
        return nb, resources


def answers(notebook: NotebookNode) -> dict[str, str]:
    """The code that a student can have written, by the name of its cell."""
    return {
        grade_id(cell): cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and is_solution(cell)
    }


def outputs(exercise: GradedExercise, verdict: Verdict) -> list[NotebookNode]:
    """What a probes cell shows, with the points as the result that nbgrader reads."""
    lines = []
    if verdict.error:
        where = f" in line {verdict.line}" if verdict.line else ""
        lines.append(f"The cell itself ended with {verdict.error}{where}.")
    lines += [
        f"passed: {probe.title}" if passed else f"not passed: {probe.title}. {probe.message}"
        for probe, passed in zip(exercise.probes, verdict.passed, strict=True)
    ]
    points = repr(verdict.points(exercise.points))
    return [
        nbformat.v4.new_output("stream", name="stdout", text="\n".join(lines) + "\n"),
        nbformat.v4.new_output("execute_result", data={"text/plain": points}),
    ]


class HideProbes(ClearHiddenTests):  # type: ignore[misc]
    """Takes the probes' code out of feedback."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, index: int
    ) -> tuple[NotebookNode, Any]:
        # Only the course's cells: a student who writes a delimiter must not stop the feedback.
        if is_probes(cell):
            self._remove_hidden_test_region(cell)
        return cell, resources
