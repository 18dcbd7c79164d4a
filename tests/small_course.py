"""A course of two trivial exercises with the cells of a real one, released by nbgrader itself."""

import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

from autograder.course import prepare_course, run_nbgrader
from autograder.graded_exercises import package_folder

WEEK = "week04"
NOTEBOOK = "week04-paged-attention.ipynb"
EXERCISES = {
    "week04-double": ("double", "2 * x", "assert double(3) == 6", "double(x) == 2 * x"),
    "week04-square": ("square", "x * x", "assert square(3) == 9", "square(x) == x * x"),
}
# Grading must not run it: a real one fetches the bundle.
BOOTSTRAP = """# setup: course
import os
assert "NBGRADER_EXECUTION" not in os.environ"""
POINTS = {"week04-double": 5, "week04-square": 4}


def make_course(folder: Path) -> Path:
    """The course directory in `folder`, with the week released as `make release` does it."""
    course = prepare_course(folder)
    source = course / "source" / WEEK / NOTEBOOK
    source.parent.mkdir(parents=True)
    nbformat.write(instructor_notebook(), source)
    run_nbgrader(course, "generate_assignment", WEEK)
    for name in EXERCISES:
        package_folder(course, WEEK, name).mkdir(parents=True)
    return course


def student_notebook() -> NotebookNode:
    """What nbgrader makes of the instructor's notebook, as far as a student can see."""
    notebook = instructor_notebook()
    for step in (ClearSolutions(), ClearHiddenTests()):
        notebook, _ = step.preprocess(notebook, {})
    return notebook


def make_bundle(folder: Path) -> Path:
    """The student's folder: the notebook, its original, and the manifest."""
    (folder / "original").mkdir(parents=True)
    for path in (folder / NOTEBOOK, folder / "original" / NOTEBOOK):
        nbformat.write(student_notebook(), path)
    exercises = [{"name": name, "title": f"Exercise {name}", "members": []} for name in EXERCISES]
    manifest = {"week": WEEK, "notebook": NOTEBOOK, "version": "0.1.0", "exercises": exercises}
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def instructor_notebook() -> NotebookNode:
    """Every kind of cell of the common table, for two exercises."""
    cells = [
        prose("# A small week"),
        code(BOOTSTRAP, "setup-course", ["setup"]),
        code('# hand-in: week04\n# Your id.\nSTUDENT = ""'),
        code("import math", "setup", ["setup"]),
    ]
    for name, (function, body, test, probe) in EXERCISES.items():
        short = name.removeprefix("week04-")
        cells += [
            prose(f"## Write {function}"),
            code(
                f"# exercise: {name}\ndef {function}(x):\n"
                f"    ### BEGIN SOLUTION\n    return {body}\n    ### END SOLUTION",
                short,
                ["exercise"],
                solution=True,
                locked=False,
            ),
            code(f"# test: {name}\n{test}", f"{short}-test", ["test", "raises-exception"]),
            code(probes(name, probe), f"{short}-probes", grade=True, points=POINTS[name]),
        ]
    cells += [
        code("print('a demonstration')"),
        written("analysis-1", 6),
        written("analysis-2", 6),
        task("execution", 18),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def probes(name: str, probe: str) -> str:
    return f"""# probes: {name}
# It works for five numbers.
### BEGIN HIDDEN TESTS
passed = 0
for x in (2, 3, 7, 10, -1):
    try:
        passed += bool({probe})
    except Exception:
        pass
"secret of the probes"
round({POINTS[name]} * passed / 5, 2)
### END HIDDEN TESTS"""


def prose(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def code(
    source: str,
    name: str = "",
    tags: list[str] | None = None,
    *,
    grade: bool = False,
    solution: bool = False,
    locked: bool = True,
    points: int = 0,
) -> NotebookNode:
    made = nbformat.v4.new_code_cell(source)
    if tags:
        made.metadata["tags"] = tags
    if name:
        made.metadata["nbgrader"] = nbgrader(name, grade, solution, locked, points)
    return made


def written(name: str, points: int) -> NotebookNode:
    source = (
        f"<!-- answer: week04-{name} -->\n**Why?** ({points} points)\n\n"
        "### BEGIN SOLUTION\nBecause.\n### END SOLUTION"
    )
    made = prose(source)
    made.metadata["nbgrader"] = nbgrader(name, True, True, False, points)
    return made


def task(name: str, points: int) -> NotebookNode:
    made = prose(f"<!-- answer: week04-{name} -->\nNothing to write.")
    made.metadata["nbgrader"] = nbgrader(name, False, False, True, points) | {"task": True}
    return made


def nbgrader(
    name: str, grade: bool, solution: bool, locked: bool, points: int
) -> dict[str, object]:
    found: dict[str, object] = {
        "grade_id": f"week04-{name}",
        "grade": grade,
        "solution": solution,
        "task": False,
        "locked": locked,
        "schema_version": 3,
    }
    return found | ({"points": points} if points else {})


def solved(notebook: NotebookNode, **solutions: str) -> NotebookNode:
    """`notebook` with the body of each named function written; all by default."""
    bodies = {name: f"return {body}" for name, body, _, _ in EXERCISES.values()} | solutions
    for cell in notebook.cells:
        for function, body in bodies.items():
            if cell.source.startswith("# exercise:") and f"def {function}(" in cell.source:
                head = cell.source[: cell.source.index("    #")]
                lines = "\n".join(f"    {line}" for line in body.split("\n"))
                cell.source = head + lines
    return notebook
