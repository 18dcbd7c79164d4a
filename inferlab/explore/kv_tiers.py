"""Week 15: load K and V from a tier, or compute them anew?"""

from dataclasses import replace
from functools import lru_cache, partial
from math import inf
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.kv_memory import kv_bytes_per_token
from inferlab.analysis.operators import StepShape
from inferlab.analysis.serving_metrics import summary
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.kv_tiers import Tier
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import Overheads, RooflineStepTime
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "K and V of 2,048 tokens of Llama-3.1-8B are 268 MB. From which bandwidth on is loading them "
    "faster than computing them on an A100 at half of its peak?"
)
PROMPTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNKS = (16, 64, 128, 256, 512, 1024, 2048)
# Questions about documents of which the KV cache holds a third.
NUM_REQUESTS, NUM_DOCUMENTS, DOCUMENT, QUESTION, ANSWER = 72, 24, 2048, 64, 16
LOADS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of what the server sustains that computes them all
# Of the peak, the arithmetic that a real prefill reaches: assumed. Attention is left at the peak.
PREFILL_SHARE = 0.5


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """An A100: one prompt whose K and V are all in the tier, and many about shared documents."""
    return Sweep(
        partial(tier, scheduler_class=scheduler_class),
        [
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.2-1B", "Qwen2.5-0.5B"]),
            Control("gb_per_s", "Bandwidth of the tier (GB/s)", [25, 1, 2.5, 5, 12.5, 50]),
            Control("latency_ms", "Latency of a chunk (ms)", [0.1, 0, 1, 10]),
            Control("chunk", "Chunk (tokens)", [256, 16, 1024]),
        ],
        draw,
        in_words,
        {
            "Memory of the host": {},
            "A disk": {"gb_per_s": 5, "latency_ms": 0.1},
            "Another machine, 10 Gbit/s": {"gb_per_s": 1, "latency_ms": 1},
        },
    )


def tier(
    model: str,
    gb_per_s: float,
    latency_ms: float,
    chunk: int,
    scheduler_class: type[Scheduler] = Scheduler,
) -> dict[str, list[float]]:
    """Milliseconds to compute each of `PROMPTS`, and to load its whole chunks and compute the rest.

    The last token is always computed. `found` is the mean share in whole chunks of prompts of all
    lengths up to 2,048 tokens, for each of `CHUNKS`. `without` and `with` are the median TTFT in ms
    of requests about shared documents, at each of `rates` in requests/s.
    """
    shape = SHAPES[model]
    per_token = kv_bytes_per_token(shape.num_layers, shape.num_kv_heads, shape.head_dim, 2.0)
    found: dict[str, list[float]] = {"computed": [], "loaded": []}
    for prompt in PROMPTS:
        chunks = (prompt - 1) // chunk
        kept = chunks * chunk
        moving_ms = per_token * kept / (gb_per_s * 1e6) + latency_ms * chunks
        found["computed"].append(prefill_ms(model, prompt, 0))
        found["loaded"].append(moving_ms + prefill_ms(model, prompt - kept, kept))
    lengths = np.arange(1, 2049)
    found["found"] = [
        float(((lengths - 1) // size * size).sum() / lengths.sum()) for size in CHUNKS
    ]
    slow = Tier("tier", NUM_DOCUMENTS * 2 * DOCUMENT, 1e9 * gb_per_s, latency_ms / 1000)
    tiered = replace(server(model, scheduler_class), tiers=(slow,), chunk_size=chunk)
    found["rates"], found["without"] = computing(model, scheduler_class)  # type: ignore[arg-type]
    found["with"] = [median_ttft_ms(tiered, rate) for rate in found["rates"]]
    return found


# What the tier is does not change it.
@lru_cache(maxsize=1)
def computing(model: str, scheduler_class: type[Scheduler]) -> tuple[list[float], list[float]]:
    """Rates, and the median TTFT in ms at each, of a server that computes what it lost."""
    alone = server(model, scheduler_class)
    answers = [one.answer for one in alone.serve(questions(inf)).served]
    rates = [load * summary(answers)["requests_per_s"] for load in LOADS]
    return rates, [median_ttft_ms(alone, rate) for rate in rates]


def server(model: str, scheduler_class: type[Scheduler]) -> SimulatedServer:
    """One whose KV cache holds a third of the documents."""
    return SimulatedServer(
        SHAPES[model],
        DEVICES["A100-80GB SXM"],
        overheads=Overheads(arithmetic_share=PREFILL_SHARE),
        kv_tokens=NUM_DOCUMENTS * DOCUMENT // 3,
        scheduler_class=scheduler_class,
    )


def median_ttft_ms(server: SimulatedServer, rate_per_s: float) -> float:
    served = server.serve(questions(rate_per_s)).served
    return summary([one.answer for one in served])["ttft_p50_ms"]


def questions(rate_per_s: float) -> list[Prompt]:
    """The same questions at every rate, each about one of the documents."""
    return traffic.sharing(
        traffic.poisson(rate_per_s, NUM_REQUESTS, seed=0),
        seed=0,
        num_prefixes=NUM_DOCUMENTS,
        prefix_tokens=DOCUMENT,
        suffix_tokens=QUESTION,
        output_tokens=ANSWER,
    )


def prefill_ms(model: str, tokens: int, before: int) -> float:
    """Milliseconds of a step that computes `tokens` after `before` others are there."""
    step_time = RooflineStepTime(
        SHAPES[model],
        DEVICES["A100-80GB SXM"],
        overheads=Overheads(arithmetic_share=PREFILL_SHARE),
    )
    return 1000 * float(step_time(StepShape.of([(tokens, before + tokens, True)])))


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    figure = panels(
        "Prompt (tokens)",
        [
            Panel(
                "Time to the first token (ms)",
                [
                    Curve("computed", PROMPTS, found["computed"], "vermilion"),
                    Curve("loaded", PROMPTS, found["loaded"]),
                ],
                is_logarithmic=True,
            ),
            Panel(
                "Prompt tokens in whole chunks (%)",
                [Curve("found", CHUNKS, [100 * share for share in found["found"]], "green")],
            ),
            Panel(
                "Median TTFT (ms)",
                [
                    Curve("computed", found["rates"], found["without"], "vermilion"),
                    Curve("loaded", found["rates"], found["with"]),
                ],
                is_logarithmic=True,
            ),
        ],
        columns=3,
        type="log",
    )
    figure.update_xaxes(title="Chunk (tokens)", tickvals=CHUNKS[::2], row=1, col=2)
    figure.update_xaxes(title="Rate (requests/s)", type="linear", row=1, col=3)
    return figure.update_layout(height=400)


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    pays = [
        prompt
        for prompt, computed, loaded in zip(PROMPTS, found["computed"], found["loaded"])
        if loaded < computed
    ]
    at = PROMPTS.index(2048)
    said = f"Loading pays from {pays[0]:,} tokens on" if pays else "Loading never pays"
    return (
        f"{said}. For 2,048 tokens, computing takes {found['computed'][at]:.0f} ms and loading "
        f"{found['loaded'][at]:.0f} ms. At {found['rates'][-1]:.1f} requests/s about documents of "
        f"which the KV cache holds a third, the median TTFT is {found['without'][-1]:,.0f} ms "
        f"without the tier and {found['with'][-1]:,.0f} ms with it."
    )
