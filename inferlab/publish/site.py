"""Builds the site: checks and stages each page, runs Jupyter Book, asserts that the pages exist."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from inferlab.publish.answers import Questions
from inferlab.publish.citations import load_index
from inferlab.publish.commands import command_problems
from inferlab.publish.execute import executed
from inferlab.publish.page import Page, read_page
from inferlab.publish.problems import Problem, PublishError, refuse_if_any
from inferlab.publish.prose import bare_numbers
from inferlab.publish.roles import References, load_sources
from inferlab.publish.spine import check_spine
from inferlab.publish.stage import Stage, stage_assets, stage_page, toc_pages


def build_site(
    root: Path,
    build: Path,
    report: Callable[[str], None],
    questions: Callable[[str], Questions] | None = None,
) -> Path:
    """Build the site of the repository `root` below `build`; returns the folder with the HTML.

    `report` gets one line for every step. With `questions`, which gives the rubrics of a week, the
    site is the instructors', under `build / "instructor"`. Raises PublishError when a check or a
    cell fails, or when Jupyter Book warns.
    """
    names = toc_pages(root)
    report(f"Checking {len(names)} pages")
    pages = [read_page(root, Path(f"{name}.md")) for name in names]
    problems = [problem for page in pages for problem in _check(page)]
    refuse_if_any([*problems, *command_problems(root, pages)])
    references = References({}, load_sources(root), load_index(root))
    edition = build / "instructor" if questions else build
    stage = Stage(root, edition / "pages")
    for page in pages:
        notebook = None
        if page.is_notebook:
            report(f"Executing {page.path}")
            begun = time.monotonic()
            notebook, ran = executed(root, page, build / "executed")
            took = f"{time.monotonic() - begun:.0f} s"
            report(
                f"Executed in {took}" if ran else "Nothing it depends on has changed: kept outputs"
            )
        rubrics = questions(page.week) if questions and page.week else None
        stage_page(stage, page, notebook, references, rubrics)
    stage_assets(stage)
    stage.finish()
    report("Building the site with Jupyter Book")
    return _run_jupyter_book(stage, edition / "site", names)


def _check(page: Page) -> list[Problem]:
    structure = check_spine(page) if page.week else []
    return [*structure, *bare_numbers(page)]


def _run_jupyter_book(stage: Stage, site: Path, names: list[str]) -> Path:
    built = site / "_build"
    built_with = built / "assets.sha256"
    if not built_with.exists() or built_with.read_text(encoding="utf-8") != stage.assets_hash():
        shutil.rmtree(built, ignore_errors=True)
    program = "from jupyter_book.cli.main import main; main()"
    options = ["build", str(stage.folder), "--path-output", str(site), "-W", "--keep-going"]
    result = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=False
    )
    log = site / "build.log"
    site.mkdir(parents=True, exist_ok=True)
    log.write_text(result.stdout + result.stderr, encoding="utf-8")
    html = built / "html"
    missing = [name for name in names if not (html / f"{name}.html").exists()]
    if result.returncode or missing:
        # Sphinx warns about a page only when it reads it: the next build has to read all again.
        shutil.rmtree(built, ignore_errors=True)
        warnings = [line for line in result.stderr.splitlines() if "WARNING" in line]
        reasons = warnings or result.stderr.splitlines()[-15:]
        reasons += [f"No HTML was made for {name}." for name in missing]
        raise PublishError([Problem(log, 1, "Jupyter Book failed:\n" + "\n".join(reasons))])
    built_with.write_text(stage.assets_hash(), encoding="utf-8")
    return html
