"""Our scheduler and KV cache manager beside vLLM's own, on the same traces, with no model."""

from typing import Any

import pytest

from inferlab import models
from inferlab.engine import KVCacheManager, Request, Scheduler
from inferlab.lab import upstream
from inferlab.lab.upstream import SCRIPTS
from tests.scheduler_traces import Trace, random_trace, run

pytestmark = [pytest.mark.engines, pytest.mark.slow]
SCRIPT = SCRIPTS / "vllm_scheduler.py"
TRACES = [random_trace(seed) for seed in range(24)]


@pytest.fixture(scope="module")
def vllm_steps() -> list[list[dict[str, Any]]]:
    question = {"checkpoint": str(models.path("tiny-chat")), "traces": TRACES}
    steps: list[list[dict[str, Any]]] = upstream(SCRIPT.read_text(), question)
    return steps


def first_difference(trace: Trace, theirs: list[dict[str, Any]], ours: list[Any]) -> int | None:
    """The first step that differs; None if all are equal, their number too."""
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), None)


def test_every_step_equals_vllms(vllm_steps: list[list[dict[str, Any]]]) -> None:
    """Tokens by request, preemptions, finishes, block tables (their very ids) and free blocks."""
    for seed, (trace, theirs) in enumerate(zip(TRACES, vllm_steps)):
        step = first_difference(trace, theirs, run(trace))
        assert step is None, f"trace {seed} differs from vLLM's in step {step}"


def test_the_traces_hold_what_they_are_to_compare(
    vllm_steps: list[list[dict[str, Any]]],
) -> None:
    steps = [step for trace in vllm_steps for step in trace]
    assert len(steps) > 4000
    assert sum(len(step["preempted"]) for step in steps) > 50
    assert sum(len(set(step["scheduled"].values())) > 1 for step in steps) > 200, "mixed steps"
    shared = 0
    for step in steps:
        ids = [block for table in step["tables"].values() for block in table]
        shared += len(ids) > len(set(ids))
    assert shared > 500, "steps in which requests share blocks"


class VictimToTheBack(Scheduler):
    """Wrong on purpose: a preempted request waits behind everybody else."""

    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        self.waiting.rotate(-1)


class FirstBlockFirst(KVCacheManager):
    """Wrong on purpose: the beginning of a sequence is evicted before its end."""

    def free(self, request: Request) -> None:
        self.block_pool.free_blocks(self._blocks.pop(request.request_id, []))


@pytest.mark.parametrize(
    "wrong", [{"scheduler_class": VictimToTheBack}, {"manager_class": FirstBlockFirst}], ids=str
)
def test_a_wrong_class_is_told_apart(
    wrong: dict[str, Any], vllm_steps: list[list[dict[str, Any]]]
) -> None:
    differences = [
        first_difference(trace, theirs, run(trace, **wrong))
        for trace, theirs in zip(TRACES, vllm_steps)
    ]
    assert sum(difference is not None for difference in differences) > len(TRACES) // 4
