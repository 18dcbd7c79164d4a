"""Week 4 as a reader meets it: cells that can be run again, replays that need no engine."""

import ast
import builtins
import symtable
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from inferlab import lab
from inferlab.engine import BlockPool
from inferlab.lab.engines import ENGINES_VARIABLE
from inferlab.lab.paths import ROOT
from inferlab.lab.pool_replay import count_events, first_difference, random_operations, replay
from inferlab.lab.upstream import UPSTREAM
from inferlab.publish import read_page
from inferlab.publish.editions import exercises
from inferlab.publish.page import Cell

PAGE = read_page(ROOT, Path("notebooks/week04-paged-attention.md"))
CODE = [cell for cell in PAGE.cells if cell.kind == "code"]
EXERCISES = exercises(PAGE)


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def test_the_exercises_are_worth_40_points() -> None:
    points = {name: exercise.points for name, (_, exercise) in EXERCISES.items()}
    assert points == {
        "week04-fragmentation": 5,
        "week04-free-queue": 6,
        "week04-block-pool": 9,
        "week04-allocate-slots": 7,
        "week04-paged-attention": 8,
        "week04-paged-kernel": 5,
    }


def test_each_visible_test_ends_by_installing_what_the_reader_wrote() -> None:
    tests = [cell for cell in CODE if "test" in tags(cell)]
    assert len(tests) == len(EXERCISES) == 6
    for cell, (name, (_, exercise)) in zip(tests, EXERCISES.items(), strict=True):
        assert cell.source.startswith(f"# test: {name}\n")
        last = ast.parse(cell.source).body[-1]
        assert isinstance(last, ast.Expr)
        assert isinstance(last.value, ast.Call)
        assert ast.unparse(last.value.func) == "install"
        assert {ast.unparse(argument) for argument in last.value.args} == exercise.owners


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


def test_a_name_that_another_cell_needs_is_assigned_in_one_cell_only() -> None:
    """Otherwise running a cell again, or an exercise late, gives a later cell another's value."""
    found = [names(cell.source) for cell in CODE]
    needed = {name for _, _, read in found for name in read}
    assert {"kappa", "context_lengths", "decode_bound", "BlockPool"} <= needed
    assert "BlockPool" in {name for _, imported, _ in found for name in imported}
    assigned = [name for here, _, _ in found for name in here]
    assert {name for name in needed if assigned.count(name) > 1} == set()


def stub_out_the_exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritten(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    for _, exercise in EXERCISES.values():
        for home, members in exercise.homes.items():
            module = import_module(home)
            for member in members:
                owner, _, method = member.rpartition(".")
                target = getattr(module, owner) if owner else module
                monkeypatch.setattr(target, method, unwritten)


def test_a_reader_who_has_written_nothing_gets_through_the_theory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERLAB_CONTEXT", "book")
    stub_out_the_exercises(monkeypatch)
    cells = iter(CODE)
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell.source, namespace)
        if "exercise" in tags(cell):
            break
    assert "HTML object" in capsys.readouterr().out, "figures were shown"
    with pytest.raises(NotImplementedError):
        exec(next(cells).source, namespace)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the page's cells that ask vLLM leave behind, on a machine without the engines."""
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path))
    answers: dict[str, Any] = {}
    ask: Callable[..., Any] = lab.upstream

    def remember(script: str, data: Any, recorded: str) -> Any:
        answers[recorded] = ask(script, data, recorded)
        return answers[recorded]

    monkeypatch.setattr(lab, "upstream", remember)
    namespace: dict[str, Any] = {"answers": answers}
    for cell in CODE:
        asks = "lab.upstream(" in cell.source or "EmptyBlocksToTheBack" in cell.source
        needed = "kappa_tiny" in cell.source or cell.source.startswith("import json")
        if asks or needed or tags(cell) & {"setup", "exercise"}:
            exec(cell.source, namespace)
    return namespace


def test_the_page_replays_vllms_pool_and_agrees_after_every_operation(
    replayed: dict[str, Any],
) -> None:
    trace = replayed["answers"]["week04/block-pool"]
    operations = replayed["operations"]
    assert len(trace) == len(operations) == 600
    assert first_difference(replay(BlockPool(24), operations), trace) is None
    assert replayed["differs_at"] is None
    assert replayed["control_at"] == 2
    events = count_events(operations, trace)
    assert events == {"revived": 26, "shared": 52, "evicted": 45, "refused": 42}
    assert (UPSTREAM / "week04" / "block-pool.json").stat().st_size < 300_000


def test_the_prose_on_start_up_says_what_vllm_reported(replayed: dict[str, Any]) -> None:
    answers = replayed["answers"]["week04/start-up"]
    sizes = [
        (case.get("num_gpu_blocks_override"), case["num_requests"]) for case in replayed["cases"]
    ]
    default, *found = zip(sizes, answers, strict=True)
    assert "32,768 tokens" in default[1]["report"]
    assert {size for size, answer in found if "refused" in answer} == {(6, 1), (16, 1)}
    preemptions = {size: a["preemptions"] for size, a in found if "preemptions" in a}
    assert preemptions == {(17, 1): 0, (18, 2): 1, (32, 2): 1, (33, 2): 0}
    reports = {size: answer.get("report", "") for size, answer in found}
    assert "2.00x" in reports[32, 2], "the promise that the null block breaks"


def forget_to_evict(pool: BlockPool) -> None:
    pool._evict = lambda block: None  # type: ignore[method-assign]


def free_in_reverse(pool: BlockPool) -> None:
    free = pool.free_blocks
    pool.free_blocks = lambda blocks: free(blocks[::-1])  # type: ignore[method-assign]


@pytest.mark.parametrize("spoil", [forget_to_evict, free_in_reverse])
def test_the_replay_tells_a_wrong_pool_from_a_right_one(spoil: Callable[[BlockPool], None]) -> None:
    operations = random_operations(seed=4, num_operations=600)
    right, again, wrong = BlockPool(24), BlockPool(24), BlockPool(24)
    spoil(wrong)
    expected = replay(right, operations)
    assert first_difference(replay(again, operations), expected) is None
    assert first_difference(replay(wrong, operations), expected) is not None


def test_the_operations_depend_on_the_seed_alone() -> None:
    assert random_operations(4, 50) == random_operations(4, 50)
    assert random_operations(4, 50) != random_operations(5, 50)
