"""A stranger opens the week-4 bundle in JupyterLab and runs it: untouched, then solved."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nbformat
import pytest
from nbformat import NotebookNode

from tests.browser import opened
from tests.release_fixture import (
    NOTEBOOK,
    failures,
    fallen_back,
    fresh_copy,
    reference_solutions,
    solve,
)

pytestmark = [pytest.mark.site, pytest.mark.slow]
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
LIMIT_SECONDS = 420


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab in `folder` with settings of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder.parent / "jupyter-home"
    environment = {
        name: value
        for name, value in os.environ.items()
        # The repository must not be importable: the reader has the bundle only.
        if name not in ("PYTHONPATH", "INFERLAB_CONTEXT")
    }
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        environment[name] = str(home / name.lower())
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.news_url=None", "--log-level=WARN"]
    log = (folder.parent / "jupyterlab.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/api/status").status_code == 200:
                    break
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def run_all(folder: Path, screenshot: str) -> NotebookNode:
    """Run every cell of the bundle's notebook in a browser; returns what JupyterLab saved."""
    path = folder / NOTEBOOK
    with jupyterlab(folder) as address, opened("light", 1400) as page:
        page.goto(f"{address}/lab/tree/{NOTEBOOK}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        # Until the kernel is there, the command is accepted and does nothing.
        page.get_by_text("| Idle").wait_for(timeout=120_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            page.keyboard.press("Control+s")
            time.sleep(3)
            notebook = nbformat.read(path, as_version=4)
            code = [cell for cell in notebook.cells if cell.cell_type == "code"]
            if all(cell.execution_count for cell in code):
                break
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{screenshot}.png")
    return notebook


def not_run(notebook: NotebookNode) -> list[str]:
    return [
        cell.source.splitlines()[0]
        for cell in notebook.cells
        if cell.cell_type == "code" and not cell.execution_count
    ]


def test_the_untouched_notebook_reaches_its_end(tmp_path: Path) -> None:
    notebook = run_all(fresh_copy(tmp_path / "bundle"), "student-untouched")
    assert not_run(notebook) == []
    assert failures(notebook) == []
    tests = [f"# test: {name}" for name in reference_solutions()]
    fell_back = fallen_back(notebook)
    assert [line for line in fell_back if line.startswith("# test: ")] == tests
    assert 'golden_run = golden.load("week04")' in fell_back, "the assembly"
    assert fell_back[-1].startswith("from inferlab.explore import BADGE"), "the sweep"


def test_the_reference_solutions_pass_every_visible_test(tmp_path: Path) -> None:
    folder = fresh_copy(tmp_path / "bundle")
    solve(folder / NOTEBOOK, reference_solutions())
    notebook = run_all(folder, "student-solved")
    assert not_run(notebook) == []
    assert failures(notebook) == []
    assert fallen_back(notebook) == []
