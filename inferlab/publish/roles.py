"""Roles that staging replaces by text, so that book and student edition share one mechanism.

| role | becomes |
|---|---|
| {say}`name` or {say}`name:.1f` | what the cell with `say("name", …)` computed, and its unit |
| {given}`2,039 GB/s <key>` | the words, linked to the entry `key` of `book/sources.yml` |
| {src}`vllm/v1/…/block_pool.py:BlockPool.touch` | itself, linked to the line at the pinned tag |

Plain code fences and code spans of two backticks are left alone, so a page can show a role.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pydantic
import yaml

from inferlab.notebook import Said, format_said
from inferlab.publish.citations import Citation
from inferlab.publish.page import Cell, Page
from inferlab.publish.problems import Problem, PublishError

ROLE = re.compile(
    r"(?P<literal>^(?P<fence>`{3,})(?:(?!\{)|\{(?:code-block|code|math)\})[^\n]*\n"
    r".*?^(?P=fence)[ ]*$"
    r"|(?<!`)``(?!`).+?(?<!`)``(?!`))"
    r"|\{(?P<role>say|given|src)\}`(?P<text>[^`]*)`",
    re.DOTALL | re.MULTILINE,
)


class Source(pydantic.BaseModel):
    """Where a given number comes from: one entry of `book/sources.yml`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    title: str
    author: str
    year: int
    url: str
    venue: str | None = None

    @property
    def reference(self) -> str:
        """`author, title, venue, year` on one line."""
        return ", ".join(
            part for part in (self.author, self.title, self.venue, str(self.year)) if part
        )


def load_sources(root: Path) -> dict[str, Source]:
    """Read `book/sources.yml`; raises PublishError naming every entry that is not a source."""
    path = Path("book/sources.yml")
    if not (root / path).exists():
        return {}
    try:
        entries = yaml.safe_load((root / path).read_text(encoding="utf-8")) or {}
        return pydantic.TypeAdapter(dict[str, Source]).validate_python(entries)
    except yaml.YAMLError as error:
        raise PublishError([Problem(path, 1, f"The file is not YAML: {error}")]) from error
    except pydantic.ValidationError as error:
        raise PublishError(
            Problem(path, 1, f"Entry {'.'.join(map(str, seen['loc']))}: {seen['msg']}.")
            for seen in error.errors()
        ) from error


@dataclass(frozen=True)
class References:
    """Everything a role may refer to."""

    said: dict[str, Said] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    citations: dict[str, Citation] = field(default_factory=dict)


def substitute(page: Page, cell: Cell, references: References) -> tuple[str, list[Problem]]:
    """Replace every role of a Markdown cell; an unknown name is a problem at its line."""
    problems: list[Problem] = []
    renderers: dict[str, Callable[[str], str]] = {
        "say": lambda text: _say(text, references.said),
        "given": lambda text: _given(text, references.sources),
        "src": lambda text: _src(text, references.citations),
    }

    def replace(match: re.Match[str]) -> str:
        if match["literal"]:
            return match[0]
        try:
            return renderers[match["role"]](match["text"])
        except ValueError as error:
            line = cell.line + cell.source.count("\n", 0, match.start())
            problems.append(page.problem(line, str(error)))
            return match[0]

    return ROLE.sub(replace, cell.source), problems


def cited_symbols(page: Page) -> set[str]:
    """The text of every {src} role of the page."""
    return {
        match["text"]
        for cell in page.cells
        if cell.kind == "markdown"
        for match in ROLE.finditer(cell.source)
        if match["role"] == "src"
    }


def _say(text: str, said: dict[str, Said]) -> str:
    name, _, spec = text.partition(":")
    if name not in said:
        known = ", ".join(sorted(said)) or "none"
        raise ValueError(
            f"The prose says {name!r}, but no cell of this page calls say({name!r}, …); "
            f"names said here: {known}."
        )
    return format_said(said[name], spec)


def _given(text: str, sources: dict[str, Source]) -> str:
    match = re.fullmatch(r"(.+?)\s*<([^<>]+)>", text, re.DOTALL)
    if not match:
        raise ValueError(f"Given number {text!r} names no source; write {{given}}`{text} <key>`.")
    words, key = match.groups()
    if key not in sources:
        known = ", ".join(sorted(sources)) or "none"
        raise ValueError(
            f"Source {key!r} is not in book/sources.yml; add it there, or use one of: {known}."
        )
    source = sources[key]
    title = source.reference.replace('"', "'")
    return f'[{words}]({source.url} "Source: {title}")'


def _src(text: str, citations: dict[str, Citation]) -> str:
    if text not in citations:
        raise ValueError(
            f"Citation {text!r} is not in book/citations.json; "
            "run `python -m inferlab.publish citations` where the engines are installed."
        )
    return f"[`{text}`]({citations[text].url})"
