"""The released notebook alone, in an environment with Colab's versions: it fetches all it needs."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.browser import served
from tests.release_fixture import (
    NOTEBOOK,
    REPOSITORY,
    executed,
    failures,
    fallen_back,
    reference_solutions,
    released_bundle,
    solve,
)

pytestmark = pytest.mark.slow
ENVIRONMENT = REPOSITORY / "build" / "colab-environment"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = REPOSITORY / "requirements" / "colab.txt"
FETCHED = ("inferlab-checkpoints", "triton")
VERSIONS = """
import json, sys, IPython, ipykernel, ipywidgets, numpy, plotly, inferlab, inferlab_checkpoints
print(json.dumps([m.__version__ for m in (IPython, ipykernel, ipywidgets, numpy, plotly)]
                 + [sys.executable, inferlab.__file__, list(inferlab_checkpoints.__path__)[0]]))
"""


def pip(*arguments: str) -> None:
    subprocess.run([str(PYTHON), "-m", "pip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Jupyter's name for a kernel with what Colab brings, and nothing of ours."""
    lock = (REPOSITORY / "requirements" / "core.txt").read_text()
    (torch,) = re.findall(r"^torch==\S+", lock, re.MULTILINE)
    wanted = hashlib.sha256((REQUIREMENTS.read_text() + torch).encode()).hexdigest()
    made = ENVIRONMENT / "made-of.txt"
    if not made.exists() or made.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip("install", "--no-deps", "-r", str(REQUIREMENTS))
        pip("install", torch)
        made.write_text(wanted)
    kernels = tmp_path_factory.mktemp("jupyter")
    specification = kernels / "kernels" / "colab" / "kernel.json"
    specification.parent.mkdir(parents=True)
    argv = [str(PYTHON), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification.write_text(
        json.dumps({"argv": argv, "display_name": "Colab", "language": "python"})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(kernels))
        patch.delenv("PYTHONPATH", raising=False)
        yield "colab"


@pytest.fixture
def bare(colab: str) -> str:
    """The same kernel before any notebook has installed something into its environment."""
    pip("uninstall", "--yes", *FETCHED)
    # pip may leave an empty folder behind, which Python takes for a package.
    (packages,) = ENVIRONMENT.glob("lib/python3*/site-packages")
    (packages / "inferlab_checkpoints").mkdir(exist_ok=True)
    return colab


@pytest.fixture(scope="module")
def bundles() -> Iterator[str]:
    """Address of the folder that is published beside the book."""
    released_bundle()
    with served(REPOSITORY / "build" / "release") as address:
        yield f"{address}/bundles"


def run(folder: Path, kernel: str, address: str, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Run the notebook in `folder`, where nothing else lies, and ask the kernel what it is."""
    monkeypatch.setenv("INFERLAB_BUNDLE_URL", address)
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(VERSIONS))
    nbformat.write(notebook, folder / NOTEBOOK)
    return executed(folder / NOTEBOOK, kernel)


def notebook_alone(folder: Path) -> Path:
    folder.mkdir()
    (folder / NOTEBOOK).write_bytes((released_bundle() / NOTEBOOK).read_bytes())
    return folder


def test_the_untouched_notebook_fetches_its_bundle_and_reaches_its_end(
    tmp_path: Path, bare: str, bundles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = notebook_alone(tmp_path / "content")
    (folder / "golden").mkdir()
    (folder / "golden" / "mine.txt").write_text("my own")
    notebook = run(folder, bare, bundles, monkeypatch)
    assert failures(notebook) == []
    tests = [f"# test: {name}" for name in reference_solutions()]
    assert [line for line in fallen_back(notebook) if line.startswith("# test: ")] == tests
    *versions, python, package, weights = json.loads(notebook.cells[-1].outputs[0].text)
    assert versions == ["7.34.0", "6.17.1", "7.7.1", "2.1.3", "5.24.1"]
    assert Path(python) == PYTHON
    assert Path(package).is_relative_to(folder)
    assert Path(weights).is_relative_to(ENVIRONMENT)
    assert (folder / "golden" / "mine.txt").read_text() == "my own"


def test_the_reference_solutions_pass_every_visible_test(
    tmp_path: Path, colab: str, bundles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = notebook_alone(tmp_path / "content")
    solve(folder / NOTEBOOK, reference_solutions())
    notebook = run(folder, colab, bundles, monkeypatch)
    assert failures(notebook) == []
    assert fallen_back(notebook) == []


def test_an_address_without_a_bundle_is_one_sentence(
    tmp_path: Path, colab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path) as address:
        notebook = run(notebook_alone(tmp_path / "content"), colab, address, monkeypatch)
    assert failures(notebook)[0].startswith(
        f"# setup: course: RuntimeError: The bundle of week04 could not be prepared from {address}"
    )
    assert not (tmp_path / "content" / "inferlab").exists()
