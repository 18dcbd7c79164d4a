"""Looks for solutions, probes and model answers in what is handed out: a bundle, or the site.

Solutions are compared as code: `ast.unparse` takes comments, line breaks and layout out of them;
what remains is compared without white space, quotes, brackets and commas, so that a solution is
also found in prose, in a JSON string or commented out. Model answers are looked for sentence by
sentence. Out of scope: a solution whose variables
have been renamed or whose statements have been rewritten; nobody leaks that by accident.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from inferlab.publish.exercise import is_exercise, read_exercise
from inferlab.publish.expand import STUB
from inferlab.publish.module import Function, Module
from inferlab.publish.page import read_chapter

PROBES = Path("autograder/probes")
RUBRICS = Path("autograder/rubrics")
MARKERS = ("BEGIN SOLUTION", "BEGIN HIDDEN TESTS", "BEGIN MARK SCHEME")
# The site's vendored scripts and styles: megabytes into which no page is written.
NOT_READ = (".css", ".js", ".map")
RUN_OF_LINES = 3
# Of a sentence, or of a body with fewer lines than a run; below, `return value` would be a solution
# on every page.
FEWEST_CHARACTERS = 40
SENTENCE_END = re.compile(r"(?<=[.:?!])\s+")

COMMENT = re.compile(r"#[^\n]*")
LINE_MARK = re.compile(r"^[ \t]*(?:>|\.\.\.)+", re.MULTILINE)  # of a quote or a console
STRING_PREFIX = re.compile(r"\b[bfru]{1,2}(?=['\"])", re.IGNORECASE)
LAYOUT = re.compile(r"\\[nt]|[\s\\'\"`(),;#]")


class Text(NamedTuple):
    """A piece of a file; `is_python` where it claims to be code."""

    place: str
    content: str
    is_python: bool = False


@dataclass(frozen=True)
class Secret:
    """What may not be handed out: a function of the reference or of the probes, or an answer."""

    name: str
    runs: frozenset[str]  # of a function every three consecutive lines, without layout
    is_probe: bool = False

    @classmethod
    def of(cls, name: str, function: Function, is_probe: bool = False) -> "Secret":
        """The secret that a function's body is; a docstring may be shown and is no part of it."""
        source = _body(function)
        lines = [_without_layout(line) for line in source.split("\n")]
        if len(lines) < RUN_OF_LINES:
            whole = "".join(lines)
            return cls(
                name, frozenset([whole] if len(whole) >= FEWEST_CHARACTERS else []), is_probe
            )
        runs = zip(*(lines[i:] for i in range(RUN_OF_LINES)))
        return cls(name, frozenset("".join(run) for run in runs), is_probe)


def leaks(bundle: Path, root: Path, week: str) -> list[str]:
    """One sentence for every solution, probe or answer of `week` found in a file below `bundle`.

    The exercises are read from the chapter below `root`. Raises FileNotFoundError when the week has
    no chapter, ValueError or PublishError when its exercises cannot be read.
    """
    solutions = _solutions(root, week)
    members, homes = {solution.name for solution in solutions}, _homes(root, week)
    hidden = [*_probes(root, week), *_answers(root, week)]
    found: list[str] = []
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        if path.suffix == ".pyc":
            found.append(f"{path.relative_to(bundle)}: compiled code; leave it out.")
            continue
        place = path.relative_to(bundle)
        # Another module of the package may use a member's name for a function of its own.
        is_other = place not in homes and _is_same(path, root / place)
        for text in _texts(path, place.as_posix()):
            found += _leaks_in(text, set() if is_other else members, solutions, hidden)
    return list(dict.fromkeys(found))


def _leaks_in(
    text: Text, members: set[str], solutions: list[Secret], hidden: list[Secret]
) -> Iterator[str]:
    tree = _parsed(text.content) if text.is_python else None
    if tree:
        for name, function in _functions(tree):
            if name in members and _body(function) != STUB[1]:
                yield f"{text.place}: {name} has a body; it must be the stub."
            if _is_probe(function):
                yield f"{text.place}: {name} is a probe; probes stay with the grader."
    forms = _forms(text.content, tree)
    for secret in [*solutions, *hidden]:
        if any(run in form for run in secret.runs for form in forms):
            yield (
                f"{text.place}: lines of {secret.name}; "
                "solutions, probes and model answers may not be handed out."
            )
        if secret.is_probe and re.search(rf"\b{secret.name}\b", text.content):
            yield (
                f"{text.place}: the name of the probe {secret.name}; take it out, or rename the "
                "probe if the words are innocent."
            )
    for marker in MARKERS:
        if marker in text.content:
            yield f"{text.place}: the marker {marker!r}; nbgrader should have removed it."


