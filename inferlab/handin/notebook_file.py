"""Reads a notebook that anyone may have saved, or says in one sentence why it cannot be read.

Nothing is expected of it but cells with text: front ends differ in ids and metadata, and
nbformat's own reader would refuse or silently change what they leave behind.
"""

import json
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

LARGEST_BYTES = 100_000_000
CELL_TYPES = ("code", "markdown", "raw")


class Refused(ValueError):  # noqa: N818 (it says what happens to the submission)
    """A submission that cannot be graded as it is; the message tells its author what to do."""


def read_notebook(path: Path) -> NotebookNode:
    """The cells of the notebook in `path`, each with type, source and metadata.

    Raises Refused when the file is missing, too large, no JSON, no notebook of format 4, or holds
    text that no file can hold.
    """
    if path.is_symlink() or not path.is_file():
        raise Refused(f"There is no notebook {path.name}: a regular file is expected.")
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise Refused(
            f"{path.name} has {size:,} bytes and at most {LARGEST_BYTES:,} are read: clear the "
            "outputs of all cells, save the notebook and hand it in again."
        )
    if not path.read_bytes().strip():
        raise Refused(f"{path.name} is empty: save the notebook again and hand that in.")
    try:
        contents = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"{path.name} is not a complete notebook file ({error}): download or save it again."
        ) from error
    return _notebook(path.name, contents)


def _notebook(name: str, contents: Any) -> NotebookNode:
    """Raises Refused for JSON that is no notebook of format 4."""
    if not isinstance(contents, dict) or "nbformat" not in contents:
        raise Refused(f"{name} is JSON but no notebook: hand in the .ipynb file.")
    if contents["nbformat"] != 4 or not isinstance(contents.get("cells"), list):
        raise Refused(
            f"{name} is a notebook of format {contents['nbformat']}, and format 4 is expected: "
            "open it in a current JupyterLab, save it and hand it in again."
        )
    cells = [_cell(name, number, cell) for number, cell in enumerate(contents["cells"], 1)]
    notebook = nbformat.from_dict(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    )
    joined: NotebookNode = nbformat.v4.rwbase.rejoin_lines(notebook)
    return joined


def _cell(name: str, number: int, cell: Any) -> dict[str, Any]:
    source = cell.get("source") if isinstance(cell, dict) else None
    lines = [source] if isinstance(source, str) else source
    if (
        not isinstance(lines, list)
        or not all(isinstance(line, str) for line in lines)
        or cell.get("cell_type") not in CELL_TYPES
    ):
        raise Refused(f"Cell {number} of {name} is no notebook cell: save the notebook again.")
    text = "".join(lines).replace("\r\n", "\n")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"Cell {number} of {name} holds half a character ({error.reason}): delete it."
        ) from error
    kept: dict[str, Any] = {"cell_type": cell["cell_type"], "source": text}
    for field in ("metadata", "attachments"):
        kept[field] = cell[field] if isinstance(cell.get(field), dict) else {}
    if cell["cell_type"] == "code":
        given = cell.get("outputs")
        shown = given if isinstance(given, list) else []
        kept["outputs"] = [
            one for one in shown if nbformat.validator.isvalid(one, "output", version=4)
        ]
        kept["execution_count"] = None
    return kept
