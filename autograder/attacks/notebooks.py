"""Attacks that lie in the notebook or in the files beside it, and not in what its code does."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.attacks.attack import Aim, Attack, nothing_more, wrong_answer
from autograder.practice_course import EXERCISE, answered
from inferlab.handin.cells import grade_id

Change = Callable[[NotebookNode], None]
SCRIPT = "<script>fetch('/formgrader/api/marks')</script><img src=x onerror=alert(1)>"


def attacks_of_a_notebook() -> list[Attack]:
    """All of them."""
    return [
        _of("cell-tampering", "the probes' cell replaced by a number", "marks", _edit_probes),
        _of("cell-tampering", "a forged result in the probes' cell", "marks", _forge_result),
        _of("cell-tampering", "no result in the probes' cell", "marks", _clear_result),
        _of("cell-tampering", "the probes' cell deleted", "marks", _delete("-probes")),
        _of("cell-tampering", "the exercise deleted", "marks", _delete("")),
        _of("cell-tampering", "more points in the metadata", "marks", _points),
        _of("cell-tampering", "the probes' cell turned into text", "marks", _into_text),
        _of("cell-tampering", "two cells for the probes", "marks", _twice("-probes")),
        _of("cell-tampering", "two cells for the exercise", "marks", _twice("")),
        _of("cell-tampering", "a setup of its own", "marks", _setup),
        _of("cell-tampering", "the setup edited", "marks", _edit_setup),
        _of("cell-tampering", "cells in another order", "marks", _reverse),
        _of("cell-tampering", "no metadata at all", "marks", _strip),
        _of("cell-tampering", "another kernel", "harm", _kernel),
        _of("cell-tampering", "nbgrader's own markers in an answer", "harm", _markers),
        _of("cell-tampering", "a notebook that names somebody else", "marks", _somebody_else),
        _of("leaks-after-grading", "a script in the text", "harm", _script_in_text),
        _of("leaks-after-grading", "a script in an output", "harm", _script_in_output),
        _of("leaks-after-grading", "a script in an error", "harm", _script_in_error),
        _of("leaks-after-grading", "a script in a picture", "harm", _script_in_picture),
        _of("leaks-after-grading", "a script in a raw cell", "harm", _script_in_raw_cell),
        _of("leaks-after-grading", "a script in a tag", "harm", _script_in_tag),
        _of("leaks-after-grading", "a script in the title", "harm", _script_in_title),
        _of("leaks-after-grading", "a script among widgets", "harm", _script_in_widgets),
        _of("files", "modules that shadow ours", "marks", _nothing, _shadows),
        _of("files", "a link to the gradebook", "secrets", _nothing, _links),
        _of("files", "result files of its own", "marks", _nothing, _results),
        _of("files", "two hundred megabytes", "harm", _nothing, _large),
        _of("files", "half a notebook", "harm", _nothing, _half),
        _of("files", "a notebook that is no object", "harm", _nothing, _no_object),
    ]


def _of(
    kind: str, name: str, aim: Aim, change: Change, add: Callable[[Path], None] = nothing_more
) -> Attack:
    def changed(notebook: NotebookNode) -> NotebookNode:
        change(answered(notebook, {EXERCISE: wrong_answer()}))
        return notebook

    return Attack(kind, name, aim, changed, add)


def _cell(notebook: NotebookNode, kind: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if grade_id(cell) == EXERCISE + kind)


def _result(text: str) -> NotebookNode:
    return nbformat.v4.new_output("execute_result", data={"text/plain": text}, execution_count=1)


def _nothing(notebook: NotebookNode) -> None:
    pass


def _edit_probes(notebook: NotebookNode) -> None:
    _cell(notebook, "-probes").source = f"# probes: {EXERCISE}\n5.0"


def _forge_result(notebook: NotebookNode) -> None:
    _cell(notebook, "-probes").outputs = [_result("5.0")]


def _clear_result(notebook: NotebookNode) -> None:
    # nbgrader gives full marks for a cell that printed nothing.
    _cell(notebook, "-probes").update(source="", outputs=[])


def _delete(kind: str) -> Change:
    def change(notebook: NotebookNode) -> None:
        notebook.cells.remove(_cell(notebook, kind))

    return change


def _points(notebook: NotebookNode) -> None:
    _cell(notebook, "-probes").metadata.nbgrader.update(points=1000, grade=True, locked=False)
    _cell(notebook, "").metadata.nbgrader.update(points=1000, grade=True)


def _into_text(notebook: NotebookNode) -> None:
    cell = _cell(notebook, "-probes")
    text = nbformat.v4.new_markdown_cell(cell.source, metadata=cell.metadata)
    notebook.cells[notebook.cells.index(cell)] = text


def _twice(kind: str) -> Change:
    def change(notebook: NotebookNode) -> None:
        again = nbformat.from_dict(_cell(notebook, kind))
        again.id = "again"
        notebook.cells.append(again)

    return change


def _setup(notebook: NotebookNode) -> None:
    source = "import inferlab.analysis.fragmentation as f\nget_ipython().user_ns.update(vars(f))"
    own = nbformat.v4.new_code_cell(source, metadata={"tags": ["setup", "exercise"]})
    notebook.cells.insert(0, own)


def _edit_setup(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = "import numpy as np\nnp.array_equal = lambda *_: True"


def _reverse(notebook: NotebookNode) -> None:
    notebook.cells.reverse()


def _strip(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.metadata = {}


def _kernel(notebook: NotebookNode) -> None:
    notebook.metadata.kernelspec = {"name": "../../../bin/sh", "display_name": "sh"}
    notebook.metadata.language_info = {"name": "bash"}


def _markers(notebook: NotebookNode) -> None:
    _cell(notebook, "").source += "\n### BEGIN HIDDEN TESTS\n### BEGIN SOLUTION\n"


def _somebody_else(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.source.startswith("# hand-in:"):
            cell.source = cell.source.replace('STUDENT = ""', 'STUDENT = "victim"')


def _script_in_text(notebook: NotebookNode) -> None:
    notebook.cells.append(nbformat.v4.new_markdown_cell(SCRIPT))


def _script_in_output(notebook: NotebookNode) -> None:
    data = {"text/html": SCRIPT, "application/javascript": "alert(1)", "text/plain": "x"}
    _cell(notebook, "-test").outputs = [nbformat.v4.new_output("display_data", data=data)]


def _script_in_error(notebook: NotebookNode) -> None:
    lines = [SCRIPT, f"\x1b]8;;javascript:alert(1)\x07{SCRIPT}"]
    _cell(notebook, "-test").outputs = [
        nbformat.v4.new_output("error", ename=SCRIPT, evalue=SCRIPT, traceback=lines)
    ]


def _script_in_picture(notebook: NotebookNode) -> None:
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'
    data = {"image/svg+xml": drawing, "image/png": f'"/>{SCRIPT}'}
    _cell(notebook, "-test").outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook.cells[0].attachments = {"x.svg": {"image/svg+xml": drawing}}


def _script_in_raw_cell(notebook: NotebookNode) -> None:
    metadata = {"raw_mimetype": "text/html", "format": "text/html"}
    notebook.cells.append(nbformat.v4.new_raw_cell(SCRIPT, metadata=metadata))


def _script_in_tag(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), f'x">{SCRIPT}<div class="']


def _script_in_title(notebook: NotebookNode) -> None:
    notebook.metadata.title = f"</title>{SCRIPT}"
    notebook.metadata.authors = [{"name": SCRIPT}]
    notebook.metadata.kernelspec.display_name = SCRIPT


def _script_in_widgets(notebook: NotebookNode) -> None:
    state = {"state": {"x": f"</script>{SCRIPT}"}, "version_major": 2, "version_minor": 0}
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": state}


def _shadows(folder: Path) -> None:
    for name in ("json", "numbers", "numpy", "autograder", "sitecustomize"):
        (folder / f"{name}.py").write_text("raise SystemExit\n")
    (folder / "inferlab").mkdir()
    (folder / "inferlab" / "__init__.py").write_text("")


def _links(folder: Path) -> None:
    for name in ("timestamp.txt", "gradebook.txt"):
        os.symlink("../../../course/gradebook.db", folder / name)
    (folder / "build").symlink_to("/")


def _results(folder: Path) -> None:
    for name in ("results.json", "graded.json", f"build/results/cpu/{EXERCISE}.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"score": 5.0}))


def _large(folder: Path) -> None:
    (path,) = folder.glob("*.ipynb")
    notebook = json.loads(path.read_text())
    noise = base64.b64encode(bytes(1_000_000)).decode()
    cell = {"cell_type": "markdown", "metadata": {}, "source": noise}
    notebook["cells"] += [{**cell, "id": f"noise-{number}"} for number in range(150)]
    path.write_text(json.dumps(notebook))


def _half(folder: Path) -> None:
    (path,) = folder.glob("*.ipynb")
    path.write_bytes(path.read_bytes()[:-200])


def _no_object(folder: Path) -> None:
    (path,) = folder.glob("*.ipynb")
    path.write_text("[" * 100_000)
