"""Runs a student's exercises against their visible tests, as grading will, in a fresh kernel."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from inferlab.handin.bounded import BoundedClient, error_output
from inferlab.handin.cells import grade_id, has_tag
from inferlab.unfinished import STUB

SECONDS_PER_CELL = 120
PASSES, UNFINISHED, FAILS = "passes", "not finished", "fails"
# A test must fail as it will in grading: no recorded output may stand in for a missing exercise.
NO_FALLBACK = """
import sys
if "inferlab.unfinished" in sys.modules:
    sys.modules["inferlab.unfinished"].disable()
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one exercise; `detail` is the last line of the error, if there was one."""

    exercise: str
    status: str
    detail: str = ""


def run_exercises(
    notebook: NotebookNode, folder: Path, seconds: int = SECONDS_PER_CELL
) -> list[Outcome]:
    """Run setup, exercises and visible tests of a repaired notebook in the bundle's folder.

    `seconds` limits each cell. The notebook is changed: its cells get their outputs. A setup cell
    that fails has an outcome too, since it explains the others.
    """
    over = f"The cell ran for more than {seconds} seconds."
    client = BoundedClient(
        notebook,
        timeout=seconds,
        interrupt_on_timeout=True,
        error_on_timeout={"ename": "CellTimeoutError", "evalue": over, "traceback": []},
        on_cell_executed=_show_timeout,
        allow_errors=True,
        # Otherwise every kernel warns on the terminal that it talks over unencrypted loopback.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    # The bundle's package comes before an installed one, wherever the command was started.
    client.kernel_options = {"env": os.environ | {"PYTHONPATH": str(folder)}}
    client.create_kernel_manager()
    outcomes, exercise = [], NotebookNode()
    with client.setup_kernel(**client.kernel_options):
        for index, cell in enumerate(notebook.cells):
            if has_tag(cell, "setup"):
                cell.source += "\n" + NO_FALLBACK
                client.run_cell(cell, index)
                if error := _error(cell):
                    outcomes.append(Outcome("setup", FAILS, error))
            elif has_tag(cell, "exercise"):
                client.run_cell(cell, index)
                exercise = cell
            elif has_tag(cell, "test"):
                client.run_cell(cell, index)
                outcomes.append(_outcome(exercise, cell))
    return outcomes


def _show_timeout(cell: NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
    """Put the reason before the KeyboardInterrupt with which the cell was ended."""
    content = execute_reply["content"]
    if content.get("ename") == "CellTimeoutError":
        cell.outputs.insert(0, error_output(content["ename"], content["evalue"]))


def _outcome(exercise: NotebookNode, test: NotebookNode) -> Outcome:
    name = grade_id(exercise)
    error = _error(exercise) or _error(test)
    if not error:
        return Outcome(name, PASSES)
    return Outcome(name, UNFINISHED) if STUB in exercise.source else Outcome(name, FAILS, error)


def _error(cell: NotebookNode) -> str:
    """The last line of the cell's first error; empty if there was none."""
    for output in cell.outputs:
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}".strip().splitlines()[-1]
    return ""


def empty_answers(notebook: NotebookNode, original: NotebookNode) -> list[str]:
    """Names of the written answers that are as the original has them."""
    untouched = {cell.source.strip() for cell in original.cells}
    return [
        cell.metadata.nbgrader.grade_id
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        and cell.metadata.get("nbgrader", {}).get("solution")
        and cell.source.strip() in untouched
    ]


def live_result_paths(folder: Path, experiment: str) -> list[Path]:
    """The student's own result files of an experiment below `folder`, one a profile.

    `folder` is a bundle or a hand-in; `week04/*` stands for all experiments of a week.
    """
    return sorted(folder.glob(f"build/results/*/{experiment}.json"))
