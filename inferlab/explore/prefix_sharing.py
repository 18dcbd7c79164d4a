"""Week 5: what a prefix cache saves, by how much is shared and how much it can hold."""

from functools import partial
from typing import Any

from plotly.graph_objects import Figure

from inferlab.analysis.serving_metrics import summary
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim import traffic
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Forty prefixes of 1,024 tokens are asked for in random order, twice each. The smallest cache "
    "has room for 32 of them. Which share of the hits of a large cache does it reach?"
)
NUM_REQUESTS = 80
PROMPT_TOKENS = 2048
SHARED_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 0.9)
OUTPUT_TOKENS = 64


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Prompts of 2,048 tokens for Llama-3.1-8B on an A100, with blocks of 16 tokens."""
    return Sweep(
        partial(rising_share, scheduler_class=scheduler_class),
        [
            Control("num_prefixes", "Different prefixes", [10, 1, 40, 80]),
            Control("cache_tokens", "Cache (tokens)", [262144, 131072, 65536, 32768]),
            Control("rate", "Offered rate (requests/s)", [4, 2, 8, 16]),
        ],
        draw,
        in_words,
        {
            "One system prompt": {"num_prefixes": 1},
            "Nobody shares": {"num_prefixes": 80},
            "More prefixes than room": {"num_prefixes": 40, "cache_tokens": 32768},
            "Overload without a cache": {"rate": 16},
        },
    )


def rising_share(
    num_prefixes: int, cache_tokens: int, rate: float, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, list[float]]:
    """Hit share and latency at each of `SHARED_SHARES`, and latency without a cache."""
    found: dict[str, list[float]] = {"hit": [], "ttft_ms": [], "p99_ms": [], "uncached_ms": []}
    for share in SHARED_SHARES:
        prefix_tokens = int(PROMPT_TOKENS * share)
        prompts = traffic.sharing(
            traffic.poisson(rate, NUM_REQUESTS, seed=0),
            seed=0,
            num_prefixes=num_prefixes,
            prefix_tokens=prefix_tokens,
            suffix_tokens=PROMPT_TOKENS - prefix_tokens,
            output_tokens=OUTPUT_TOKENS,
        )
        # Without a cache it does not matter how much is shared.
        for prefix_cache in ("hash",) if found["uncached_ms"] else ("hash", None):
            server = SimulatedServer(
                SHAPES["Llama-3.1-8B"],
                DEVICES["A100-80GB SXM"],
                kv_tokens=cache_tokens,
                prefix_cache=prefix_cache,
                scheduler_class=scheduler_class,
            )
            served = server.serve(prompts).served
            metrics = summary([one.answer for one in served])
            if prefix_cache is None:
                found["uncached_ms"] = [metrics["ttft_p50_ms"]] * len(SHARED_SHARES)
                continue
            hits = sum(one.cached_tokens for one in served)
            found["hit"].append(hits / metrics["input_tokens"])
            found["ttft_ms"].append(metrics["ttft_p50_ms"])
            found["p99_ms"].append(metrics["ttft_p99_ms"])
    return found


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    percent = [100 * share for share in SHARED_SHARES]
    return panels(
        "Shared share of a prompt (%)",
        [
            Panel(
                "Prompt tokens found in the cache (%)",
                [
                    Curve("found", percent, [100 * hit for hit in found["hit"]], "green"),
                    Curve("all that is shared", percent, percent, "grey", "dash", "lines"),
                ],
            ),
            Panel(
                "TTFT (ms)",
                [
                    Curve("median", percent, found["ttft_ms"]),
                    Curve("99th percentile", percent, found["p99_ms"], "vermilion"),
                    Curve("median without cache", percent, found["uncached_ms"], "grey", "dash"),
                ],
                is_logarithmic=True,
            ),
        ],
    ).update_layout(height=400)


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    return (
        f"With {SHARED_SHARES[-1]:.0%} of each prompt shared, {found['hit'][-1]:.0%} of the prompt "
        f"tokens are found, and the median TTFT is {found['ttft_ms'][-1]:.0f} ms; without a cache "
        f"it is {found['uncached_ms'][-1]:.0f} ms."
    )
