"""The course's own steps of nbgrader's autograde and feedback."""

import math
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade, is_solution

from inferlab.handin.bounded import BoundedClient, error_output
from inferlab.handin.cells import grade_id, has_tag


def is_probes(cell: NotebookNode) -> bool:
    """Whether the cell is one whose last expression gives the points of an exercise."""
    return cell.cell_type == "code" and is_grade(cell) and not is_solution(cell)


class BoundedExecute(BoundedClient, Execute):
    """Runs setup, exercises, tests and probes only; a flood of output or a dead kernel costs the
    cell that caused it, and nothing else.

    The course's first cell is left out: it fetches the bundle, which grading must not see.
    """

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, index: int
    ) -> tuple[NotebookNode, Any]:
        chosen = has_tag(cell, "setup", "exercise", "test") or is_probes(cell)
        if chosen and not grade_id(cell).endswith("-setup-course"):
            self.run_cell(cell, index)
        return cell, resources


class WarningsCostNothing(NbGraderPreprocessor):
    """Shows standard error as standard output: nbgrader gives 0 for a cell with any of it, and a
    deprecation warning is no mistake of the student's."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, index: int
    ) -> tuple[NotebookNode, Any]:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.name = "stdout"
        return cell, resources


class ScoreOrNothing(NbGraderPreprocessor):
    """Makes a probes cell fail that did not end in a score: nbgrader gives full marks for no
    output, for NaN and for a negative number, and stops at one above the maximum."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, index: int
    ) -> tuple[NotebookNode, Any]:
        if is_probes(cell) and not self._is_score(cell):
            cell.outputs = [
                *(output for output in cell.outputs if output.output_type != "execute_result"),
                error_output("NoScore", "The probes of this exercise did not come to an end."),
            ]
        return cell, resources

    @staticmethod
    def _is_score(cell: NotebookNode) -> bool:
        results = [output for output in cell.outputs if output.output_type == "execute_result"]
        try:
            (score,) = [float(result.data["text/plain"]) for result in results]
        except (KeyError, TypeError, ValueError):
            return False
        return math.isfinite(score) and 0 <= score <= cell.metadata.nbgrader.points


class HideProbes(ClearHiddenTests):
    """Takes the probes' code out of feedback, from the cell and from what its errors quote."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, index: int
    ) -> tuple[NotebookNode, Any]:
        # Only the course's cells: a student who writes a delimiter must not stop the feedback.
        if is_probes(cell):
            self._remove_hidden_test_region(cell)
            for output in cell.outputs:
                if output.output_type == "error":
                    output.evalue, output.traceback = "", [output.ename]
        return cell, resources
