"""What an attack is, and all of those that consist of one cell."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from nbformat import NotebookNode

from autograder.practice_course import EXERCISE, answered

CELLS = Path(__file__).with_name("cells.yml")
Aim = Literal["marks", "secrets", "harm"]


def nothing_more(folder: Path) -> None:
    """Hand in nothing beside the notebook."""


class Attack(NamedTuple):
    """A hostile submission; its exercise is answered wrongly, so that honest marks are none."""

    kind: str  # one of the classes of the instructor guide's table
    name: str
    aim: Aim
    change: Callable[[NotebookNode], NotebookNode]  # makes it of the student's notebook
    add: Callable[[Path], None] = nothing_more  # puts more into the folder that is handed in


def wrong_answer() -> str:
    """The cell that all attacks begin with."""
    return str(_cells()["prelude"])


def attacks_of_one_cell() -> list[Attack]:
    """The attacks in `cells.yml`."""
    found = _cells()
    prelude = found.pop("prelude")
    return [
        Attack(kind, entry["name"], entry["aim"], _with_cell(f"{prelude}\n{entry['cell']}"))
        for kind, entries in found.items()
        for entry in entries
    ]


def _cells() -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(CELLS.read_text(encoding="utf-8"))
    return loaded


def _with_cell(source: str) -> Callable[[NotebookNode], NotebookNode]:
    return lambda notebook: answered(notebook, {EXERCISE: source})
