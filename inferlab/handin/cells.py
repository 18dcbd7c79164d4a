"""Recognises the cells of a week's notebook: by nbgrader's metadata, else by the marker line.

Colab and others may drop the metadata, and a student may copy, merge or retype a cell. What the
original notebook holds decides which names and markers there are.
"""

import re
from collections import Counter
from dataclasses import dataclass

from nbformat import NotebookNode

from inferlab.handin.notebook_file import Refused

MARKER = re.compile(r"# (?:setup|exercise|test|probes|hand-in): \S+|<!-- answer: \S+ -->")
WEEK = re.compile(r"week\d\d")


def grade_id(cell: NotebookNode) -> str:
    """The name nbgrader knows the cell by; empty where a front end dropped it."""
    nbgrader = cell.metadata.get("nbgrader", {})
    name = nbgrader.get("grade_id", "") if isinstance(nbgrader, dict) else ""
    return name if isinstance(name, str) else ""


def markers(source: str) -> list[str]:
    """Every line of the source that is written like a marker."""
    return [line for line in map(str.strip, source.split("\n")) if MARKER.fullmatch(line)]


def first_marker(source: str) -> str:
    """The marker the cell begins with; empty where it begins with something else."""
    first, _, _ = source.strip().partition("\n")
    return first.strip() if MARKER.fullmatch(first.strip()) else ""


def has_tag(cell: NotebookNode, *tags: str) -> bool:
    """Whether the cell carries one of `tags`."""
    return any(tag in cell.metadata.get("tags", []) for tag in tags)


@dataclass(frozen=True)
class KnownCells:
    """The permanent cells of an original notebook, each by its position there."""

    week: str
    labels: dict[int, str]  # what to call the cell in a message
    by_grade_id: dict[str, int]
    by_marker: dict[str, int]
    readers: frozenset[int]  # the cells a student writes into

    @classmethod
    def of(cls, original: NotebookNode) -> "KnownCells":
        """What `original` holds; the week is the one that most of its names begin with."""
        by_grade_id: dict[str, int] = {}
        by_marker: dict[str, int] = {}
        readers: set[int] = set()
        for position, cell in enumerate(original.cells):
            if name := grade_id(cell):
                by_grade_id[name] = position
            if marker := first_marker(cell.source):
                by_marker[marker] = position
            written = cell.metadata.get("nbgrader", {}).get("solution") is True
            if written or marker.startswith("# hand-in:"):
                readers.add(position)
        labels = {position: marker for marker, position in by_marker.items()}
        labels |= {position: name for name, position in by_grade_id.items()}
        weeks = Counter(week for name in by_grade_id if (week := _week_of(name)))
        if not weeks:
            raise Refused("The original notebook names no week: fetch the week's bundle again.")
        return cls(weeks.most_common(1)[0][0], labels, by_grade_id, by_marker, frozenset(readers))

    def recognise(self, cell: NotebookNode, number: int) -> int | None:
        """Position in the original of the cell that is `number` in the submission, or None.

        Raises Refused when metadata and marker disagree, or when the cell holds two answers.
        """
        named = self.by_grade_id.get(grade_id(cell))
        first = self.by_marker.get(first_marker(cell.source))
        found = {self.by_marker[line] for line in markers(cell.source) if line in self.by_marker}
        written = found & self.readers
        if named is not None:
            others = written | ({first} if first is not None else set())
            if others - {named}:
                other = self.labels[min(others - {named})]
                raise Refused(
                    f"Cell {number} is {self.labels[named]} by its metadata and {other} by a line "
                    f"in its text: give {other} a cell of its own, as in the original notebook."
                )
            return named
        if len(written) > 1:
            both = " and ".join(self.labels[position] for position in sorted(written))
            raise Refused(f"Cell {number} holds {both}: give each a cell of its own.")
        return min(written or found, default=None)


def weeks_named(cell: NotebookNode) -> set[str]:
    """The weeks that the names in a cell belong to."""
    return {_week_of(text) for text in [grade_id(cell), *markers(cell.source)]} - {""}


def _week_of(text: str) -> str:
    found = WEEK.search(text)
    return found[0] if found else ""
