"""Checks that a chapter holds the fixed sections in order, and what each must contain."""

import ast
import re
from collections.abc import Iterator

from inferlab.publish.exercise import is_exercise, read_exercise
from inferlab.publish.page import Cell, Page
from inferlab.publish.problems import Problem

SPINE = (
    "opening observe theory build kernel assemble experiment sweep source limits analysis closing"
).split()
LABEL = re.compile(r"^\((week\d\d)-([a-z]+)\)=$\n+(#.*)?", re.MULTILINE)
FEWEST_EXERCISES, MOST_EXERCISES = 3, 6
EXERCISE_POINTS = 40  # of a chapter's 100; the other 60 are the lab's


def check_spine(page: Page) -> list[Problem]:
    """Problems of a chapter's structure.

    A chapter without a kernel says so in its front matter: `inferlab: {kernel: false}`.
    """
    has_kernel = page.front_matter.get("inferlab", {}).get("kernel", True)
    expected = [tag for tag in SPINE if has_kernel or tag != "kernel"]
    problems = []
    found: list[str] = []
    for tag, line, has_heading in _labels(page):
        if not has_heading:
            problems.append(
                page.problem(line, f"The label ({page.week}-{tag})= is not followed by a heading.")
            )
        if tag in found:
            problems.append(page.problem(line, f"The section {tag!r} appears twice."))
            continue
        if late := [tag for later in found if expected.index(later) > expected.index(tag)]:
            problems.append(
                page.problem(
                    line,
                    f"The section {late[0]!r} is out of order; the order is {', '.join(expected)}.",
                )
            )
        found.append(tag)
    for tag in expected:
        if tag not in found:
            problems.append(
                page.problem(
                    1,
                    f"The section {tag!r} is missing: "
                    f"write ({page.week}-{tag})= on the line above its heading.",
                )
            )
    return problems or [*_exercise_problems(page), *_content_problems(page)]


def sections(page: Page) -> dict[str, list[Cell]]:
    """Code cells of the chapter by section tag."""
    labels = [(line, tag) for tag, line, _ in _labels(page)]
    result: dict[str, list[Cell]] = {tag: [] for _, tag in labels}
    for cell in page.cells:
        before = [tag for line, tag in labels if line <= cell.line]
        if cell.kind == "code" and before:
            result[before[-1]].append(cell)
    return result


def _labels(page: Page) -> Iterator[tuple[str, int, bool]]:
    for cell in page.cells:
        if cell.kind == "markdown":
            for match in LABEL.finditer(cell.source):
                if match[1] == page.week and match[2] in SPINE:
                    line = cell.line + cell.source.count("\n", 0, match.start())
                    yield match[2], line, match[3] is not None


def _exercise_problems(page: Page) -> list[Problem]:
    problems = []
    code = [cell for cell in page.cells if cell.kind == "code"]
    if code and "setup" not in code[0].metadata.get("tags", []):
        problems.append(
            page.problem(
                code[0].line,
                "The first code cell must import what exercises and their tests need and carry the "
                "tag setup: the student notebook is prepared before it, and grading runs it.",
            )
        )
    count = points = 0
    for cell, following in zip(code, [*code[1:], None]):
        if not is_exercise(cell.source, cell.metadata):
            continue
        count += 1
        try:
            exercise = read_exercise(cell.source, cell.metadata)
        except ValueError as error:
            problems.append(page.problem(cell.line, str(error)))
            continue
        name = exercise.name
        points += exercise.points
        if following is None or not following.source.startswith(f"# test: {name}\n"):
            problems.append(
                page.problem(
                    cell.line,
                    f"Exercise {name} is not followed by its visible test: the next code cell "
                    f"must begin with the line `# test: {name}`.",
                )
            )
    if not FEWEST_EXERCISES <= count <= MOST_EXERCISES:
        problems.append(
            page.problem(
                1,
                f"The chapter has {count} exercises; "
                f"it must have {FEWEST_EXERCISES} to {MOST_EXERCISES}.",
            )
        )
    if not problems and points != EXERCISE_POINTS:
        problems.append(
            page.problem(
                1, f"The exercises are worth {points} points together, not {EXERCISE_POINTS}."
            )
        )
    return problems


def _content_problems(page: Page) -> list[Problem]:
    problems = []
    by_section = sections(page)
    if "show" not in {name for cell in by_section["theory"] for name, _ in calls(cell.source)}:
        problems.append(
            page.problem(1, "The theory section calls show(…) nowhere: it needs a figure.")
        )
    compared = [
        (cell, argument)
        for cell in by_section["experiment"]
        for name, argument in calls(cell.source)
        if name == "predict.compare"
    ]
    if not compared:
        problems.append(page.problem(1, "The experiment section calls predict.compare(…) nowhere."))
    for cell, argument in compared:
        predicted = {
            said
            for earlier in page.cells
            if earlier.kind == "code" and earlier.line < cell.line
            for name, said in calls(earlier.source)
            if name == "predict"
        }
        if argument not in predicted:
            problems.append(
                page.problem(
                    cell.line,
                    f"The result {argument!r} is compared with a prediction that no earlier cell "
                    f"asks for: call predict({argument!r}, …) in a cell before this one.",
                )
            )
    return problems


def calls(source: str) -> list[tuple[str, str | None]]:
    """Every call in a cell: its dotted name without `inferlab.`, and its first string argument.

    Cells with IPython magic cannot be parsed as Python and count as holding no call.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    return [
        (
            ast.unparse(node.func).removeprefix("inferlab."),
            next(
                (
                    a.value
                    for a in node.args
                    if isinstance(a, ast.Constant) and isinstance(a.value, str)
                ),
                None,
            ),
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]
