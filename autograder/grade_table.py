"""What became of each submission: as rows, as a table on the screen, as CSV."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inferlab.lab.json_file import write_text


@dataclass
class Row:
    """What became of one submission."""

    student: str
    status: str  # graded, refused or failed
    notes: list[str] = field(default_factory=list)
    exercises: dict[str, float] = field(default_factory=dict)
    other: dict[str, float] = field(default_factory=dict)
    by_hand: list[str] = field(default_factory=list)  # cells that a human has yet to mark

    @property
    def exercise_points(self) -> float:
        """Points of all exercises together."""
        return round(sum(self.exercises.values()), 2)

    @property
    def points(self) -> float:
        """All points so far; those to be given by hand are not in it yet."""
        return round(self.exercise_points + sum(self.other.values()), 2)


def write_table(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV, a column for each graded cell.

    Raises OSError where the disk is full; an earlier table stays then.
    """
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    other = list(dict.fromkeys(name for row in rows for name in row.other))
    head = ["student", "status", *exercises, "exercises", *other, "points", "by hand", "notes"]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(head)
    for row in rows:
        graded = row.status == "graded"
        cells = [row.exercises.get(name, "") for name in exercises]
        cells += [row.exercise_points if graded else ""]
        cells += [row.other.get(name, "") for name in other]
        cells += [row.points if graded else "", " ".join(row.by_hand), " ".join(row.notes)]
        writer.writerow(map(plain_text, [row.student, row.status, *cells]))
    write_text(path, table.getvalue())


def plain_text(value: object) -> object:
    """A spreadsheet takes a text that begins like a formula for one; a student may write such."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def show(rows: list[Row], console: Console) -> None:
    """Print the rows as a table, and every note below it."""
    exercises = list(dict.fromkeys(name for row in rows for name in row.exercises))
    table = Table("student", *exercises, "exercises", "points so far", "by hand")
    for row in rows:
        if row.status != "graded":
            cells = [""] * len(exercises) + [f"[red]{row.status}[/]", "", ""]
        else:
            cells = [f"{row.exercises[name]:g}" for name in exercises]
            cells += [f"{row.exercise_points:g}", f"{row.points:g}", str(len(row.by_hand))]
        table.add_row(escape(row.student), *cells)
    console.print(table)
    for row in rows:
        for note in row.notes:
            console.print(f"[bold]{escape(row.student)}[/]: {escape(note)}", soft_wrap=True)
