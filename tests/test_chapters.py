"""What holds of every chapter: exercises, visible tests, rubrics, and what grading makes of it."""

import ast
import builtins
import re
import symtable
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest

from autograder.examination import Examination, verdicts
from autograder.graded_exercises import graded_exercises, released_notebook
from autograder.preprocessors import answers
from autograder.release import release
from autograder.rubric import load_rubrics
from autograder.sandbox.isolator import BubblewrapIsolator
from inferlab.publish.answers import ANSWER
from inferlab.publish.page import Cell
from tests.chapters import EXERCISES, PAGES, week_of
from tests.site_fixture import REPOSITORY

each_week = pytest.mark.parametrize("week", PAGES)
MINUTES = {
    "half an hour": 30,
    "three quarters of an hour": 45,
    "an hour": 60,
    "an hour and a quarter": 75,
    "an hour and a half": 90,
    "two hours": 120,
    "two and a half hours": 150,
}
LAB_POINTS = {"execution": 18, "metrics": 12, "source": 9, "analysis": 18, "presentation": 3}


def code(week: str) -> list[Cell]:
    return [cell for cell in PAGES[week].cells if cell.kind == "code"]


def exercises_of(week: str) -> dict[str, Any]:
    return {name: found for name, found in EXERCISES.items() if week_of(name) == week}


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


@each_week
def test_three_to_six_exercises_are_worth_40_points(week: str) -> None:
    found = exercises_of(week)
    assert 3 <= len(found) <= 6
    assert sum(exercise.points for exercise in found.values()) == 40


@each_week
def test_each_visible_test_ends_by_installing_what_the_reader_wrote(week: str) -> None:
    tests = [cell for cell in code(week) if "test" in tags(cell)]
    for cell, (name, exercise) in zip(tests, exercises_of(week).items(), strict=True):
        assert cell.source.startswith(f"# test: {name}\n")
        last = ast.parse(cell.source).body[-1]
        assert isinstance(last, ast.Expr)
        assert isinstance(last.value, ast.Call)
        assert ast.unparse(last.value.func) == "install"
        installed = {ast.unparse(argument) for argument in last.value.args}
        # A helper with a leading underscore is reached through what uses it.
        assert {owner for owner in exercise.owners if owner[0] != "_"} <= installed
        assert installed <= exercise.owners


@each_week
def test_the_times_of_the_sections_are_three_to_five_hours_together(week: str) -> None:
    (table,) = [
        cell.source
        for cell in PAGES[week].cells
        if cell.kind != "code" and "| section | time |" in cell.source
    ]
    rows = table.partition("| section | time |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert 180 <= sum(MINUTES[row.split("|")[2].strip()] for row in rows) <= 300


@each_week
def test_every_value_that_a_cell_says_is_used_in_the_text(week: str) -> None:
    """A list of values under a figure that nothing refers to is noise."""
    said = {
        name
        for cell in code(week)
        for name in re.findall(r"\bsay\(\s*\"([a-z0-9_]+)\"", cell.source)
    }
    text = "\n".join(cell.source for cell in PAGES[week].cells if cell.kind != "code")
    assert said
    assert said <= set(re.findall(r"\{say\}`([a-z0-9_]+)", text))


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """Names that a cell assigns, those it imports, and those it needs from other cells."""
    assigned, imported, read = set(), set(), set()
    tables = [symtable.symtable(source, "cell", "exec")]
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module":
                assigned |= {symbol.get_name()} if symbol.is_assigned() else set()
                imported |= {symbol.get_name()} if symbol.is_imported() else set()
            if symbol.is_referenced() and symbol.is_global():
                read.add(symbol.get_name())
    return assigned - imported, imported, read - assigned - imported - set(dir(builtins))


@each_week
def test_a_name_that_another_cell_needs_is_assigned_in_one_cell_only(week: str) -> None:
    """Otherwise running a cell again, or an exercise late, gives a later cell another's value."""
    found = [names(cell.source) for cell in code(week)]
    needed = {name for _, _, read in found for name in read}
    assert needed
    assigned = [name for here, _, _ in found for name in here]
    assert {name for name in needed if assigned.count(name) > 1} == set()


def test_what_cells_need_of_each_other_is_found() -> None:
    found = [names(cell.source) for cell in code("week04")]
    needed = {name for _, _, read in found for name in read}
    assert {"kappa", "context_lengths", "decode_bound", "BlockPool"} <= needed
    assert "BlockPool" in {name for _, imported, _ in found for name in imported}


def stub_out_the_exercises(week: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritten(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    for exercise in exercises_of(week).values():
        for home, members in exercise.homes.items():
            module = import_module(home)
            for member in members:
                owner, _, method = member.rpartition(".")
                target = getattr(module, owner) if owner else module
                monkeypatch.setattr(target, method, unwritten)


@each_week
def test_a_reader_who_has_written_nothing_gets_through_the_theory(
    week: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERLAB_CONTEXT", "book")
    stub_out_the_exercises(week, monkeypatch)
    cells = iter(code(week))
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell.source, namespace)
        if "exercise" in tags(cell):
            break
    assert "HTML object" in capsys.readouterr().out, "figures were shown"
    with pytest.raises(NotImplementedError):
        exec(next(cells).source, namespace)


@each_week
def test_every_answer_cell_has_its_rubric_and_the_lab_is_worth_60_points(week: str) -> None:
    found = ANSWER.findall(PAGES[week].path.read_text())
    rubrics = load_rubrics(week)
    assert sorted(found) == sorted(rubrics)
    points = dict.fromkeys(LAB_POINTS, 0)
    for name, rubric in rubrics.items():
        points[name.split("-")[1]] += rubric.points
    assert points == LAB_POINTS
    assert {name for name, rubric in rubrics.items() if not rubric.is_written} == {
        f"{week}-execution",
        f"{week}-presentation",
    }


@each_week
def test_a_written_answer_has_a_strong_a_middling_and_a_weak_sample(week: str) -> None:
    for name, found in load_rubrics(week).items():
        if found.is_written:
            shares = sorted(sample.points / found.points for sample in found.samples)
            assert len(shares) >= 3, name
            assert shares[0] < 0.5, name
            assert shares[-1] >= 0.8, name
            assert any(0.3 <= share < 0.8 for share in shares), f"{name} has no middling sample"
            assert found.model_answer.strip() in found.for_instructors()


@pytest.mark.slow
@each_week
def test_the_reference_earns_all_points_and_an_untouched_notebook_none(
    week: str, tmp_path: Path
) -> None:
    release(REPOSITORY, week, tmp_path, "http://localhost:8000", lambda step: None)
    graded = graded_exercises(tmp_path, week)
    solved = {exercise.name: exercise.solution for exercise in graded}
    fresh = answers(nbformat.read(released_notebook(tmp_path, week), as_version=4))
    for cells, share in ((solved, 1), (fresh, 0)):
        found = verdicts(Examination(tmp_path, week, cells, jobs=2), BubblewrapIsolator())
        points = {one.name: found[one.name].points(one.points) for one in graded}
        assert points == {one.name: share * one.points for one in graded}
