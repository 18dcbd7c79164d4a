"""Week 15: load K and V from a tier, or compute them anew?"""

from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.analysis.kv_memory import kv_bytes_per_token
from inferlab.analysis.operators import StepShape
from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim.devices import DEVICES
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import RooflineStepTime
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "K and V of 2,048 tokens of Llama-3.1-8B are 268 MB. From which bandwidth on is loading them "
    "faster than computing them on an A100 at half of its peak?"
)
PROMPTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNKS = (16, 64, 128, 256, 512, 1024, 2048)
# Of the peak, the arithmetic that a real prefill reaches: assumed.
PREFILL_SHARE = 0.5


def sweep() -> Sweep:
    """One prompt on an A100 whose K and V are all in the tier, in whole chunks."""
    return Sweep(
        tier,
        [
            Control("model", "Model", ["Llama-3.1-8B", "Llama-3.2-1B", "Qwen2.5-0.5B"]),
            Control("gb_per_s", "Bandwidth of the tier (GB/s)", [25, 1, 2.5, 5, 12.5, 50]),
            Control("latency_ms", "Latency of a chunk (ms)", [0.1, 0, 1, 10]),
            Control("chunk", "Chunk (tokens)", [256, 16, 1024]),
        ],
        draw,
        in_words,
        {
            "Memory of the host": {},
            "A disk": {"gb_per_s": 5, "latency_ms": 0.1},
            "Another machine, 10 Gbit/s": {"gb_per_s": 1, "latency_ms": 1},
        },
    )


def tier(model: str, gb_per_s: float, latency_ms: float, chunk: int) -> dict[str, list[float]]:
    """Milliseconds to compute each of `PROMPTS`, and to load its whole chunks and compute the rest.

    The last token is always computed. `found` is the mean share in whole chunks of prompts of all
    lengths up to 2,048 tokens, for each of `CHUNKS`.
    """
    shape = SHAPES[model]
    per_token = kv_bytes_per_token(shape.num_layers, shape.num_kv_heads, shape.head_dim, 2.0)
    found: dict[str, list[float]] = {"computed": [], "loaded": []}
    for prompt in PROMPTS:
        chunks = (prompt - 1) // chunk
        kept = chunks * chunk
        moving_ms = per_token * kept / (gb_per_s * 1e6) + latency_ms * chunks
        found["computed"].append(prefill_ms(model, prompt, 0))
        found["loaded"].append(moving_ms + prefill_ms(model, prompt - kept, kept))
    lengths = np.arange(1, 2049)
    found["found"] = [
        float(((lengths - 1) // size * size).sum() / lengths.sum()) for size in CHUNKS
    ]
    return found


def prefill_ms(model: str, tokens: int, before: int) -> float:
    """Milliseconds of a step that computes `tokens` after `before` others are there."""
    step_time = RooflineStepTime(SHAPES[model], DEVICES["A100-80GB SXM"])
    return 1000 * float(step_time(StepShape.of([(tokens, before + tokens, True)]))) / PREFILL_SHARE


def draw(found: dict[str, list[float]], **_: Any) -> Figure:
    figure = panels(
        "Prompt (tokens)",
        [
            Panel(
                "Time to the first token (ms)",
                [
                    Curve("computed", PROMPTS, found["computed"], "vermilion"),
                    Curve("loaded", PROMPTS, found["loaded"]),
                ],
                is_logarithmic=True,
            ),
            Panel(
                "Prompt tokens in whole chunks (%)",
                [Curve("found", CHUNKS, [100 * share for share in found["found"]], "green")],
            ),
        ],
        type="log",
    )
    figure.update_xaxes(title="Chunk (tokens)", tickvals=CHUNKS[::2], row=1, col=2)
    return figure.update_layout(height=400)


def in_words(found: dict[str, list[float]], **_: Any) -> str:
    pays = [
        prompt
        for prompt, computed, loaded in zip(PROMPTS, found["computed"], found["loaded"])
        if loaded < computed
    ]
    at = PROMPTS.index(2048)
    said = f"Loading pays from {pays[0]:,} tokens on" if pays else "Loading never pays"
    return (
        f"{said}. For 2,048 tokens, computing takes {found['computed'][at]:.0f} ms and loading "
        f"{found['loaded'][at]:.0f} ms."
    )
