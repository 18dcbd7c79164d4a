"""Makes a submission safe to look at: the instructor's browser may change marks.

nbconvert and nbgrader put what a notebook holds into their pages much as it is.
"""

import re
from collections.abc import Collection
from typing import Any

import nbformat
from nbformat import NotebookNode

SHOWN_TYPES = ("text/plain", "image/png", "image/jpeg")
TAGS = ("setup", "exercise", "test", "raises-exception")
MOST_CHARACTERS = 20_000  # of a text that is kept
MOST_OUTPUTS = 50  # of a cell
CUT = "\n[The rest was cut off here.]\n"
IMAGE = re.compile(r"[A-Za-z0-9+/=\s]{1,1000000}")
CELL_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
# What begins a tag, a character in disguise, or an address that is a script. With a space of no
# width in it, it is nothing of the kind, and is shown as it was written.
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|(?:script|data)(?=\\?:)", re.IGNORECASE)


def make_inert(notebook: NotebookNode, released: NotebookNode) -> None:
    """Take from `notebook` what could act in a browser; lines that `released` has as well stay.

    Outputs stay as the student handed them in, as text and pictures: grading shows nothing of what
    runs in its boxes, where the reference of the other exercises can be read.
    """
    notebook.metadata = nbformat.from_dict(released.metadata)
    known = {line for cell in released.cells for line in cell.source.split("\n")}
    for number, cell in enumerate(notebook.cells):
        _clean_metadata(cell, f"cell-{number}")
        if cell.cell_type == "code":
            cell.outputs = [inert_output(output) for output in cell.outputs[:MOST_OUTPUTS]]
        else:
            cell.source = "\n".join(
                line if line in known else ACTIVE.sub("\\g<0>\u200b", line)
                for line in cell.source.split("\n")
            )


def _clean_metadata(cell: NotebookNode, replacement_id: str) -> None:
    kept: dict[str, Any] = {}
    if "nbgrader" in cell.metadata:
        kept["nbgrader"] = cell.metadata.nbgrader
    if tags := [tag for tag in TAGS if tag in _list(cell.metadata.get("tags"))]:
        kept["tags"] = tags
    cell.metadata = nbformat.from_dict(kept)
    cell.pop("attachments", None)
    if not CELL_ID.fullmatch(str(cell.get("id", ""))):
        cell.id = replacement_id


def _list(value: object) -> Collection[object]:
    return value if isinstance(value, list) else []


def inert_output(output: NotebookNode) -> NotebookNode:
    """The output without HTML, scripts and whatever else is not shown as it is."""
    new = nbformat.v4.new_output
    if output.output_type == "stream":
        return new("stream", name="stdout", text=_cut(output.text))
    if output.output_type == "error":
        lines = [_cut(line) for line in output.traceback[:MOST_OUTPUTS]]
        return new("error", ename=output.ename[:100], evalue=_cut(output.evalue), traceback=lines)
    data = {kind: output.data[kind] for kind in SHOWN_TYPES if kind in output.data}
    if "text/plain" in data:
        data["text/plain"] = _cut(data["text/plain"])
    for kind in ("image/png", "image/jpeg"):
        if not IMAGE.fullmatch(str(data.get(kind, "="))):
            del data[kind]
    return new("display_data", data=data)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + CUT
