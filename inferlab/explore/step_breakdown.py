"""Week 2: where the time of a decode step goes as the batch grows."""

from typing import Any

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.analysis.operators import StepShape
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import Overheads
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "From 1 request in the batch to 256, does a decode step take 256 times as long, twice as long, "
    "or as long as before? Which part of it grows first?"
)
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
# The operators of a step, put together as a profile shows them.
PARTS = {
    "attention": ("attention",),
    "feed-forward": ("up and gate projection", "activation", "down projection"),
    "projections": ("qkv projection", "output projection"),
    "head": ("head",),
}
COLOURS = ("orange", "blue", "sky", "green", "grey")


def sweep() -> Sweep:
    """One model on one GPU."""
    return Sweep(
        breakdown,
        [
            Control("device", "GPU", ["A100-80GB SXM", "H100 SXM", "L40S", "L4"]),
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.2-1B", "Qwen2.5-0.5B"]),
            Control("context", "Context (tokens)", [256, 1024, 4096, 16384]),
            Control("host_ms", "Host and launches (ms a step)", [0, 2, 8]),
        ],
        draw,
        in_words,
        {
            "Long contexts": {"context": 16384},
            "A small model waits for the host": {"model": "Qwen2.5-0.5B", "host_ms": 8},
        },
    )


def breakdown(device: str, model: str, context: int, host_ms: float) -> dict[str, list[float]]:
    """Milliseconds of each part at each of `BATCHES`, as far as the memory holds them."""
    overheads = Overheads(step_s=host_ms / 1000)
    server = SimulatedServer(SHAPES[model], DEVICES[device], overheads=overheads)
    longest = server.num_blocks * server.block_size // context
    batches = np.array([batch for batch in BATCHES if batch <= longest])
    if not len(batches):
        raise ValueError(
            f"Beside the weights of {model}, {device} holds K and V of "
            f"{server.num_blocks * server.block_size:,} tokens: no context of {context:,}."
        )
    step_time = server.step_time
    seconds = step_time.operator_seconds(StepShape.decode(batches, batches * context))
    rows = dict(zip(step_time.operator_names, 1000 * seconds))
    return {
        "batches": batches.tolist(),
        "host": [float(host_ms)] * len(batches),
        **{part: sum(rows[name] for name in names).tolist() for part, names in PARTS.items()},
    }


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.16)
    batches = found["batches"]
    for part, colour in zip([*PARTS, "host"], COLOURS):
        figure.add_scatter(
            x=batches,
            y=found[part],
            name=part,
            stackgroup="step",
            mode="lines",
            line={"color": PALETTE[colour]},
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=batches,
        y=[1000 * batch / ms for batch, ms in zip(batches, step_ms(found))],
        name="throughput",
        mode="lines+markers",
        line={"color": PALETTE["vermilion"]},
        row=1,
        col=2,
    )
    figure.update_xaxes(title="Batch (sequences)", type="log", tickvals=BATCHES[::2])
    figure.update_yaxes(title="Step (ms)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="Throughput (tokens/s)", rangemode="tozero", row=1, col=2)
    return figure


def step_ms(found: dict[str, list[float]]) -> list[float]:
    """Milliseconds of a whole step at each batch."""
    return [sum(parts) for parts in zip(*(found[part] for part in [*PARTS, "host"]))]


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    first, last = step_ms(found)[0], step_ms(found)[-1]
    largest = max([*PARTS, "host"], key=lambda part: found[part][-1])
    batch = found["batches"][-1]
    return (
        f"A step takes {first:.1f} ms for 1 sequence and {last:.1f} ms for {batch}, or "
        f"{1000 / first:.0f} and {1000 * batch / last:,.0f} tokens/s. At {batch}, most of it is "
        f"{largest}: {found[largest][-1]:.1f} ms."
    )
