"""Week 1: what the offered rate does to latency, throughput and goodput."""

from functools import lru_cache, partial
from math import inf
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.serving_metrics import Answer, summary
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.explore.steady_state import saturated_rate, steady_rates
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "At half of the rate that the server can just sustain, how far is the median TTFT above that "
    "of an idle server? And at 95 % of it?"
)
# Four times as many as run at once, and none much longer than the others: a short run of fewer, or
# with a long tail, ends before the batch is full.
NUM_REQUESTS, LONGEST = 256, 512
LOADS = (0.2, 0.5, 0.7, 0.85, 1.0, 1.15, 1.4)  # of what the server sustains
# Tokens of prompt and answer, after the named workloads of the experiments.
LENGTHS = {
    "chats": None,
    "short question, short answer": (128, 64),
    "long prompt, short answer": (4096, 64),
}
OBJECTIVES = {
    "TTFT 500 ms, TPOT 50 ms": {"ttft_ms": 500.0, "tpot_ms": 50.0},
    "TTFT 2 s, TPOT 20 ms": {"ttft_ms": 2000.0, "tpot_ms": 20.0},
    "TTFT 200 ms, TPOT 10 ms": {"ttft_ms": 200.0, "tpot_ms": 10.0},
    "TTFT 10 s, TPOT 200 ms": {"ttft_ms": 10000.0, "tpot_ms": 200.0},
}
METRICS = (
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "output_tokens_per_s",
    "goodput_requests_per_s",
)


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on one GPU, from a fifth of its capacity to beyond it."""
    return Sweep(
        partial(rising_rate, scheduler_class=scheduler_class),
        [
            Control("device", "GPU", ["A100-80GB SXM", "H100 SXM"]),
            Control("lengths", "Requests", list(LENGTHS)),
            Control("max_num_seqs", "Batch limit (sequences)", [64, 16, 4]),
            Control("objective", "Objective", list(OBJECTIVES)),
        ],
        draw,
        in_words,
        {
            "Long prompts": {"lengths": "long prompt, short answer"},
            "Small batches": {"max_num_seqs": 4, "lengths": "chats"},
            "Strict between tokens": {"objective": "TTFT 2 s, TPOT 20 ms", "lengths": "chats"},
        },
    )


def rising_rate(
    device: str,
    lengths: str,
    max_num_seqs: int,
    objective: str,
    scheduler_class: type[Scheduler] = Scheduler,
) -> dict[str, list[float]]:
    """Each of `METRICS` at each rate; `requests_per_s` holds the rates offered."""
    capacity, runs = answered(device, lengths, max_num_seqs, scheduler_class)  # type: ignore[arg-type]
    rates = [load * capacity for load in LOADS]
    found = [
        summary(run) | steady_rates(run, OBJECTIVES[objective], rate)
        for run, rate in zip(runs, rates)
    ]
    return {
        "requests_per_s": rates,
        **{metric: [one[metric] for one in found] for metric in METRICS},
    }


# Objectives are judged afterwards, and vary fastest.
@lru_cache(maxsize=1)
def answered(
    device: str, lengths: str, max_num_seqs: int, scheduler_class: type[Scheduler]
) -> tuple[float, list[list[Answer]]]:
    """What the server can sustain in requests/s, and its answers at each of `LOADS`."""
    server = SimulatedServer(
        SHAPES["Llama-3.1-8B"],
        DEVICES[device],
        max_num_seqs=max_num_seqs,
        scheduler_class=scheduler_class,
    )
    capacity = saturated_rate(server.serve(requests(lengths, inf)))
    return capacity, [answers_at(server, lengths, load * capacity) for load in LOADS]


def answers_at(server: SimulatedServer, lengths: str, rate_per_s: float) -> list[Answer]:
    """The answers to requests that come with `rate_per_s`."""
    return [one.answer for one in server.serve(requests(lengths, rate_per_s)).served]


def requests(lengths: str, rate_per_s: float) -> list[Prompt]:
    """The same requests at every rate, closer together or further apart."""
    times_s = traffic.poisson(rate_per_s, NUM_REQUESTS, seed=0)
    tokens = LENGTHS[lengths]
    return (
        traffic.alike(times_s, *tokens)
        if tokens
        else traffic.chats(times_s, seed=0, longest=LONGEST)
    )


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    rates = found["requests_per_s"]

    def pair(metric: str) -> list[Curve]:
        return [
            Curve("median", rates, found[f"{metric}_p50_ms"]),
            Curve("99th percentile", rates, found[f"{metric}_p99_ms"], "vermilion"),
        ]

    return panels(
        "Offered rate (requests/s)",
        [
            Panel("TTFT (ms)", pair("ttft"), is_logarithmic=True),
            Panel("ITL (ms)", pair("itl"), is_logarithmic=True),
            Panel(
                "Throughput (tokens/s)",
                [Curve("throughput", rates, found["output_tokens_per_s"], "green")],
            ),
            Panel(
                "Goodput (requests/s)",
                [
                    Curve("within the objective", rates, found["goodput_requests_per_s"], "green"),
                    Curve("all that are offered", rates, rates, "grey", "dash", "lines"),
                ],
            ),
        ],
    )


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    rates, goodput = found["requests_per_s"], found["goodput_requests_per_s"]
    best = int(np.argmax(goodput))
    ttft, itl = found["ttft_p50_ms"], found["itl_p50_ms"]
    return (
        f"From {rates[0]:.2g} to {rates[-1]:.2g} requests/s, the median TTFT goes from "
        f"{ttft[0]:.0f} to {ttft[-1]:.0f} ms, and the median ITL from {itl[0]:.1f} to "
        f"{itl[-1]:.1f} ms. Goodput is highest at {rates[best]:.2g} requests/s, of which "
        f"{goodput[best]:.2g} keep to the objective."
    )
