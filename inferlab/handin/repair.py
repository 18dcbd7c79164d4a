"""Rebuilds a submission on the cells of the original notebook.

Order, locked cells and metadata come from the original; only what a student writes is taken from
the submission. So nothing that a front end or a slip of the hand did to the rest can cost marks,
and what cannot be decided is refused: a silent zero would be worse.
"""

import ast
import copy
from collections import defaultdict
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from inferlab.handin.cells import KnownCells, grade_id, weeks_named
from inferlab.handin.notebook_file import Refused


class Repaired(NamedTuple):
    """The notebook to grade, and a sentence for everything that was not as it should be."""

    notebook: NotebookNode
    notes: list[str]


class Submitted(NamedTuple):
    """A cell of the submission and its number there, counted from one."""

    number: int
    cell: NotebookNode


def repair(submitted: NotebookNode, original: NotebookNode) -> Repaired:
    """The submission's answers in the original's cells.

    Raises Refused for a notebook of another week or of no course, for two different answers to one
    exercise, and for a cell of which it is unclear what it answers.
    """
    known = KnownCells.of(original)
    found, extras, notes = _sorted_out(submitted, original, known)
    rebuilt = copy.deepcopy(original)
    for position in known.labels:
        cell = rebuilt.cells[position]
        if position in known.readers:
            notes += _take(cell, found.get(position, []), known.labels[position])
        else:
            notes += _compare(cell, found.get(position, []), known.labels[position])
    for position, given in found.items():
        _keep_outputs(rebuilt.cells[position], given)
    rebuilt.cells = [
        cell
        for position, own in enumerate([None, *rebuilt.cells], -1)
        for cell in ([own] if own is not None else []) + extras[position]
    ]
    return Repaired(rebuilt, notes)


def _sorted_out(
    submitted: NotebookNode, original: NotebookNode, known: KnownCells
) -> tuple[dict[int, list[Submitted]], dict[int, list[NotebookNode]], list[str]]:
    """The submission's cells by what they are: known ones, and the student's own by the position
    that they followed."""
    # Cells without a marker line, such as the imports, can still be known by their whole text.
    by_text = {
        cell.source.strip(): position
        for position, cell in enumerate(original.cells)
        if position not in known.readers
    }
    found: dict[int, list[Submitted]] = defaultdict(list)
    extras: dict[int, list[NotebookNode]] = defaultdict(list)
    weeks: set[str] = set()
    order: list[int] = []
    bare, follows = 0, -1
    for number, cell in enumerate(submitted.cells, 1):
        position = known.recognise(cell, number)
        weeks |= weeks_named(cell)
        if position is None:
            position = by_text.get(cell.source.strip())
        if position is not None:
            found[position].append(Submitted(number, cell))
            follows = position
        elif cell.source.strip():
            extras[follows].append(_extra(cell, number))
        if position in known.labels:
            order.append(position)
            bare += grade_id(cell) != grade_id(original.cells[position])
    if known.week not in weeks:
        raise Refused(
            f"This is a notebook of {', '.join(sorted(weeks))}, and {known.week} is expected."
            if weeks
            else f"This notebook holds no cell of {known.week}: hand in the course's own notebook "
            "with your code in it."
        )
    notes = []
    if bare:
        notes.append(
            f"{bare} cells had lost nbgrader's metadata and were recognised by their text."
        )
    if order != sorted(order):
        notes.append("Cells were out of order; the original order was restored.")
    if kept := sum(map(len, extras.values())):
        notes.append(f"{kept} cells of the student's own were kept for reading; they never run.")
    return found, extras, notes


def _extra(cell: NotebookNode, number: int) -> NotebookNode:
    make = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
    made: NotebookNode = make(cell.source, id=f"extra-{number}")
    made.metadata["tags"] = ["extra"]
    if cell.cell_type == "code":
        made.outputs = cell.get("outputs", [])
    return made


def _take(own: NotebookNode, candidates: list[Submitted], label: str) -> list[str]:
    """Put the student's text into `own`, the original's cell; returns the notes."""
    stub = own.source.strip()
    if not candidates:
        return [f"MISSING: the cell {label} was not in the notebook; it was restored unanswered."]
    notes = []
    attempts = [given for given in candidates if given.cell.source.strip() not in ("", stub)]
    different = {given.cell.source.strip() for given in attempts}
    if len(different) > 1:
        places = " and ".join(str(given.number) for given in attempts)
        raise Refused(
            f"The cells {places} are different answers to {label}: delete all but the one that "
            "is to be graded."
        )
    if len(candidates) > 1:
        places = ", ".join(str(given.number) for given in candidates)
        notes.append(f"{label} was there {len(candidates)} times (cells {places}); one was taken.")
    taken = (attempts or candidates)[0].cell
    if taken.cell_type != own.cell_type:
        notes.append(f"{label} had become a {taken.cell_type} cell; it is {own.cell_type} again.")
    if attempts:
        own.source = taken.source
        if taken.get("attachments") and own.cell_type == "markdown":
            own.attachments = taken.attachments
    elif not taken.source.strip():
        notes.append(f"The cell {label} was empty; it was restored unanswered.")
    return notes


def _keep_outputs(own: NotebookNode, candidates: list[Submitted]) -> None:
    """Show below a cell what it put out where the student ran it."""
    for given in candidates:
        if own.cell_type == given.cell.cell_type == "code" and given.cell.source == own.source:
            own.outputs = given.cell.get("outputs", [])


def _compare(own: NotebookNode, candidates: list[Submitted], label: str) -> list[str]:
    """Notes on a locked cell, which stays as the original has it whatever was handed in."""
    if not candidates:
        return [f"The locked cell {label} was missing and was restored."]
    if any(given.cell.source.strip() != own.source.strip() for given in candidates):
        return [f"The locked cell {label} was changed; the original is used."]
    return []


def check_student(notebook: NotebookNode, student: str) -> list[str]:
    """Raise Refused when the hand-in cell names somebody else than `student`.

    Returns a note when the cell cannot be read, which is no reason not to grade.
    """
    for cell in notebook.cells:
        if cell.source.strip().startswith("# hand-in:"):
            named = _student_in(cell.source)
            if named is None:
                return ['The hand-in cell does not say STUDENT = "…" any more.']
            if named.strip() and named.strip().casefold() != student.casefold():
                raise Refused(
                    f"The notebook names the student {named.strip()!r} and was handed in by "
                    f"{student!r}: correct the hand-in cell, or hand in your own notebook."
                )
    return []


def _student_in(source: str) -> str | None:
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    for node in statements:
        if (
            isinstance(node, ast.Assign)
            and [ast.unparse(target) for target in node.targets] == ["STUDENT"]
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            return node.value.value
    return None
