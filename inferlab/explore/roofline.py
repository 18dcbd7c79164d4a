"""Week 3: a step on the roofline, from one sequence that decodes to a long prompt."""

from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.operators import Precision, StepShape, operators
from inferlab.sim.devices import DEVICES
from inferlab.sim.shapes import SHAPES
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "At which batch does a decode step of Llama-3.1-8B leave the slope of the roof on an A100, if "
    "contexts are short? And if each has 8,192 tokens?"
)
INTENSITIES = np.geomspace(0.25, 4096, 40)
PRECISIONS = {
    "bf16": Precision(),
    "weights in int4": Precision(weight=0.5),
    "weights and products in int8": Precision(weight=1.0, arithmetic="int8"),
}
KINDS = ("decode", "prefill")


def sweep() -> Sweep:
    """One step of one kind."""
    return Sweep(
        place,
        [
            Control("device", "GPU", ["A100-80GB SXM", "H100 SXM", "L40S"]),
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.2-1B"]),
            Control("precision", "Format", list(PRECISIONS)),
            Control("kind", "Step", list(KINDS)),
            Control("context", "Context (tokens)", [128, 1024, 8192]),
            Control("batch", "Batch (sequences)", [1, 8, 64, 256]),
        ],
        draw,
        in_words,
        {
            "Decode alone": {},
            "A full batch": {"batch": 256},
            "Long contexts": {"batch": 64, "context": 8192},
            "One prompt": {"kind": "prefill", "context": 1024},
        },
    )


def place(
    device: str, model: str, precision: str, kind: str, context: int, batch: int
) -> dict[str, Any]:
    """Ceilings of the device, and intensity (FLOP/byte) and FLOP/s of operators and step."""
    chip, chosen = DEVICES[device], PRECISIONS[precision]
    peak, bandwidth = chip.peak(chosen.arithmetic), chip.bandwidth_bytes_per_s
    step = (
        StepShape.decode(batch, batch * context)
        if kind == "decode"
        else StepShape.of([(context, context, True)] * batch)
    )
    found = [one for one in operators(SHAPES[model], step, chosen) if one.flop]
    flop, moved = sum(one.flop for one in found), sum(one.bytes for one in found)
    seconds = sum(max(one.flop / peak, one.bytes / bandwidth) for one in found)
    return {
        "peak": peak,
        "bandwidth": bandwidth,
        "names": [one.name for one in found],
        "intensities": [one.intensity for one in found],
        "intensity": flop / moved,
        "flop_per_s": flop / seconds,
        "ms": 1000 * seconds,
    }


def roof(found: dict[str, Any], intensity: Any) -> Any:
    """FLOP/s that the device allows at an intensity."""
    return np.minimum(found["peak"], found["bandwidth"] * np.asarray(intensity))


def draw(found: dict[str, Any], **_: Any) -> Figure:
    figure = Figure()
    figure.add_scatter(
        x=INTENSITIES,
        y=roof(found, INTENSITIES) / 1e12,
        name="roof",
        mode="lines",
        line={"color": PALETTE["grey"]},
    )
    figure.add_scatter(
        x=found["intensities"],
        y=roof(found, found["intensities"]) / 1e12,
        text=found["names"],
        name="operators",
        mode="markers",
        marker={"color": PALETTE["blue"], "size": 9},
    )
    figure.add_scatter(
        x=[found["intensity"]],
        y=[found["flop_per_s"] / 1e12],
        name="the step",
        mode="markers",
        marker={"color": PALETTE["vermilion"], "size": 15, "symbol": "diamond"},
    )
    figure.update_xaxes(title="Intensity (FLOP/byte)", type="log", range=[-0.7, 3.7])
    figure.update_yaxes(title="Arithmetic (TFLOP/s)", type="log", range=[-1.2, 3.4])
    return figure


def in_words(found: dict[str, Any], **_: Any) -> str:
    ridge = found["peak"] / found["bandwidth"]
    share = found["flop_per_s"] / found["peak"]
    bound = "arithmetic" if found["intensity"] > ridge else "memory"
    return (
        f"The step has {found['intensity']:.3g} FLOP/byte and the ridge lies at {ridge:.3g}: it is "
        f"bound by {bound}. It takes {found['ms']:.3g} ms and reaches {share:.0%} of the peak."
    )
