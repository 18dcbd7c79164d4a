"""The instructor's notebook of a chapter; nbgrader makes the student's from it.

Both are read where MyST is not understood, so the prose becomes plain Jupyter Markdown. The first
line of a graded cell names it for good: some front ends drop nbgrader's metadata.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from inferlab.publish.answers import ANSWER, Questions, question
from inferlab.publish.exercise import Exercise, is_exercise, read_exercise
from inferlab.publish.expand import SOLUTION, expand
from inferlab.publish.jupyter_markdown import to_jupyter
from inferlab.publish.page import Cell, Page
from inferlab.publish.problems import PublishError
from inferlab.publish.roles import References, substitute

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TEST = re.compile(r"# test: (\S+)")


class Parts(NamedTuple):
    """What a notebook holds beside the chapter's own cells."""

    bootstrap: str  # source of the cell that prepares a kernel
    hidden_cells: Mapping[str, str]  # source of the probes' cell, by exercise
    questions: Questions  # by the name of the answer cell
    site_url: str


def exercises(page: Page) -> dict[str, tuple[str, Exercise]]:
    """The chapter's exercises by name, each with the heading under which it stands."""
    found: dict[str, tuple[str, Exercise]] = {}
    heading = ""
    for cell in page.cells:
        if cell.kind == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
        elif is_exercise(cell.source, cell.metadata):
            exercise = read_exercise(cell.source, cell.metadata)
            found[exercise.name] = heading, exercise
    return found


def instructor_edition(
    root: Path, page: Page, references: References, parts: Parts
) -> NotebookNode:
    """The nbgrader source notebook of a chapter, with solutions, probes and model answers.

    Raises PublishError for Markdown that has no plain form, for an answer cell without a rubric,
    and for an exercise that cannot be expanded.
    """
    notebook = nbformat.v4.new_notebook()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata.update({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in page.cells:
        try:
            if cell.kind == "markdown":
                notebook.cells += _prose_and_answers(page, cell, references, parts)
            elif cell.kind == "code":
                notebook.cells += _code(root, page, cell, parts)
        except ValueError as error:
            raise PublishError([page.problem(cell.line, str(error))]) from error
    for number, made in enumerate(notebook.cells):
        made.id = made.metadata.get("nbgrader", {}).get("grade_id", f"{page.week}-cell-{number}")
    return notebook


def _prose_and_answers(
    page: Page, cell: Cell, references: References, parts: Parts
) -> Iterator[NotebookNode]:
    source, problems = substitute(page, cell, references)
    if problems:
        raise PublishError(problems)
    # Split keeps what it splits at: prose, name, prose, name, …, prose.
    for position, piece in enumerate(ANSWER.split(source)):
        if position % 2:
            yield _answer(piece, parts)
        elif piece.strip():
            text = to_jupyter(piece.strip(), parts.site_url, page.name)
            yield nbformat.v4.new_markdown_cell(text)


def _answer(name: str, parts: Parts) -> NotebookNode:
    found = question(parts.questions, name)
    lines = [f"<!-- answer: {name} -->", f"**{found.prompt}** ({found.points} points)"]
    if not found.is_written:
        return _cell("markdown", "\n".join(lines), name, points=found.points, kind="task")
    lines += ["", SOLUTION[0], found.model_answer.strip(), SOLUTION[1]]
    return _cell("markdown", "\n".join(lines), name, points=found.points, kind="answer")


def _code(root: Path, page: Page, cell: Cell, parts: Parts) -> Iterator[NotebookNode]:
    tags = list(cell.metadata.get("tags", []))
    if is_exercise(cell.source, cell.metadata):
        exercise = read_exercise(cell.source, cell.metadata)
        source = expand(root, exercise, solution=True)
        yield _cell("code", source, exercise.name, kind="exercise", tags=["exercise"])
    elif test := TEST.match(cell.source):
        # Without the second tag the notebook would stop at the first exercise not yet solved.
        tags = ["test", "raises-exception"]
        yield _cell("code", cell.source, f"{test[1]}-test", tags=tags)
        points = read_points(page, test[1])
        source = parts.hidden_cells[test[1]]
        yield _cell("code", source, f"{test[1]}-probes", points=points, kind="probes")
    elif "setup" in tags and (number := _number_of_setup(page, cell)) > 1:
        yield _cell("code", cell.source, f"{page.week}-setup-{number}", tags=["setup"])
    elif "setup" in tags:
        yield _cell("code", parts.bootstrap, f"{page.week}-setup-course", tags=["setup"])
        yield nbformat.v4.new_code_cell(
            f"# hand-in: {page.week}\n"
            "# Your student id, as your instructor knows it. A notebook that names another\n"
            "# student than the one who hands it in is not graded.\n"
            'STUDENT = ""'
        )
        yield _cell("code", cell.source, f"{page.week}-setup", tags=["setup"])
    else:
        plain = nbformat.v4.new_code_cell(cell.source)
        if "hide-input" in tags:
            plain.metadata["jupyter"] = {"source_hidden": True}
        yield plain


def _number_of_setup(page: Page, cell: Cell) -> int:
    """Which of the chapter's setup cells this is, from 1."""
    found = [one for one in page.cells if "setup" in one.metadata.get("tags", [])]
    return found.index(cell) + 1


def read_points(page: Page, exercise: str) -> int:
    """Points of an exercise of the page."""
    return exercises(page)[exercise][1].points


# What nbgrader has to know of each kind of cell: grade, solution, task, locked.
KINDS = {
    "given": (False, False, False, True),
    "exercise": (False, True, False, False),
    "probes": (True, False, False, True),
    "answer": (True, True, False, False),
    "task": (False, False, True, True),
}


def _cell(
    cell_type: str,
    source: str,
    name: str,
    *,
    kind: str = "given",
    points: int = 0,
    tags: list[str] | None = None,
) -> NotebookNode:
    grade, solution, task, locked = KINDS[kind]
    nbgrader = {
        "grade_id": name,
        "grade": grade,
        "solution": solution,
        "task": task,
        "locked": locked,
        "schema_version": 3,
    }
    if points:
        nbgrader["points"] = points
    metadata = {"nbgrader": nbgrader} | ({"tags": tags} if tags else {})
    make = getattr(nbformat.v4, f"new_{cell_type}_cell")
    made: NotebookNode = make(source.rstrip("\n"), metadata=nbformat.from_dict(metadata))
    return made
