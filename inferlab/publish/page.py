"""Reads one page of the book: a prose page or a MyST text notebook, with the line of every cell."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jupytext.myst import myst_to_notebook

from inferlab.publish.problems import Problem, PublishError

CHAPTER_NAME = re.compile(r"(week\d\d)-[a-z0-9-]+")


@dataclass(frozen=True)
class Cell:
    """`line` is the line of the source file, counted from 1, that holds the cell's first line."""

    kind: Literal["markdown", "code", "raw"]
    source: str
    line: int
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """`path` is relative to the repository root; a prose page is a single Markdown cell."""

    path: Path
    text: str
    cells: list[Cell]
    is_notebook: bool
    front_matter: dict[str, Any]

    @property
    def name(self) -> str:
        """Path without suffix: what `_toc.yml` calls the page."""
        return self.path.with_suffix("").as_posix()

    @property
    def week(self) -> str | None:
        """`week04` for a chapter, None for any other page."""
        match = CHAPTER_NAME.fullmatch(self.path.stem)
        return match[1] if match and self.is_notebook else None

    def problem(self, line: int, message: str) -> Problem:
        """A problem of this page."""
        return Problem(self.path, line, message)


def read_page(root: Path, path: Path) -> Page:
    """Read `root / path`.

    Raises PublishError when the front matter is not YAML or a notebook lacks jupytext's header
    (without it Jupyter Book would show the cells as text).
    """
    text = (root / path).read_text(encoding="utf-8")
    try:
        front_matter = _front_matter(text)
    except yaml.YAMLError as error:
        raise PublishError([Problem(path, 1, f"The front matter is not YAML: {error}")]) from error
    representation = front_matter.get("jupytext", {}).get("text_representation", {})
    if representation.get("format_name") == "myst":
        return Page(path, text, _notebook_cells(text), True, front_matter)
    if re.search(r"^```+\{code-cell\}", text, re.MULTILINE):
        raise PublishError(
            [
                Problem(
                    path,
                    1,
                    "The page holds code cells but its front matter has no jupytext header with "
                    "text_representation: format_name: myst; copy the one of another chapter.",
                )
            ]
        )
    return Page(path, text, [Cell("markdown", text, 1)], False, front_matter)


def written_weeks(root: Path) -> list[str]:
    """The weeks whose chapter exists, for example `["week04"]`."""
    return sorted(path.name[:6] for path in (root / "notebooks").glob("week[0-9][0-9]-*.md"))


def read_chapter(root: Path, week: str) -> Page:
    """Read the chapter of `week`; raises FileNotFoundError when it is not written."""
    found = sorted((root / "notebooks").glob(f"{week}-*.md"))
    if not found:
        raise FileNotFoundError(
            f"There is no chapter notebooks/{week}-….md: give the week of a written chapter, "
            "for example WEEK=04."
        )
    return read_page(root, found[0].relative_to(root))


def _front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


def _notebook_cells(text: str) -> list[Cell]:
    notebook = myst_to_notebook(text, add_source_map=True)
    lines = text.splitlines()
    cells = []
    for cell, start in zip(notebook.cells, notebook.metadata["source_map"]):
        # jupytext maps a cell to its fence; options and blank lines may precede the source.
        first = cell.source.partition("\n")[0]
        line = start
        while line < len(lines) and lines[line] != first:
            line += 1
        cells.append(Cell(cell.cell_type, cell.source, line + 1, dict(cell.metadata)))
    return cells
