"""Executes a chapter in a fresh kernel, unless nothing that its outputs depend on has changed.

Jupyter Book's own cache looks at the code cells only, so an edited module of ours would leave stale
numbers on the page. Here the modules that the kernel really imported count too, as do recorded
results, golden values, specifications, checkpoints and the lock. Prose does not.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from inferlab.publish.page import Cell, Page
from inferlab.publish.problems import Problem, PublishError

DATA = ("results", "golden", "experiments", "requirements/core.txt", "inferlab/models/checkpoints")
CELL_LIMIT_SECONDS = 900
# Runs last in the kernel: only the kernel knows which modules it imported.
LIST_MODULES = """
import json, sys
print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]))
"""


def executed(root: Path, page: Page, cache: Path) -> tuple[NotebookNode, bool]:
    """The notebook of `page` with outputs, and whether it had to be run.

    Raises PublishError naming the cell when one fails or writes to standard error.
    """
    stored = cache / f"{page.path.stem}.ipynb"
    earlier = nbformat.read(stored, as_version=4) if stored.exists() else None
    must_run = earlier is None or earlier.metadata["inferlab"] != _key(
        root, page, earlier.metadata["inferlab"]["modules"]
    )
    if must_run:
        earlier = _notebook(page)
        earlier.metadata["inferlab"] = _key(root, page, _run(root, page, earlier))
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = stored.with_suffix(".partial")
        nbformat.write(earlier, unfinished)
        os.replace(unfinished, stored)
    # Also after a run: what nbclient adds to a notebook must not make the staged page differ.
    notebook = _notebook(page)
    _copy_outputs(earlier, notebook)
    return notebook, must_run


def _notebook(page: Page) -> NotebookNode:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(page.cells):
        make = getattr(nbformat.v4, f"new_{cell.kind}_cell")
        notebook.cells.append(
            make(cell.source, id=f"cell-{number}", metadata=nbformat.from_dict(cell.metadata))
        )
    return notebook


def _run(root: Path, page: Page, notebook: NotebookNode) -> list[str]:
    """Execute in place; returns the files below `root` that the kernel imported."""
    environment = dict(os.environ, INFERLAB_CONTEXT="book", PYTHONHASHSEED="0")
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(root), os.environ.get("PYTHONPATH")])
    )
    notebook.cells.append(nbformat.v4.new_code_cell(LIST_MODULES))
    client = NotebookClient(
        notebook,
        timeout=CELL_LIMIT_SECONDS,
        kernel_name="python3",
        # Otherwise every kernel warns on the terminal that it talks over unencrypted loopback.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str((root / page.path).parent)}},
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise PublishError([_failure(page, notebook, error)]) from error
    listed = notebook.cells.pop()
    problems = [
        page.problem(
            cell.line,
            f"The cell {_first_line(cell)!r} wrote to standard error; on a page that reads as a "
            f"failure, so fix its cause: {output.text.strip()}",
        )
        for cell, ran in zip(page.cells, notebook.cells)
        for output in ran.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    if problems:
        raise PublishError(problems)
    files = {Path(name).resolve() for name in json.loads(listed.outputs[0].text)}
    inside = (file for file in files if file.is_relative_to(root.resolve() / "inferlab"))
    return sorted(file.relative_to(root.resolve()).as_posix() for file in inside)


def _failure(page: Page, notebook: NotebookNode, error: Exception) -> Problem:
    code = [(c, ran) for c, ran in zip(page.cells, notebook.cells) if c.kind == "code"]
    for cell, ran in code:
        for output in ran.outputs:
            if output.output_type == "error":
                trace = "\n".join(re.sub(r"\x1b\[[\d;]*m", "", line) for line in output.traceback)
                return page.problem(
                    cell.line,
                    f"The cell {_first_line(cell)!r} failed with "
                    f"{output.ename}: {output.evalue}\n{trace}",
                )
    # A cell that timed out or killed its kernel leaves no error output: it is the last one begun.
    begun = [cell for cell, ran in code if ran.get("execution_count") is not None]
    cell = begun[-1] if begun else code[0][0]
    return page.problem(
        cell.line, f"The kernel stopped in or after the cell {_first_line(cell)!r}: {error}"
    )


def _first_line(cell: Cell) -> str:
    return cell.source.partition("\n")[0]


def _key(root: Path, page: Page, modules: list[str]) -> dict[str, object]:
    """What the outputs depend on; a module that has gone counts as changed."""
    code = "\0".join(cell.source for cell in page.cells if cell.kind == "code")
    return {
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "modules": modules,
        "modules_hash": _hash_files(root, [root / module for module in modules]),
        "data": {name: _hash_files(root, _files(root / name)) for name in DATA},
    }


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _hash_files(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes() if file.exists() else b"missing"
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _copy_outputs(earlier: NotebookNode, notebook: NotebookNode) -> None:
    outputs = [cell for cell in earlier.cells if cell.cell_type == "code"]
    for cell, ran in zip((c for c in notebook.cells if c.cell_type == "code"), outputs):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
