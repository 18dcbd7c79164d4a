"""Simulating chats on Llama-3.1-8B and an A100, and a sweep over 60 such runs on all cores."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from plotly.graph_objects import Figure

from inferlab.sim import traffic
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep
from tests.bench.measurement import Measurement

TITLE = "Simulator: chats, one run on one core, and a sweep of 60 runs of 1,000 chats"
SERVER = SimulatedServer(SHAPES["Llama-3.1-8B"], DEVICES["A100-80GB SXM"])
# Requests/s: at about half of what the server sustains, and beyond it.
RATES = (8.0, 30.0)


def simulate(
    rate_per_s: float, max_num_seqs: int = 256, num_requests: int = 1000
) -> dict[str, float]:
    prompts = traffic.chats(traffic.poisson(rate_per_s, num_requests, seed=0), seed=0)
    run = replace(SERVER, max_num_seqs=max_num_seqs).serve(prompts)
    return {"steps": sum(step.repeats for step in run.steps), "seconds": run.now_s}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sweep() -> Sweep:
    """20 rates from well below what the server sustains to beyond it, at 3 batch limits."""
    return Sweep(
        simulate,
        [
            Control("rate_per_s", "Rate (requests/s)", [float(2 + 2 * i) for i in range(20)]),
            Control("max_num_seqs", "Batch limit (sequences)", [256, 64, 16]),
        ],
        lambda found, **_: Figure(),
        lambda found, **_: "",
    )


def measure(repeats: int) -> Iterator[Measurement]:
    for rate in RATES:
        for count in (1000, 10_000, 100_000):
            runs = repeats if count == 1000 else 1
            samples = [seconds(lambda: simulate(rate, num_requests=count)) for _ in range(runs)]  # noqa: B023
            yield Measurement(f"{count:,} chats, {rate:g} requests/s", "s", samples)
    yield Measurement("60 runs of 1,000 chats", "s", [seconds(lambda: sweep().static())])