def _homes(root: Path, week: str) -> set[Path]:
    """The modules that define the week's members, relative to `root`."""
    return {
        Path(*module.split(".")).with_suffix(".py")
        for cell in read_chapter(root, week).cells
        if is_exercise(cell.source, cell.metadata)
        for module in read_exercise(cell.source, cell.metadata).homes
    }


def _is_same(path: Path, other: Path) -> bool:
    return path.suffix == ".py" and other.is_file() and path.read_bytes() == other.read_bytes()


def _solutions(root: Path, week: str) -> list[Secret]:
    return [
        Secret.of(member, Module.read(root, module).function(member))
        for cell in read_chapter(root, week).cells
        if is_exercise(cell.source, cell.metadata)
        for module, members in read_exercise(cell.source, cell.metadata).homes.items()
        for member in members
    ]


def _probes(root: Path, week: str) -> list[Secret]:
    """All functions of the week's probes, those that make the inputs included."""
    return [
        Secret.of(name, function, is_probe=_is_probe(function))
        for path in sorted((root / PROBES / week).glob("*.py"))
        for name, function in _functions(ast.parse(path.read_text(encoding="utf-8")))
    ]


def _answers(root: Path, week: str) -> list[Secret]:
    """The model answers and the marked samples of the week's written questions."""
    path = root / RUBRICS / f"{week}.yml"
    if not path.is_file():
        return []
    rubrics = yaml.safe_load(path.read_text(encoding="utf-8"))
    texts = [(name, entry.get("model_answer", "")) for name, entry in rubrics.items()]
    texts += [
        (name, sample["answer"])
        for name, entry in rubrics.items()
        for sample in entry.get("samples", [])
    ]
    return [
        Secret(
            f"an answer to {name}",
            frozenset(
                bare
                for bare in map(_without_layout, SENTENCE_END.split(text))
                if len(bare) >= FEWEST_CHARACTERS
            ),
        )
        for name, text in texts
    ]


def _functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, Function]]:
    """Every function at any depth, with the name by which an exercise would list it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield owner + child.name, child
        yield from _functions(child, f"{child.name}." if isinstance(child, ast.ClassDef) else owner)


def _body(function: Function) -> str:
    statements = function.body[ast.get_docstring(function) is not None :]
    return "\n".join(ast.unparse(statement) for statement in statements)


def _is_probe(function: Function) -> bool:
    return any(
        re.match(r"(\w+\.)*probe\b", ast.unparse(decorator))
        for decorator in function.decorator_list
    )


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError):
        return None


def _forms(content: str, tree: ast.Module | None) -> list[str]:
    """The text without layout: without its comments, with them, and as code where it is code."""
    forms = [_without_layout(COMMENT.sub("", content)), _without_layout(content)]
    return [*forms, _without_layout(ast.unparse(tree))] if tree else forms


def _without_layout(text: str) -> str:
    return LAYOUT.sub("", STRING_PREFIX.sub("", LINE_MARK.sub("", text)))


def _texts(path: Path, place: str) -> Iterator[Text]:
    """The readable content of a file; nothing for one that is not text."""
    if path.suffix in NOT_READ:
        return
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    match path.suffix:
        case ".py":
            yield Text(place, content, is_python=True)
        case ".ipynb":
            yield from _notebook_texts(content, place)
        case ".json":
            yield Text(place, "\n".join(_strings(json.loads(content))))
        case ".md":
            yield from _markdown_texts(content, place)
        case ".html":
            page = BeautifulSoup(content, "html.parser")
            yield Text(place, "".join(page.find_all(string=True)))
            yield from (Text(place, block.get_text(), True) for block in page.find_all("pre"))
        case _:
            yield Text(place, content)


def _notebook_texts(content: str, place: str) -> Iterator[Text]:
    # Outputs, attachments and metadata can hold a solution as well as the cells.
    yield Text(place, "\n".join(_strings(json.loads(content))))
    for number, cell in enumerate(nbformat.reads(content, as_version=4).cells, start=1):
        where = f"{place}, cell {number}"
        if cell.cell_type == "code":
            yield Text(where, cell.source, is_python=True)
        else:
            yield from _markdown_texts(cell.source, where)


def _markdown_texts(content: str, place: str) -> Iterator[Text]:
    yield Text(place, content)
    for token in MarkdownIt().parse(content):
        if token.type in ("fence", "code_block"):
            yield Text(place, token.content, is_python=True)


def _strings(data: Any) -> Iterator[str]:
    """Every string in JSON data, keys included; a list of lines yields the lines in order."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, list):
        for item in data:
            yield from _strings(item)
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _strings(value)
