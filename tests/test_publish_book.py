"""The whole way from text notebook to page, on a small repository of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inferlab.publish import PublishError, build_site, read_page
from inferlab.publish.citations import build_index, engines_packages, load_index
from inferlab.publish.execute import executed
from inferlab.publish.roles import cited_symbols
from inferlab.publish.stage import toc_pages
from tests.site_fixture import CHAPTER, REPOSITORY, make_repository

SAMPLE = REPOSITORY / "tests" / "sample_chapter.md"
HEADER = SAMPLE.read_text().partition("inferlab:")[0] + "---\n\n"


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def notebook_of(repository, *cells):
    """A page with these code cells, after jupytext's header."""
    text = HEADER + "# A page\n\n" + "".join(f"```{{code-cell}}\n{cell}\n```\n\n" for cell in cells)
    (repository / "notebooks" / "page.md").write_text(text)
    return read_page(repository, Path("notebooks/page.md"))


def run(repository, page):
    notebook, ran = executed(repository, page, repository / "build" / "executed")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(o.get("text", "") for cell in code for o in cell.outputs), ran


@pytest.mark.slow
def test_execution_repeats_only_when_something_it_depends_on_changed(repository):
    (repository / "inferlab" / "number.py").write_text("VALUE = 1\n")
    (repository / "inferlab" / "stranger.py").write_text("VALUE = 1\n")
    (repository / "golden").mkdir()
    cells = ["from inferlab.number import VALUE", "print('value', VALUE)"]
    page = notebook_of(repository, *cells)
    assert run(repository, page) == ("value 1\n", True)
    assert run(repository, page) == ("value 1\n", False)

    path = repository / page.path
    path.write_text(path.read_text().replace("# A page", "# A page with other prose"))
    page = read_page(repository, page.path)
    assert run(repository, page) == ("value 1\n", False), "prose must not execute"

    (repository / "inferlab" / "stranger.py").write_text("VALUE = 2\n")
    assert run(repository, page) == ("value 1\n", False), "a module that is not imported"

    (repository / "inferlab" / "number.py").write_text("VALUE = 2\n")
    assert run(repository, page) == ("value 2\n", True), "an imported module"

    (repository / "golden" / "week04.json").write_text("{}")
    assert run(repository, page)[1], "golden values"

    assert run(repository, notebook_of(repository, cells[0], "print('code', VALUE)"))[1]


@pytest.mark.slow
def test_a_failing_cell_is_named_and_nothing_is_stored(repository):
    page = notebook_of(repository, "x = 1", "print(x)\nraise KeyError('gone')")
    with pytest.raises(PublishError) as failure:
        run(repository, page)
    (problem,) = failure.value.problems
    assert problem.line == page.cells[2].line
    assert "'print(x)' failed with KeyError: 'gone'" in problem.message
    assert not (repository / "build").exists()


@pytest.mark.slow
def test_standard_error_in_a_cell_is_an_error(repository):
    page = notebook_of(repository, "import warnings\nwarnings.warn('old name')")
    with pytest.raises(PublishError, match=r"wrote to standard error.*old name"):
        run(repository, page)


@pytest.mark.slow
def test_a_kernel_that_dies_is_an_error_at_its_cell(repository):
    page = notebook_of(repository, "x = 1", "import os; os._exit(3)")
    with pytest.raises(PublishError, match="The kernel stopped in or after the cell"):
        run(repository, page)


@pytest.mark.slow
def test_the_sample_becomes_a_page(repository):
    steps = []
    html = build_site(repository, repository / "build", steps.append)
    page = (html / "notebooks" / "week04-sample.html").read_text()
    assert "One token takes 131,072\u00a0B of cache" in page
    assert 'title="Source: NVIDIA' in page
    assert "NotImplementedError" in page
    assert "the links close up behind a removed block" in page
    assert page.count('class="lab-figure"') == 2
    assert "{say}" not in page
    assert "{src}" not in page
    assert "plotly.min.js" in page
    assert "plotly.min.js" not in (html / "book" / "index.html").read_text()
    assert "unpkg.com" not in page
    staged = json.loads((repository / "build/pages" / CHAPTER.with_suffix(".ipynb")).read_text())
    assert staged["nbformat"] == 4

    home = repository / "book" / "index.md"
    home.write_text(home.read_text() + "\nSee {doc}`nowhere`.\n")
    for attempt in ("first", "second"):
        with pytest.raises(PublishError, match="nowhere"):
            build_site(repository, repository / "build", steps.append)
        assert not (html / "index.html").exists(), attempt


def test_a_broken_rule_stops_the_build_before_anything_runs(repository):
    path = repository / CHAPTER
    path.write_text(path.read_text().replace("Write one paragraph.", "Write in 12 ms."))
    with pytest.raises(PublishError, match=r"week04-sample\.md:\d+: .*bare number '12 ms'"):
        build_site(repository, repository / "build", lambda step: None)
    assert not (repository / "build").exists()


@pytest.mark.slow
def test_jupyter_book_by_hand_says_run_make_book(repository):
    program = "from jupyter_book.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "build", str(repository)], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "run make book" in result.stdout + result.stderr
    assert not list(repository.rglob("*.html"))


def test_the_index_holds_every_citation_and_no_other():
    pages = [read_page(REPOSITORY, path.relative_to(REPOSITORY)) for path in cited_pages()]
    cited = {symbol for page in pages for symbol in cited_symbols(page)}
    assert cited == set(load_index(REPOSITORY))


@pytest.mark.engines
def test_the_index_agrees_with_the_installed_engines():
    index = load_index(REPOSITORY)
    assert index
    assert build_index(engines_packages(REPOSITORY), index) == index


@pytest.mark.engines
def test_a_symbol_that_does_not_exist_is_named():
    packages = engines_packages(REPOSITORY)
    with pytest.raises(LookupError, match="defines no 'Gone'"):
        build_index(packages, ["vllm/v1/core/block_pool.py:Gone"])
    with pytest.raises(LookupError, match="there is no file"):
        build_index(packages, ["vllm/gone.py:Gone"])


def cited_pages():
    return [REPOSITORY / f"{name}.md" for name in toc_pages(REPOSITORY)]
