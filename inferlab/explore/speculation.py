"""Week 11: when drafts make decoding faster, and when no draft is the best number."""

from typing import Any

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from inferlab.analysis.operators import StepShape
from inferlab.sim.devices import DEVICES
from inferlab.sim.shapes import SHAPES
from inferlab.sim.step_time import RooflineStepTime
from inferlab.sweep import Control, Sweep
from inferlab.theme import PALETTE

PREDICTION = (
    "With 1 sequence, four in five drafts accepted and free drafts, seven drafts a step gain a "
    "factor of 4. How much of it is left with 64 sequences? And at which batch is it a loss?"
)
BATCHES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
ACCEPTANCES = np.round(np.arange(0.1, 1.0, 0.1), 1)
MAX_DRAFTS = 8
SHOWN_DRAFTS = (1, 3, 5, 7)
STEP_TIME = RooflineStepTime(SHAPES["Llama-3.1-8B"], DEVICES["A100-80GB SXM"])


def sweep() -> Sweep:
    """Llama-3.1-8B on an A100; a draft costs a share of a step of the model itself."""
    return Sweep(
        speedups,
        [
            Control("acceptance", "Acceptance of a draft", [0.8, 0.3, 0.5, 0.6, 0.7, 0.9]),
            Control("draft_cost", "Cost of a draft (share of a step)", [0.05, 0.0, 0.02, 0.1, 0.2]),
            Control("context", "Context (tokens)", [512, 4096, 16384]),
        ],
        draw,
        in_words,
        {
            "Lookup in the prompt": {"draft_cost": 0.0, "acceptance": 0.5},
            "A good small model": {"acceptance": 0.8, "draft_cost": 0.1},
            "Long contexts": {"context": 16384},
        },
    )


def tokens_a_step(acceptance: Any, drafts: Any) -> Any:
    """Expected tokens of a verified step: (1 - α^(k+1)) / (1 - α), Leviathan et al. (2023)."""
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def step_seconds(drafts: int, context: int) -> np.ndarray:
    """Seconds of a step that verifies so many drafts of each sequence, at each of `BATCHES`."""
    tokens = BATCHES * (drafts + 1)
    # A draft attends to the same K and V as the token before it: they are read once.
    found: np.ndarray = STEP_TIME(
        StepShape(decode_tokens=tokens, decode_context=BATCHES * context, pairs=tokens * context)
    )
    return found


def speedups(acceptance: float, draft_cost: float, context: int) -> dict[str, Any]:
    """Speedup at each of `BATCHES` by drafts, and the best number of drafts by acceptance."""
    alone = step_seconds(0, context)
    cost = {
        drafts: step_seconds(drafts, context) + drafts * draft_cost * alone
        for drafts in range(MAX_DRAFTS + 1)
    }
    by_drafts = {k: tokens_a_step(acceptance, k) * alone / seconds for k, seconds in cost.items()}
    # [drafts, acceptances, batches]
    all_of_them = np.array(
        [tokens_a_step(ACCEPTANCES, k)[:, None] * alone / seconds for k, seconds in cost.items()]
    )
    return {
        "speedup": {k: by_drafts[k].tolist() for k in SHOWN_DRAFTS},
        "best": np.max(list(by_drafts.values()), axis=0).tolist(),
        "best_drafts": np.argmax(list(by_drafts.values()), axis=0).tolist(),
        "map": np.argmax(all_of_them, axis=0).tolist(),
    }


def draw(found: dict[str, Any], **_: Any) -> Figure:
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.16)
    for drafts, colour in zip(SHOWN_DRAFTS, ("sky", "blue", "orange", "vermilion")):
        figure.add_scatter(
            x=BATCHES,
            y=found["speedup"][drafts],
            name=f"{drafts} drafted",
            mode="lines+markers",
            line={"color": PALETTE[colour]},
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=BATCHES,
        y=np.ones(len(BATCHES)),
        name="none drafted",
        mode="lines",
        line={"color": PALETTE["grey"], "dash": "dash"},
        row=1,
        col=1,
    )
    figure.add_heatmap(
        x=[str(batch) for batch in BATCHES],
        y=ACCEPTANCES,
        z=found["map"],
        zmin=0,
        zmax=MAX_DRAFTS,
        colorscale="Cividis",
        colorbar={"title": "Best number<br>of drafts"},
        row=1,
        col=2,
    )
    figure.update_xaxes(title="Batch (sequences)", type="log", tickvals=BATCHES[::2], row=1, col=1)
    figure.update_xaxes(title="Batch (sequences)", type="category", row=1, col=2)
    figure.update_yaxes(title="Speedup (×)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="Acceptance of a draft", row=1, col=2)
    return figure


def in_words(found: dict[str, Any], **_: Any) -> str:
    best, gain = found["best_drafts"], found["best"]
    none = [int(batch) for batch, drafts in zip(BATCHES, best) if drafts == 0]
    end = f"; from a batch of {none[0]} on, none is best" if none else ""
    return (
        f"With 1 sequence {best[0]} drafts are best and make it {gain[0]:.2f} times as fast, with "
        f"{BATCHES[6]} sequences {best[6]} drafts and {gain[6]:.2f} times{end}."
    )
