"""Week 9: routers in front of several servers, by how unequally prefixes are asked for."""

from functools import partial
from typing import Any

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.analysis.serving_metrics import summary
from inferlab.engine.router import CacheAware, PowerOfTwo, RandomChoice, RoundRobin, Router
from inferlab.engine.scheduler import Scheduler
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.fleet import serve_behind
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "Of 32 prefixes one is asked for by every fourth request. A cache-aware router sends all of "
    "these to one server. Are the slowest answers slower then, or faster, than with taking turns?"
)
ROUTERS: dict[str, tuple[type[Router], str]] = {
    "taking turns": (RoundRobin, "grey"),
    "any": (RandomChoice, "sky"),
    "less busy of two": (PowerOfTwo, "orange"),
    "cache-aware": (CacheAware, "blue"),
}
NUM_REQUESTS, NUM_PREFIXES = 160, 32
CACHED_PREFIXES = 12  # that a server has room for, beside what it is computing
PREFIX_TOKENS, SUFFIX_TOKENS, OUTPUT_TOKENS = 2048, 128, 64


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on A100s with equal caches; 2,048 tokens shared, 128 of a prompt's own."""
    return Sweep(
        partial(each_router, scheduler_class=scheduler_class),
        [
            Control("skew", "Skew of the prefixes (exponent of Zipf's law)", [1.0, 0.0, 0.5, 2.0]),
            Control("workers", "Servers", [4, 2, 8]),
            Control("rate", "Offered rate (requests/s a server)", [4, 2, 6, 8, 12]),
        ],
        draw,
        in_words,
        {
            "All prefixes alike": {"skew": 0.0},
            "One prefix for most": {"skew": 2.0},
            "Many servers, high load": {"workers": 8, "rate": 12},
        },
    )


def requests(skew: float, rate_per_s: float) -> list[Prompt]:
    """The prefix of rank r is asked for in proportion to r to the power of -skew (Zipf)."""
    weights = np.arange(1, NUM_PREFIXES + 1) ** -skew
    prefixes = np.random.default_rng(0).choice(
        NUM_PREFIXES, NUM_REQUESTS, p=weights / weights.sum()
    )
    return [
        Prompt(
            float(due_s),
            PREFIX_TOKENS + SUFFIX_TOKENS,
            OUTPUT_TOKENS,
            prefix=int(prefix),
            prefix_tokens=PREFIX_TOKENS,
        )
        for due_s, prefix in zip(traffic.poisson(rate_per_s, NUM_REQUESTS, seed=0), prefixes)
    ]


def each_router(
    skew: float, workers: int, rate: float, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, list[float]]:
    """For each router: hit share, 99th percentile of TTFT and what the busiest server gets."""
    server = SimulatedServer(
        SHAPES["Llama-3.1-8B"],
        DEVICES["A100-80GB SXM"],
        kv_tokens=(CACHED_PREFIXES + 8) * (PREFIX_TOKENS + SUFFIX_TOKENS + OUTPUT_TOKENS),
        scheduler_class=scheduler_class,
    )
    prompts = requests(skew, rate * workers)
    found: dict[str, list[float]] = {"hit": [], "p99_ms": [], "busiest": []}
    for router, _ in ROUTERS.values():
        fleet = serve_behind(router(workers), server, prompts)
        metrics = summary([one.answer for one in fleet.served])
        hits = sum(one.cached_tokens for one in fleet.served)
        found["hit"].append(hits / metrics["input_tokens"])
        found["p99_ms"].append(metrics["ttft_p99_ms"])
        found["busiest"].append(max(fleet.requests) * workers / NUM_REQUESTS)
    return found


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.12)
    shown = {
        "Prompt tokens found (%)": [100 * hit for hit in found["hit"]],
        "TTFT, 99th percentile (ms)": found["p99_ms"],
        "Requests of the busiest server (× mean)": found["busiest"],
    }
    for column, (title, values) in enumerate(shown.items(), 1):
        figure.add_bar(
            x=list(ROUTERS),
            y=values,
            marker={"color": [PALETTE[colour] for _, colour in ROUTERS.values()]},
            showlegend=False,
            row=1,
            col=column,
        )
        figure.update_yaxes(title=title, rangemode="tozero", row=1, col=column)
    return figure.update_xaxes(title="Router")


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    said = ", ".join(
        f"{name} {hit:.0%} and {p99:,.0f} ms"
        for name, hit, p99 in zip(ROUTERS, found["hit"], found["p99_ms"])
    )
    return f"Prompt tokens found and 99th percentile of TTFT are: {said}."
