"""Week 10: what graphs save, by the number of kernels and the price of a launch."""

from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "A step has 300 kernels of 10 µs each, and a launch takes 5 µs of the host. What does a graph "
    "gain? And if a kernel takes 3 µs?"
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REPLAY_US = 10.0  # one launch for the whole graph


def sweep() -> Sweep:
    """A step whose kernels take a fixed time, and another that grows with the batch."""
    return Sweep(
        gain,
        [
            Control("kernels", "Kernels in a step", [300, 100, 1000]),
            Control("launch_us", "Launch (µs of the host)", [5, 2, 10, 20]),
            Control("kernel_us", "Shortest kernel (µs)", [3, 1, 5, 10, 20]),
            Control("per_sequence_us", "Each sequence adds to a kernel (µs)", [0.05, 0.01, 0.2]),
        ],
        draw,
        in_words,
        {
            "Small model, slow host": {"kernel_us": 1, "launch_us": 20},
            "Large model": {"kernel_us": 20},
        },
    )


def gain(
    kernels: int, launch_us: float, kernel_us: float, per_sequence_us: float
) -> dict[str, list[float]]:
    """Milliseconds of a step at each of `BATCHES`, launched one by one and as a graph.

    The host launches ahead of the device, so a step takes the longer of the two.
    """
    device_us = kernels * (kernel_us + per_sequence_us * np.array(BATCHES))
    eager = np.maximum(kernels * launch_us, device_us) / 1000
    graph = (REPLAY_US + device_us) / 1000
    return {"eager": eager.tolist(), "graph": graph.tolist(), "gain": (eager / graph).tolist()}


def crossover(launch_us: float, kernel_us: float, per_sequence_us: float) -> float:
    """The batch from which on a kernel takes as long as a launch; 0 if it always does."""
    return max(0.0, (launch_us - kernel_us) / per_sequence_us)


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    return panels(
        "Batch (sequences)",
        [
            Panel(
                "Step (ms)",
                [
                    Curve("launched one by one", BATCHES, found["eager"], "vermilion"),
                    Curve("replayed as a graph", BATCHES, found["graph"]),
                ],
                is_logarithmic=True,
            ),
            Panel("Gain (×)", [Curve("gain", BATCHES, found["gain"], "green")]),
        ],
        type="log",
        tickvals=BATCHES[::2],
    ).update_layout(height=400)


def in_words(
    found: dict[str, list[float]],
    *,
    launch_us: float,
    kernel_us: float,
    per_sequence_us: float,
    **_: Any,
) -> str:
    batch = crossover(launch_us, kernel_us, per_sequence_us)
    until = f"up to a batch of {batch:.0f}" if batch else "at no batch"
    return (
        f"With 1 sequence a graph is {found['gain'][0]:.2f} times as fast. Launches are the longer "
        f"part {until}; with 256 sequences the gain is {found['gain'][-1]:.2f}."
    )
