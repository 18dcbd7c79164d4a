"""Week 4 as a reader meets it: cells that can be run again, replays that need no engine."""

from collections.abc import Callable
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
from inferlab.publish.page import Cell

PAGE = read_page(ROOT, Path("notebooks/week04-paged-attention.md"))
CODE = [cell for cell in PAGE.cells if cell.kind == "code"]


def tags(cell: Cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


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
