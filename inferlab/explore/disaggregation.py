"""Week 16: servers that only prefill and servers that only decode, against servers that do both."""

from functools import lru_cache, partial
from typing import Any

from plotly.graph_objects import Figure

from inferlab.analysis.serving_metrics import summary
from inferlab.engine.scheduler import Scheduler
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.explore.steady_state import steady_rates
from inferlab.sim import traffic
from inferlab.sim.clients import Prompt
from inferlab.sim.devices import DEVICES
from inferlab.sim.disaggregation import Pools, colocated
from inferlab.sim.outcome import Served
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Four GPUs, prompts of 2,048 tokens, answers of 128. Which has the shorter pauses between "
    "tokens, four servers that do both or two that prefill and two that decode? Which makes more "
    "good answers a second?"
)
NUM_REQUESTS, NUM_GPUS = 80, 4
LOADS = (0.3, 0.6, 0.85, 1.1)  # of what servers that do both sustain
OBJECTIVE = {"ttft_ms": 1000.0, "tpot_ms": 25.0}
METRICS = ("ttft_p50_ms", "itl_p99_ms", "goodput_requests_per_s")
# GB/s one way.
LINKS = {"NVLink": 300.0, "200 Gbit/s": 25.0, "10 Gbit/s": 1.25}


def sweep(scheduler_class: type[Scheduler] = Scheduler) -> Sweep:
    """Llama-3.1-8B on four A100s either way."""
    return Sweep(
        partial(rising_rate, scheduler_class=scheduler_class),
        [
            Control("prompt_tokens", "Prompt (tokens)", [2048, 512, 6144]),
            Control("output_tokens", "Answer (tokens)", [128, 32, 512]),
            Control("prefill", "Servers that prefill, of 4", [2, 1, 3]),
            Control("link", "Link", list(LINKS)),
        ],
        draw,
        in_words,
        {
            "Long prompts, slow link": {"prompt_tokens": 6144, "link": "10 Gbit/s"},
            "Mostly decode": {"prompt_tokens": 512, "output_tokens": 512, "prefill": 1},
            "Mostly prefill": {"prompt_tokens": 6144, "output_tokens": 32, "prefill": 3},
        },
    )


def rising_rate(
    prompt_tokens: int,
    output_tokens: int,
    prefill: int,
    link: str,
    scheduler_class: type[Scheduler] = Scheduler,
) -> dict[str, dict[str, list[float]]]:
    """Each of `METRICS` at each rate, for both ways; `rates` are in requests/s."""
    server = SimulatedServer(
        SHAPES["Llama-3.1-8B"],
        DEVICES["A100-80GB SXM"],
        prefix_cache=None,
        scheduler_class=scheduler_class,
    )
    pools = Pools(server, prefill, NUM_GPUS - prefill, 1e9 * LINKS[link])
    capacity, both = doing_both(prompt_tokens, output_tokens, scheduler_class)  # type: ignore[arg-type]
    rates = [load * capacity for load in LOADS]
    apart = [
        measured(pools.serve(requests(prompt_tokens, output_tokens, rate)), rate) for rate in rates
    ]
    return {
        name: {"rates": rates, **{metric: [run[metric] for run in runs] for metric in METRICS}}
        for name, runs in (("both", both), ("apart", apart))
    }


# The other controls, which vary faster, do not change it.
@lru_cache(maxsize=1)
def doing_both(
    prompt_tokens: int, output_tokens: int, scheduler_class: type[Scheduler]
) -> tuple[float, list[dict[str, float]]]:
    """What servers that do both sustain in requests/s, and their metrics at each of `LOADS`."""
    server = SimulatedServer(
        SHAPES["Llama-3.1-8B"],
        DEVICES["A100-80GB SXM"],
        prefix_cache=None,
        scheduler_class=scheduler_class,
    )

    def at(rate_per_s: float) -> list[Served]:
        prompts = requests(prompt_tokens, output_tokens, rate_per_s)
        return colocated(server, prompts, NUM_GPUS)

    capacity = summary([one.answer for one in at(float("inf"))])["requests_per_s"]
    return capacity, [measured(at(load * capacity), load * capacity) for load in LOADS]


def requests(prompt_tokens: int, output_tokens: int, rate_per_s: float) -> list[Prompt]:
    times_s = traffic.poisson(rate_per_s, NUM_REQUESTS, seed=0)
    return traffic.alike(times_s, prompt_tokens, output_tokens)


def measured(served: list[Served], rate_per_s: float) -> dict[str, float]:
    answers = [one.answer for one in served]
    return summary(answers) | steady_rates(answers, OBJECTIVE, rate_per_s)


def draw(found: dict[str, dict[str, list[float]]], **_: Any) -> Figure:
    rates = found["both"]["rates"]

    def curves(metric: str) -> list[Curve]:
        return [
            Curve("four that do both", rates, found["both"][metric], "orange"),
            Curve("prefill and decode apart", rates, found["apart"][metric]),
        ]

    return panels(
        "Offered rate (requests/s)",
        [
            Panel("Median TTFT (ms)", curves("ttft_p50_ms"), is_logarithmic=True),
            Panel("ITL, 99th percentile (ms)", curves("itl_p99_ms"), is_logarithmic=True),
            Panel("Goodput (requests/s)", curves("goodput_requests_per_s")),
        ],
        columns=3,
        rangemode="tozero",
    ).update_layout(height=400)


def in_words(found: dict[str, dict[str, list[float]]], **_: Any) -> str:
    at = LOADS.index(0.85)
    both, apart = found["both"], found["apart"]
    return (
        f"At {both['rates'][at]:.1f} requests/s, four servers that do both have a median TTFT of "
        f"{both['ttft_p50_ms'][at]:,.0f} ms and a 99th percentile of ITL of "
        f"{both['itl_p99_ms'][at]:.0f} ms; apart, they are {apart['ttft_p50_ms'][at]:,.0f} and "
        f"{apart['itl_p99_ms'][at]:.0f} ms. Good answers a second: "
        f"{both['goodput_requests_per_s'][at]:.1f} and {apart['goodput_requests_per_s'][at]:.1f}."
    )
