"""Turns source pages into the staged folder that Jupyter Book builds: `build/pages`."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import nbformat
import plotly
import yaml
from nbformat import NotebookNode

from inferlab.notebook import SAID_KEY, Said
from inferlab.publish.answers import Questions, with_answers, without_answers
from inferlab.publish.exercise import is_exercise, read_exercise
from inferlab.publish.expand import SOLUTION, expand
from inferlab.publish.page import Cell, Page
from inferlab.publish.problems import Problem, PublishError, refuse_if_any
from inferlab.publish.roles import References, substitute

MATHJAX = "tex-mml-chtml.js"
MATHJAX_FONTS = "output/chtml/fonts/woff-v2"


def toc_pages(root: Path) -> list[str]:
    """Names of all pages of `_toc.yml`, in reading order.

    Raises PublishError when a page has no source file.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    names = _names(toc)
    missing = [name for name in names if not (root / f"{name}.md").exists()]
    refuse_if_any(
        Problem(Path("_toc.yml"), 1, f"The page {name} is listed but {name}.md does not exist.")
        for name in missing
    )
    return names


def _names(entry: Any) -> list[str]:
    if isinstance(entry, list):
        return [name for item in entry for name in _names(item)]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [
        name for key in ("parts", "chapters", "sections") for name in _names(entry.get(key, []))
    ]


class Stage:
    """The staged folder; a file is rewritten only when its content changed, so that Sphinx reads
    only the changed pages, and whatever was not staged this time is removed at the end."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self._written: dict[Path, str] = {}

    def write(self, path: Path, content: bytes) -> None:
        """Put `content` at `path` below the staged folder."""
        target = self.folder / path
        self._written[target] = hashlib.sha256(content).hexdigest()
        if target.exists() and target.read_bytes() == content:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def copy(self, source: Path, path: Path) -> None:
        """Put the file `source` at `path` below the staged folder."""
        self.write(path, source.read_bytes())

    def assets_hash(self) -> str:
        """Hash of everything staged that is no page, and of the extension that draws the pages.

        Sphinx rewrites a page when its source changes, not when a style or a script does.
        """
        extension = Path(__file__).with_name("sphinx_extension.py").read_text(encoding="utf-8")
        assets = [
            f"{path} {content_hash}"
            for path, content_hash in sorted(self._written.items())
            if path.suffix not in (".md", ".ipynb")
        ]
        return hashlib.sha256("\n".join([extension, *assets]).encode()).hexdigest()

    def finish(self) -> None:
        """Remove what an earlier build staged and this one did not."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_file() and path not in self._written:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def stage_page(
    stage: Stage,
    page: Page,
    notebook: NotebookNode | None,
    found: References,
    questions: Questions | None = None,
) -> None:
    """Stage one page: roles replaced, exercises expanded to the student's code.

    With `questions` the page is the instructor's: it shows the solutions and the model answers.
    Raises PublishError with every unknown name and every exercise that cannot be expanded.
    """
    said = said_in(notebook) if notebook else {}
    references = References(said, found.sources, found.citations)
    problems: list[Problem] = []
    sources: list[str] = []
    for cell in page.cells:
        source = cell.source
        try:
            if cell.kind == "markdown":
                source, seen = substitute(page, cell, references)
                problems += seen
                source = with_answers(source, questions) if questions else without_answers(source)
            elif is_exercise(cell.source, cell.metadata):
                exercise = read_exercise(cell.source, cell.metadata)
                source = expand(stage.root, exercise, solution=questions is not None)
                source = "\n".join(x for x in source.splitlines() if x.strip() not in SOLUTION)
        except ValueError as error:
            problems.append(page.problem(cell.line, str(error)))
        sources.append(source)
    refuse_if_any(problems)
    if notebook is None:
        stage.write(page.path, sources[0].encode())
        return
    staged = nbformat.from_dict(notebook)
    staged.metadata.pop("inferlab", None)
    for cell, ran, source in zip(page.cells, staged.cells, sources):
        ran.source = source
        ran.metadata = nbformat.from_dict({"tags": _tags(cell)})
        for output in ran.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output["metadata"] = {}
    stage.write(page.path.with_suffix(".ipynb"), nbformat.writes(staged).encode())


def _tags(cell: Cell) -> list[str]:
    tags = list(cell.metadata.get("tags", []))
    if cell.kind == "code" and is_exercise(cell.source, cell.metadata):
        tags.append("lab-exercise")
    if cell.source.startswith("# test: "):
        tags.append("lab-test")
    return tags


def said_in(notebook: NotebookNode) -> dict[str, Said]:
    """Every number that a cell of the executed notebook said, by name."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    records = (output.get("metadata", {}).get(SAID_KEY) for output in outputs)
    return {record["name"]: Said(**record) for record in records if record}


def stage_assets(stage: Stage) -> None:
    """Stage configuration, contents, static files, and the vendored scripts from their wheels."""
    for name in ("_config.yml", "_toc.yml"):
        stage.copy(stage.root / name, Path(name))
    for file in sorted((stage.root / "book").rglob("*")):
        if file.is_file() and file.suffix not in (".md", ".yml", ".json"):
            stage.copy(file, file.relative_to(stage.root))
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    stage.copy(script, Path("vendor/plotly.min.js"))
    mathjax = _mathjax_folder()
    stage.copy(mathjax / MATHJAX, Path("vendor/mathjax") / MATHJAX)
    for font in sorted((mathjax / MATHJAX_FONTS).iterdir()):
        stage.copy(font, Path("vendor/mathjax") / MATHJAX_FONTS / font.name)


def _mathjax_folder() -> Path:
    # The wheel's module name has hyphens, so it cannot be imported to ask where it is.
    for file in importlib.metadata.files("sphinx-mathjax-offline") or []:
        if file.name == MATHJAX:
            return Path(str(file.locate())).parent
    raise PublishError(
        [Problem(Path("requirements/core.txt"), 1, "sphinx-mathjax-offline holds no MathJax.")]
    )
