"""Week 7: static batches against continuous ones, by how unequal the answers are."""

from functools import partial
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.operators import StepShape
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import RooflineStepTime
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Answers have 256 tokens on average. If all have 256, how much faster are continuous batches "
    "than static ones? And if lengths vary as much as in chats?"
)
NUM_REQUESTS = 192
PROMPT_TOKENS = 64
LONGEST = 4096
SHOWN = 150  # moments of a run
STEP_TIME = RooflineStepTime(SHAPES["Llama-3.1-8B"], DEVICES["A100-80GB SXM"])


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on an A100, all requests in the queue from the start."""
    return Sweep(
        partial(both, scheduler_class=scheduler_class),
        [
            Control("spread", "Spread of lengths (coefficient of variation)", [0, 0.3, 0.6, 1, 2]),
            Control("batch", "Batch limit (sequences)", [8, 16, 32, 64]),
            Control("mean_tokens", "Mean answer (tokens)", [256, 64, 1024]),
        ],
        draw,
        in_words,
        {
            "Like chats": {"spread": 1, "batch": 32},
            "Large, very unequal": {"spread": 2, "batch": 64},
        },
    )


def both(
    spread: float, batch: int, mean_tokens: int, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, list[float]]:
    """At `SHOWN` times (s), how many sequences get a token that they want, either way."""
    lengths = answer_lengths(spread, mean_tokens)
    server = SimulatedServer(
        STEP_TIME.model,
        STEP_TIME.device,
        max_num_seqs=batch,
        prefix_cache=None,
        scheduler_class=scheduler_class,
    )
    run = server.serve([Prompt(0.0, PROMPT_TOKENS, length) for length in lengths])
    continuous = [(step.start_s, step.decode_tokens) for step in run.steps] + [(run.now_s, 0)]
    static = static_steps(lengths, batch)
    times = np.linspace(0, max(run.now_s, static[-1][0]), SHOWN)
    return {
        "times_s": times.tolist(),
        "continuous": sampled(continuous, times),
        "static": sampled(static, times),
        "tokens_per_s": [sum(lengths) / run.now_s, sum(lengths) / static[-1][0]],
    }


def sampled(changes: list[tuple[float, int]], times: np.ndarray) -> list[float]:
    """The value at each time, where `changes` says from when on it is what."""
    starts, values = zip(*changes)
    return [float(values[i - 1]) for i in np.searchsorted(starts, times, side="right")]


def answer_lengths(spread: float, mean_tokens: int) -> list[int]:
    """Log-normal lengths with that mean and standard deviation over mean."""
    sigma = np.sqrt(np.log1p(spread**2))
    drawn = np.random.default_rng(0).lognormal(
        np.log(mean_tokens) - sigma**2 / 2, sigma, NUM_REQUESTS
    )
    return [int(length) for length in np.clip(np.round(drawn), 1, LONGEST)]


def static_steps(lengths: list[int], batch: int) -> list[tuple[float, int]]:
    """When the number of sequences that still want a token changes, and to how many.

    Each batch runs until its longest answer ends; who has finished goes on being computed.
    """
    now_s, changes = 0.0, []
    for first in range(0, len(lengths), batch):
        group = sorted(lengths[first : first + batch])
        size = len(group)
        prompts = StepShape.of([(PROMPT_TOKENS, PROMPT_TOKENS, True)] * size)
        changes.append((now_s, 0))
        now_s += float(STEP_TIME(prompts))
        contexts = size * (PROMPT_TOKENS + np.arange(1, group[-1]))
        ends = now_s + np.cumsum(
            np.broadcast_to(STEP_TIME(StepShape.decode(size, contexts)), len(contexts))
        )
        times = np.concatenate([[now_s], ends])
        changes += [
            (float(times[done - 1]), size - number) for number, done in enumerate([1, *group])
        ]
        now_s = float(times[-1])
    return [*changes, (now_s, 0)]


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    ways = (("continuous", "blue"), ("static", "vermilion"))
    figure = panels(
        "Time (s)",
        [
            Panel(
                "Sequences that get a token they want",
                [
                    Curve(way, found["times_s"], found[way], colour, mode="lines")
                    for way, colour in ways
                ],
            )
        ],
        columns=1,
        rangemode="tozero",
    )
    return figure.update_traces(line_shape="hv").update_layout(height=400)


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    continuous, static = found["tokens_per_s"]
    return (
        f"Continuous batches make {continuous:,.0f} tokens/s and static ones {static:,.0f}: "
        f"{continuous / static:.2f} times as many."
    )
