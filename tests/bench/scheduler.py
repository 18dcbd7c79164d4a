"""A scheduler's step, `schedule` and `update_from_output` together, beside vLLM's own."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from inferlab import models
from inferlab.lab import upstream
from tests.bench.measurement import Measurement
from tests.scheduler_traces import Trace, busy_trace, step_seconds

TITLE = "Scheduler step, all requests decoding (one sample: the median of 40 steps)"
SCRIPT = Path(__file__).parents[1] / "upstream" / "vllm_scheduler_speed.py"
STEADY = slice(10, 50)  # after the prefills, before the first request ends
SIZES = {
    "64 running": busy_trace(64),
    "128 running": busy_trace(128),
    "256 running": busy_trace(256),
    "256 running, 4,096 waiting": busy_trace(256, num_waiting=4096),
    "256 running, pool of 262,144 blocks": busy_trace(256, num_blocks=262_144),
}


def ours(trace: Trace) -> float:
    """Microseconds of a step of our scheduler."""
    return 1e6 * median(step_seconds(trace, STEADY.stop)[STEADY])


def vllms(repeats: int) -> list[float]:
    """Microseconds of a step of vLLM's scheduler with 256 requests running."""
    question = {
        "checkpoint": str(models.path("tiny-chat")),
        "traces": [SIZES["256 running"]] * repeats,
    }
    runs = upstream(SCRIPT.read_text(), question)
    return [1e6 * median(seconds[STEADY]) for seconds in runs]


def measure(repeats: int) -> Iterator[Measurement]:
    """vLLM at 256 running requests; ours there, at fewer, with a queue, and with a larger pool."""
    yield Measurement("vLLM, 256 running", "µs", vllms(repeats))
    for name, trace in SIZES.items():
        samples = [ours(trace) for _ in range(repeats)]
        yield Measurement(f"inferlab, {name}", "µs", samples)
