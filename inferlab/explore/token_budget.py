"""Week 8: what the token budget of a step decides between streams and long prompts."""

from functools import partial
from typing import Any

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.analysis.serving_metrics import summary
from inferlab.engine.scheduler import Scheduler
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.outcome import Served
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "One request in ten has a prompt of 6,144 tokens. With a budget of 512 tokens in place of "
    "8,192, what becomes of the longest pause in a stream, and of the long prompts' TTFT?"
)
NUM_REQUESTS = 100
RATE_PER_S = 6.0
SHORT_TOKENS, LONG_TOKENS, OUTPUT_TOKENS = 128, 6144, 128
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on an A100, six requests a second."""
    return Sweep(
        partial(mixed, scheduler_class=scheduler_class),
        [
            Control("long_percent", "Long prompts (%)", [10, 0, 5, 20, 30]),
            Control("budget", "Budget (tokens a step)", list(BUDGETS[::-1])),
            Control("threshold", "Limit of one prompt in a step (tokens)", ["none", "256"]),
        ],
        draw,
        in_words,
        {
            "Whole prompts": {"budget": 8192},
            "Small chunks": {"budget": 256},
            "A limit for each prompt": {"budget": 2048, "threshold": "256"},
            "No long prompts": {"long_percent": 0},
        },
    )


def mixed(
    long_percent: int, budget: int, threshold: str, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, Any]:
    """Latencies, and the intervals of one stream that lives through the run, by time (s)."""
    server = SimulatedServer(
        SHAPES["Llama-3.1-8B"],
        DEVICES["A100-80GB SXM"],
        max_num_batched_tokens=budget,
        long_prefill_token_threshold=0 if threshold == "none" else int(threshold),
        prefix_cache=None,
        scheduler_class=scheduler_class,
    )
    served = server.serve(requests(long_percent)).served
    times = np.array(max(served, key=lambda one: len(one.answer.token_s)).answer.token_s)
    return {
        "times_s": times[1:].tolist(),
        "itl_ms": (1000 * np.diff(times)).tolist(),
        **summary([one.answer for one in served]),
        "long_ttft_ms": median_ttft(served, LONG_TOKENS),
        "short_ttft_ms": median_ttft(served, SHORT_TOKENS),
    }


def requests(long_percent: int) -> list[Prompt]:
    """One long stream from the start, and requests of which so many per cent are long."""
    times_s = traffic.poisson(RATE_PER_S, NUM_REQUESTS, seed=0)
    is_long = np.random.default_rng(0).permutation(NUM_REQUESTS) < long_percent
    stream = Prompt(0.0, SHORT_TOKENS, 240)
    return [
        stream,
        *(
            Prompt(float(due_s), LONG_TOKENS if long else SHORT_TOKENS, OUTPUT_TOKENS)
            for due_s, long in zip(times_s, is_long)
        ),
    ]


def median_ttft(served: list[Served], prompt_tokens: int) -> float:
    """Median TTFT (ms) of the requests with such prompts; NaN if there is none."""
    found = [s.answer.ttft_ms for s in served if s.prompt.prompt_tokens == prompt_tokens]
    return float(np.median(found)) if found else float("nan")


def draw(found: dict[str, Any], **_: Any) -> Figure:
    figure = make_subplots(rows=1, cols=2, column_widths=[0.65, 0.35], horizontal_spacing=0.16)
    figure.add_scatter(
        x=found["times_s"],
        y=found["itl_ms"],
        name="intervals of one stream",
        mode="markers",
        marker={"color": PALETTE["blue"], "size": 4},
        row=1,
        col=1,
    )
    bars = {
        "ITL p50": found["itl_p50_ms"],
        "ITL p99": found["itl_p99_ms"],
        "TTFT, short": found["short_ttft_ms"],
        "TTFT, long": found["long_ttft_ms"],
    }
    figure.add_bar(
        x=list(bars),
        y=list(bars.values()),
        name="all requests",
        marker={"color": PALETTE["orange"]},
        row=1,
        col=2,
    )
    figure.update_xaxes(title="Time (s)", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="Metric", row=1, col=2)
    figure.update_yaxes(title="Interval (ms)", type="log", range=[0.7, 3.1], row=1, col=1)
    figure.update_yaxes(title="Time (ms)", type="log", range=[0.7, 4.5], row=1, col=2)
    return figure


def in_words(found: dict[str, Any], **_: Any) -> str:
    said = (
        f"The median ITL is {found['itl_p50_ms']:.0f} ms, the 99th percentile "
        f"{found['itl_p99_ms']:.0f} ms and the longest {found['itl_max_ms']:.0f} ms. The median "
        f"TTFT of short prompts is {found['short_ttft_ms']:.0f} ms"
    )
    if np.isnan(found["long_ttft_ms"]):
        return f"{said}; no prompt is long."
    return f"{said}, of long ones {found['long_ttft_ms']:.0f} ms."
