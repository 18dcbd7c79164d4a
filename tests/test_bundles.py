"""Each chapter's bundle alone: its notebook runs in it, as it was released and solved."""

from pathlib import Path

import nbformat
import pytest

from inferlab.lab.engines import ENGINES_VARIABLE
from tests.chapters import EXERCISES, PAGES, week_of
from tests.release_fixture import (
    executed,
    failures,
    fallen_back,
    fresh_copy,
    reference_solutions,
    solve,
)

pytestmark = pytest.mark.slow
each_week = pytest.mark.parametrize("week", PAGES)


@pytest.fixture(autouse=True)
def student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that knows neither the repository nor the engines."""
    for name in ("PYTHONPATH", "INFERLAB_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path / "no engines"))


def notebook_in(folder: Path, week: str) -> Path:
    """The notebook of a fresh copy of the bundle."""
    (path,) = fresh_copy(folder, week).glob("*.ipynb")
    return path


@each_week
def test_the_released_notebook_reaches_its_end(week: str, tmp_path: Path) -> None:
    ran = executed(notebook_in(tmp_path / "bundle", week))
    assert failures(ran) == []
    tests = [f"# test: {name}" for name in EXERCISES if week_of(name) == week]
    assert [line for line in fallen_back(ran) if line.startswith("# test: ")] == tests


@each_week
def test_the_solved_notebook_needs_nothing_recorded(week: str, tmp_path: Path) -> None:
    path = notebook_in(tmp_path / "bundle", week)
    solve(path, reference_solutions(week))
    ran = executed(path)
    assert failures(ran) == []
    assert fallen_back(ran) == []


def test_a_cell_that_reads_another_weeks_result_is_found(tmp_path: Path) -> None:
    """The same line in the week's own bundle and in another one's."""
    path = notebook_in(tmp_path / "bundle", "week04")
    for experiment, expected in (("week04/kv-pool", 0), ("week01/closed-loop", 1)):
        planted = f'from inferlab import lab\nlab.load("{experiment}")'
        cells = [nbformat.v4.new_code_cell(planted)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        found = failures(executed(path))
        assert len(found) == expected, found
        assert all(experiment in failure for failure in found)
