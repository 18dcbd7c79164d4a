"""Week 6: what a radix tree saves under each order of admission."""

from functools import partial
from typing import Any

from plotly.graph_objects import Figure

from inferlab.analysis.serving_metrics import summary
from inferlab.engine.policy import dfs_weight, fcfs, lpm
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim import traffic
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Twelve groups of eight prompts arrive at once, in random order, and the cache has room for "
    "four of the groups' prefixes. By how much does the longest match first raise the hit rate?"
)
POLICIES = {"first come": fcfs, "longest match": lpm, "by subtree": dfs_weight}
COLOURS = ("grey", "blue", "orange")
# Prefixes that the cache has room for.
ROOMS = (1, 2, 4, 8, 16)
SUFFIX_TOKENS, OUTPUT_TOKENS = 64, 32
IN_FLIGHT = 8


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on an A100, all requests in the queue from the start."""
    return Sweep(
        partial(growing_cache, scheduler_class=scheduler_class),
        [
            Control("groups", "Groups", [12, 4, 8, 16]),
            Control("prompts", "Prompts of a group", [8, 1, 2, 4]),
            Control("prefix_tokens", "Shared prefix (tokens)", [1024, 64, 256, 4096]),
        ],
        draw,
        in_words,
        {
            "Nobody shares": {"prompts": 1},
            "Few groups, many prompts": {"groups": 4},
            "Short prefixes": {"prefix_tokens": 64},
        },
    )


def growing_cache(
    groups: int, prompts: int, prefix_tokens: int, scheduler_class: type[Scheduler] = Scheduler
) -> dict[str, dict[str, list[float]]]:
    """For each policy: hit share, median TTFT and duration with each of `ROOMS`."""
    requests = traffic.sharing(
        traffic.poisson(float("inf"), groups * prompts, seed=0),
        seed=0,
        num_prefixes=groups,
        prefix_tokens=prefix_tokens,
        suffix_tokens=SUFFIX_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    found: dict[str, dict[str, list[float]]] = {}
    for name, policy in POLICIES.items():
        of_policy: dict[str, list[float]] = {"hit": [], "ttft_ms": [], "duration_s": []}
        for room in ROOMS:
            server = SimulatedServer(
                SHAPES["Llama-3.1-8B"],
                DEVICES["A100-80GB SXM"],
                # Beside what is cached, the running requests' own tokens.
                kv_tokens=room * prefix_tokens
                + IN_FLIGHT * (prefix_tokens + SUFFIX_TOKENS + OUTPUT_TOKENS + 16),
                max_num_seqs=IN_FLIGHT,
                prefix_cache="radix",
                policy=policy,
                scheduler_class=scheduler_class,
            )
            served = server.serve(requests).served
            metrics = summary([one.answer for one in served])
            hits = sum(one.cached_tokens for one in served)
            of_policy["hit"].append(hits / metrics["input_tokens"])
            of_policy["ttft_ms"].append(metrics["ttft_p50_ms"])
            of_policy["duration_s"].append(metrics["duration_s"])
        found[name] = of_policy
    return found


def most(groups: int, prompts: int, prefix_tokens: int) -> float:
    """The hit share if each prefix is computed once."""
    return (prompts - 1) / prompts * prefix_tokens / (prefix_tokens + SUFFIX_TOKENS)


def draw(found: dict[str, dict[str, list[float]]], **point: Any) -> Figure:
    def curves(metric: str, factor: float = 1) -> list[Curve]:
        return [
            Curve(name, ROOMS, [factor * value for value in found[name][metric]], colour)
            for name, colour in zip(POLICIES, COLOURS)
        ]

    best = Curve(
        "each prefix once", ROOMS, [100 * most(**point)] * len(ROOMS), "green", "dash", "lines"
    )
    return panels(
        "Prefixes that fit beside the running requests",
        [
            Panel("Prompt tokens found in the cache (%)", [*curves("hit", 100), best]),
            Panel("Median TTFT (ms)", curves("ttft_ms")),
        ],
        type="log",
        tickvals=ROOMS,
    ).update_layout(height=400)


def in_words(found: dict[str, dict[str, list[float]]], **_: Any) -> str:
    at = ROOMS.index(4)
    said = ", ".join(
        f"{of_policy['hit'][at]:.0%} and {of_policy['ttft_ms'][at]:.0f} ms with {name}"
        for name, of_policy in found.items()
    )
    return f"With room for {ROOMS[at]} prefixes, tokens found and median TTFT are {said}."
