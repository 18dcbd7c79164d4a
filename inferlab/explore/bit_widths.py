"""Week 12: memory, speed and error of weights in few bits."""

from functools import lru_cache
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.operators import Precision, StepShape
from inferlab.engine.quantization import quantize, symmetric_scales
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim.devices import DEVICES
from inferlab.sim.server import SimulatedServer
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Weights in 4 bits are a quarter of those in 16. With 1 sequence, is a decode step four times "
    "as fast? With 256?"
)
BITS = (2, 3, 4, 5, 6, 8)
SCALE_BYTES = 2.0
SIZE = 512  # rows and columns of the matrix that is rounded
MATRICES = {"like a Gaussian": 0.0, "with outliers": 0.01}


def sweep() -> Sweep:
    """Llama-3.1-8B: what bits and groups do to memory and to a decode step, and to one matrix."""
    return Sweep(
        formats,
        [
            Control("group", "Weights that share a scale", [128, 32, 64, 512]),
            Control("batch", "Batch (sequences)", [1, 16, 64, 256]),
            Control("device", "GPU", ["A100-80GB SXM", "L4"]),
            Control("matrix", "Weights", list(MATRICES)),
        ],
        draw,
        in_words,
        {
            "Small groups against outliers": {"group": 32, "matrix": "with outliers"},
            "A full batch": {"batch": 256},
        },
    )


def formats(group: int, batch: int, device: str, matrix: str) -> dict[str, Any]:
    """For each of `BITS`: gigabytes, milliseconds of a step, and the relative error of a product.

    The step is the roofline's: weights are read in few bits and multiplied in bf16. The error is
    that of a product with a real matrix of `SIZE` rows, rounded to the nearest.
    """
    model = SHAPES["Llama-3.1-8B"]
    step = StepShape.decode(batch, batch * 512)
    found: dict[str, Any] = {"gb": [], "ms": [], "error": []}
    for bits in (16, *BITS):
        weight = 2.0 if bits == 16 else bits / 8 + SCALE_BYTES / group
        server = SimulatedServer(model, DEVICES[device], Precision(weight=weight))
        found["gb"].append(server.weight_bytes / 1e9)
        found["ms"].append(1000 * float(server.step_time(step)))
        found["error"].append(0.0 if bits == 16 else product_error(bits, group, matrix))
    return found


@lru_cache
def product_error(bits: int, group: int, matrix: str) -> float:
    """Root mean square of the error over that of the product, both of 64 random inputs."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((SIZE, SIZE)).astype(np.float32)
    weight[random.random(weight.shape) < MATRICES[matrix]] *= 8
    grouped = weight.reshape(SIZE, SIZE // group, group)
    scales = symmetric_scales(grouped, bits, axis=-1)
    rounded = (quantize(grouped, scales, bits) * scales).reshape(SIZE, SIZE)
    inputs = random.standard_normal((64, SIZE)).astype(np.float32)
    exact = inputs @ weight.T
    return float(np.std(inputs @ rounded.T - exact) / np.std(exact))


def draw(found: dict[str, Any], **_: Any) -> Figure:
    labels = [*(f"{bits} bits" for bits in BITS)]
    figure = panels(
        "Weights (GB)",
        [
            Panel("Decode step (ms)", [Curve("step", found["gb"], found["ms"])]),
            Panel(
                "Error of a product (%)",
                [Curve("error", found["gb"][1:], [100 * e for e in found["error"][1:]], "orange")],
                is_logarithmic=True,
            ),
        ],
        rangemode="tozero",
    )
    figure.update_traces(text=["bf16", *labels], selector={"name": "step"})
    figure.update_traces(text=labels, selector={"name": "error"})
    return figure.update_traces(mode="lines+markers+text", textposition="top center").update_layout(
        height=400
    )


def in_words(found: dict[str, Any], **_: Any) -> str:
    at = 1 + BITS.index(4)
    return (
        f"In 4 bits the weights take {found['gb'][at]:.1f} GB in place of {found['gb'][0]:.1f}, a "
        f"step {found['ms'][at]:.1f} ms in place of {found['ms'][0]:.1f} "
        f"({found['ms'][0] / found['ms'][at]:.2f} times as fast), and the product is off by "
        f"{found['error'][at]:.1%}."
    )
