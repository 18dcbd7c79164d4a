"""Runs cells of which anything must be expected: floods of output, dead and deaf kernels.

Used by the student's validation and by the grader, so that both see the same.
"""

import json
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from inferlab.handin.cells import has_tag

MOST_CHARACTERS = 1_000_000
CUT = f"\n[The output was cut here: it is longer than {MOST_CHARACTERS:,} characters.]\n"


class BoundedClient(NotebookClient):  # type: ignore[misc]
    """A notebook client that keeps at most `MOST_CHARACTERS` of a cell's output and that goes on
    with a new kernel where a cell has killed or deafened the old one."""

    kernel_options: dict[str, Any] | None = None  # what a kernel is started with

    def run_cell(self, cell: NotebookNode, index: int) -> None:
        """Execute the cell; what it does to the kernel becomes an error of this cell only."""
        self._received = 0
        try:
            self.execute_cell(cell, index)
        except (DeadKernelError, CellTimeoutError) as error:
            said = (
                "The kernel ended while this cell ran."
                if isinstance(error, DeadKernelError)
                else "The cell did not stop when its time was over."
            )
            cell.outputs.append(error_output(type(error).__name__, said))
            self._restart()
            self._run_again(index)

    def _run_again(self, index: int) -> None:
        """Bring the new kernel to where the cell at `index` found the old one, if it can be."""
        for earlier in needed_again(self.nb.cells, index):
            self._received = 0
            try:
                self.execute_cell(self.nb.cells[earlier], earlier)
            except (DeadKernelError, CellTimeoutError):
                self._restart()
                return

    def _restart(self) -> None:
        self._cleanup_kernel()
        self.create_kernel_manager()
        self.start_new_kernel(**(self.kernel_options or {}))
        self.start_new_kernel_client()

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str, cell_index: int
    ) -> NotebookNode | None:
        """As nbclient's, within the limit. A result or an error is never dropped, since either
        decides about marks."""
        kind, content = msg["msg_type"], msg["content"]
        size = len(json.dumps(content, default=str))
        before, self._received = self._received, self._received + size
        if self._received > MOST_CHARACTERS:
            if kind in ("stream", "display_data"):
                if before <= MOST_CHARACTERS:
                    kept = content.get("text", "")[: MOST_CHARACTERS - before]
                    outs.append(nbformat.v4.new_output("stream", name="stdout", text=kept + CUT))
                return None
            if kind == "error":
                content["evalue"] = content["evalue"][:1000]
                content["traceback"] = [line[:1000] for line in content["traceback"][-20:]]
            elif size > MOST_CHARACTERS:
                outs.append(error_output("OutputTooLarge", "The cell's result is too large."))
                return None
        return super().output(outs, msg, display_id, cell_index)


def error_output(name: str, message: str) -> NotebookNode:
    """An error output that no code raised."""
    made: NotebookNode = nbformat.v4.new_output(
        "error", ename=name, evalue=message, traceback=[f"{name}: {message}"]
    )
    return made


def needed_again(cells: list[NotebookNode], index: int) -> list[int]:
    """Positions of the cells before `index` that a new kernel needs: the setup, and the exercise
    that the cell belongs to."""
    setup = [position for position in range(index) if has_tag(cells[position], "setup")]
    if has_tag(cells[index], "exercise"):
        return setup
    exercises = [position for position in range(index) if has_tag(cells[position], "exercise")]
    return setup + exercises[-1:]
