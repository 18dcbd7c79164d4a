"""Week 13: what more GPUs give a step, and what adding up between them takes."""

from dataclasses import replace
from typing import Any

from plotly.graph_objects import Figure

from inferlab.analysis.operators import StepShape
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim.devices import DEVICES, PCIE_4
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import Overheads
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Two all-reduces a layer of 8 KiB each: with 1 sequence, which share of a step of Llama-3.1-8B "
    "on 8 GPUs is communication if each takes 10 µs? On which link does a second GPU not pay?"
)
GPUS = (1, 2, 4, 8)
# Bandwidth one way, and what an all-reduce of a few bytes takes: the latter is assumed, because no
# GPU has been measured.
LINKS = {
    "NVLink": (300e9, 10e-6),
    "PCIe": (PCIE_4, 25e-6),
    "Ethernet, 100 Gbit/s": (12.5e9, 60e-6),
}


def sweep() -> Sweep:
    """A decode step, or a prompt, on 1 to 8 A100s."""
    return Sweep(
        on_gpus,
        [
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.1-70B", "Mixtral-8x7B"]),
            Control("link", "Link", list(LINKS)),
            Control("kind", "Step", ["decode", "one prompt of 2,048"]),
            Control("batch", "Batch (sequences)", [1, 4, 16, 64, 256]),
        ],
        draw,
        in_words,
        {
            "One user": {},
            "A full batch": {"batch": 256},
            "Across machines": {"link": "Ethernet, 100 Gbit/s"},
            "Too large for one": {"model": "Llama-3.1-70B"},
        },
    )


def on_gpus(model: str, link: str, kind: str, batch: int) -> dict[str, list[float]]:
    """Milliseconds of computing and communication on each of `GPUS`; NaN where it does not fit."""
    bandwidth, latency = LINKS[link]
    device = replace(DEVICES["A100-80GB SXM"], link_bytes_per_s=bandwidth)
    step = (
        StepShape.decode(batch, batch * 1024)
        if kind == "decode"
        else StepShape.of([(2048, 2048, True)])
    )
    found: dict[str, list[float]] = {"computing": [], "communication": []}
    for num_gpus in GPUS:
        server = SimulatedServer(
            SHAPES[model], device, overheads=Overheads(all_reduce_s=latency), num_gpus=num_gpus
        )
        if not fits(server):
            found["computing"].append(float("nan"))
            found["communication"].append(float("nan"))
            continue
        communication = float(server.step_time.communication_seconds(step))
        found["communication"].append(1000 * communication)
        found["computing"].append(1000 * (float(server.step_time(step)) - communication))
    return found


def fits(server: SimulatedServer) -> bool:
    """Whether there is room for K and V beside the weights."""
    try:
        return server.num_blocks > 0
    except ValueError:
        return False


def draw(found: dict[str, list[float]], *, kind: str, batch: int, **_: Any) -> Figure:
    tokens = batch if kind == "decode" else 2048
    steps = [sum(parts) for parts in zip(found["computing"], found["communication"])]
    return panels(
        "GPUs",
        [
            Panel(
                "Step (ms)",
                [
                    Curve("whole step", GPUS, steps),
                    Curve("communication", GPUS, found["communication"], "vermilion"),
                ],
            ),
            Panel(
                "Tokens/s of each GPU",
                [
                    Curve(
                        "throughput",
                        GPUS,
                        [1000 * tokens / ms / gpus for ms, gpus in zip(steps, GPUS)],
                        "green",
                    )
                ],
            ),
        ],
        type="log",
        tickvals=GPUS,
    ).update_layout(height=400)


def in_words(found: dict[str, list[float]], *, model: str, **_: Any) -> str:
    steps = [sum(parts) for parts in zip(found["computing"], found["communication"])]
    first = next(number for number, ms in enumerate(steps) if ms == ms)
    share = found["communication"][-1] / steps[-1]
    return (
        f"{model} takes {steps[first]:.2f} ms on {GPUS[first]} GPU{'s' * (first > 0)} and "
        f"{steps[-1]:.2f} ms on {GPUS[-1]}, of which {share:.0%} is communication."
    )
