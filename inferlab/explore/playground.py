"""All the knobs at once: how many users does a deployment serve within an objective?"""

from functools import lru_cache
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.operators import Precision
from inferlab.analysis.serving_metrics import Answer, summary
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.explore.steady_state import saturated_rate, steady_rates
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Llama-3.1-8B on one A100 within a TTFT of 1 s and a TPOT of 50 ms: which one knob lets most "
    "users in, and which the fewest?"
)
# Three times as many as run at once, and none much longer than the others: a short run of fewer, or
# with a long tail, ends before the batch is full.
NUM_REQUESTS, LONGEST = 96, 512
LOADS = (0.4, 0.8, 1.0, 1.3)  # of what the deployment sustains
PREFIX_TOKENS = 512  # of a prompt, which every request shares
OBJECTIVE = {"ttft_ms": 1000.0, "tpot_ms": 50.0}
FORMATS = {
    "bf16": Precision(),
    "weights in int4": Precision(weight=0.5 + 2 / 128),
}
METRICS = ("ttft_p99_ms", "tpot_p50_ms", "output_tokens_per_s", "goodput_requests_per_s")


def sweep() -> Sweep:
    """Chats with a shared prefix of 512 tokens."""
    return Sweep(
        deployed,
        [
            Control("hardware", "Hardware", ["1 × A100-80GB SXM", "2 × A100-80GB SXM", "1 × L40S"]),
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.1-70B"]),
            Control("precision", "Format", list(FORMATS)),
            Control("max_num_seqs", "Batch limit (sequences)", [32, 8]),
            Control("budget", "Token budget of a step", [2048, 256]),
            Control("caching", "Prefix cache", ["on", "off"]),
            Control("drafts", "Drafts a step (7 in 10 accepted)", [0, 3]),
        ],
        draw,
        in_words,
        {
            "One A100": {},
            "Small batches": {"max_num_seqs": 8},
            "Too large a model": {"model": "Llama-3.1-70B"},
            "Too large, in int4": {"model": "Llama-3.1-70B", "precision": "weights in int4"},
            "Everything on": {"precision": "weights in int4", "drafts": 3},
        },
    )


def deployed(
    hardware: str,
    model: str,
    precision: str,
    max_num_seqs: int,
    budget: int,
    caching: str,
    drafts: int,
) -> dict[str, list[float]]:
    """Each of `METRICS` at each of `LOADS`; `rates` are in requests/s."""
    count, _, device = hardware.partition(" × ")
    server = SimulatedServer(
        SHAPES[model],
        DEVICES[device],
        FORMATS[precision],
        num_gpus=int(count),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        prefix_cache="hash" if caching == "on" else None,
        num_drafts=drafts,
        acceptance=0.7,
    )
    capacity = saturated_rate(server.serve(requests(float("inf"))))
    rates = [load * capacity for load in LOADS]
    found = [answers(server, rate) for rate in rates]
    runs = [summary(run) | steady_rates(run, OBJECTIVE, rate) for run, rate in zip(found, rates)]
    return {
        "rates": rates,
        **{metric: [run[metric] for run in runs] for metric in METRICS},
    }


def answers(server: SimulatedServer, rate_per_s: float) -> list[Answer]:
    return [one.answer for one in server.serve(requests(rate_per_s)).served]


@lru_cache
def requests(rate_per_s: float) -> list[Prompt]:
    """Chats, each behind the same prefix."""
    times_s = traffic.poisson(rate_per_s, NUM_REQUESTS, seed=0)
    return [
        Prompt(
            chat.due_s,
            PREFIX_TOKENS + chat.prompt_tokens,
            chat.output_tokens,
            prefix=0,
            prefix_tokens=PREFIX_TOKENS,
        )
        for chat in traffic.chats(times_s, seed=0, longest=LONGEST)
    ]


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    rates = found["rates"]

    def limit(name: str) -> Curve:
        return Curve("objective", rates, [OBJECTIVE[name]] * len(rates), "grey", "dash", "lines")

    return panels(
        "Offered rate (requests/s)",
        [
            Panel(
                "TTFT, 99th percentile (ms)",
                [Curve("simulated", rates, found["ttft_p99_ms"]), limit("ttft_ms")],
                is_logarithmic=True,
            ),
            Panel(
                "Median TPOT (ms)",
                [Curve("simulated", rates, found["tpot_p50_ms"]), limit("tpot_ms")],
            ),
            Panel(
                "Throughput (tokens/s)", [Curve("simulated", rates, found["output_tokens_per_s"])]
            ),
            Panel(
                "Goodput (requests/s)", [Curve("simulated", rates, found["goodput_requests_per_s"])]
            ),
        ],
        rangemode="tozero",
    )


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    goodput, tpot, ttft = (
        found[metric] for metric in ("goodput_requests_per_s", "tpot_p50_ms", "ttft_p99_ms")
    )
    if not any(goodput):
        return (
            f"The objective cannot be met at any rate: already at {found['rates'][0]:.2g} "
            f"requests/s the median TPOT is {tpot[0]:.1f} ms and the 99th percentile of TTFT "
            f"{ttft[0]:,.0f} ms."
        )
    best = int(np.argmax(goodput))
    return (
        f"At best {goodput[best]:.2g} answers a second keep to the objective, when "
        f"{found['rates'][best]:.2g} are asked for. The median TPOT is then {tpot[best]:.1f} ms, "
        f"the 99th percentile of TTFT {ttft[best]:,.0f} ms, and throughput "
        f"{found['output_tokens_per_s'][best]:,.0f} tokens/s."
    )
