"""Week 14: experts that a step needs, what reading them takes, and who waits for whom."""

from functools import lru_cache
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from inferlab.explore.panels import Curve, Panel, panels
from inferlab.sim.devices import DEVICES
from inferlab.sweep import Control, Sweep

PREDICTION = (
    "Each token takes 2 of 8 experts. With 16 tokens in a step, how many experts are read? With 2 "
    "of 64 experts, each an eighth as wide?"
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GPUS = 4
DRAWS = 40
DEVICE = DEVICES["A100-80GB SXM"]
# All experts of a layer together are as large as Mixtral-8x7B's, however many they are.
HIDDEN, WIDTH, LAYERS = 4096, 8 * 14336, 32


def sweep() -> Sweep:
    """Feed-forward layers of the size of Mixtral-8x7B's in bf16, experts divided among 4 GPUs."""
    return Sweep(
        rising_batch,
        [
            Control("experts", "Experts of a layer", [8, 16, 64, 128]),
            Control("chosen", "Experts of a token", [2, 1, 4, 8]),
            Control("skew", "Skew of the experts (exponent of Zipf's law)", [0.0, 0.3, 0.6, 1.0]),
        ],
        draw,
        in_words,
        {
            "Many small experts": {"experts": 128, "chosen": 8},
            "One expert is liked best": {"skew": 1.0},
        },
    )


def rising_batch(experts: int, chosen: int, skew: float) -> dict[str, list[float]]:
    """At each of `BATCHES`: distinct experts, bytes, milliseconds and imbalance of the GPUs."""
    if chosen > experts:
        raise ValueError(f"A token cannot choose {chosen} of {experts} experts: choose fewer.")
    found: dict[str, list[float]] = {"distinct": [], "gb": [], "ms": [], "imbalance": []}
    expert_weights = 3 * HIDDEN * WIDTH // experts
    for batch in BATCHES:
        # [draws, experts]: tokens of each expert.
        tokens = chosen_experts(experts, chosen, skew, batch)
        distinct = (tokens > 0).sum(axis=1)
        # A step waits for the GPU that needs longest.
        bytes_read = 2 * expert_weights * (tokens > 0)
        flop = 2 * expert_weights * tokens
        of_gpu = np.maximum(
            by_gpu(bytes_read) / DEVICE.bandwidth_bytes_per_s, by_gpu(flop) / DEVICE.peak("bf16")
        )
        rows = by_gpu(tokens)
        found["distinct"].append(float(distinct.mean()))
        found["gb"].append(float(LAYERS * bytes_read.sum(axis=1).mean() / 1e9))
        found["ms"].append(float(1000 * LAYERS * of_gpu.max(axis=1).mean()))
        found["imbalance"].append(float((rows.max(axis=1) / rows.mean(axis=1)).mean()))
    return found


@lru_cache
def chosen_experts(experts: int, chosen: int, skew: float, batch: int) -> np.ndarray:
    """Tokens that each expert gets in each of `DRAWS` steps, `[DRAWS, experts]`.

    Expert r is chosen in proportion to r to the power of -skew; which is which is shuffled, so that
    the liked ones do not all lie on one GPU.
    """
    random = np.random.default_rng(0)
    weights = random.permutation(np.arange(1, experts + 1) ** -skew)
    # The largest of logarithms plus Gumbel noise are drawn without replacement (Vieira, 2014).
    noise = random.gumbel(size=(DRAWS, batch, experts))
    order = np.argsort(np.log(weights) + noise, axis=-1)[..., -chosen:]
    return np.stack([np.bincount(step.ravel(), minlength=experts) for step in order])


def by_gpu(of_experts: np.ndarray) -> np.ndarray:
    """Sums over the experts of each GPU, `[draws, GPUS]`."""
    sums: np.ndarray = of_experts.reshape(len(of_experts), GPUS, -1).sum(axis=2)
    return sums


def draw(found: dict[str, list[float]], *, experts: int, chosen: int, **_: Any) -> Figure:
    expected = [experts * (1 - (1 - chosen / experts) ** batch) for batch in BATCHES]
    return panels(
        "Tokens in the step",
        [
            Panel(
                "Experts read of each layer",
                [
                    Curve("drawn", BATCHES, found["distinct"]),
                    Curve("E·(1 − (1 − k/E)ⁿ)", BATCHES, expected, "grey", "dash", "lines"),
                ],
            ),
            Panel("Weights read (GB)", [Curve("read", BATCHES, found["gb"], "green")]),
            Panel("Slowest GPU (ms)", [Curve("slowest", BATCHES, found["ms"], "orange")]),
            Panel(
                "Busiest GPU (× mean of tokens)",
                [Curve("busiest", BATCHES, found["imbalance"], "vermilion")],
            ),
        ],
        type="log",
        tickvals=BATCHES[::2],
    )


def in_words(found: dict[str, list[float]], *, experts: int, **_: Any) -> str:
    at = BATCHES.index(16)
    return (
        f"With 16 tokens, {found['distinct'][at]:.1f} of {experts} experts of a layer are read, "
        f"{found['gb'][at]:.1f} GB in all layers; the slowest GPU takes {found['ms'][at]:.2f} ms, "
        f"and the busiest has {found['imbalance'][at]:.2f} times the mean number of tokens."
    )
