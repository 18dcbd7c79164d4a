"""The roofline: how long a step takes at least, which ceiling says so, and how near a run came.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 2009. Times are in ms, rates per second, sizes in bytes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Operator, Precision, distinct_experts


class Ceilings(NamedTuple):
    """What a device can do at most: arithmetic in one format, and one level of memory."""

    flop_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOP per byte at which arithmetic and memory take equally long."""
        return self.flop_per_s / self.bytes_per_s

    def attainable(self, intensity: Any) -> Any:
        """FLOP/s that the roof allows at an intensity in FLOP per byte, or at several."""
        return np.minimum(self.flop_per_s, self.bytes_per_s * np.asarray(intensity))


class Utilisation(NamedTuple):
    """Shares of the two ceilings that a run reached."""

    mfu: float  # model FLOP utilisation
    mbu: float  # model bandwidth utilisation


def utilisation(flop: float, num_bytes: float, seconds: float, ceilings: Ceilings) -> Utilisation:
    """What share of each ceiling `flop` and `num_bytes` in `seconds` are.

    Raises:
        ValueError: if no time has passed.
    """
    if seconds <= 0:
        raise ValueError(f"A run took {seconds} s; a utilisation needs a time above 0 s.")
    return Utilisation(
        flop / seconds / ceilings.flop_per_s, num_bytes / seconds / ceilings.bytes_per_s
    )


def weights_read_bytes(model: ModelShape, precision: Precision, batch: int) -> float:
    """Bytes of weights that a decode step of `batch` sequences reads, whatever their contexts.

    Every layer's, and of a layer with several experts those that the batch chooses, on average;
    then the head's, in the activations' format. Of the input embedding a step gathers one row a
    token, which is not counted, and neither are the norms (0.002 % of Llama-3.1-8B).
    """
    experts = distinct_experts(model, batch)
    layer = model.attention_weights + model.router_weights + experts * model.expert_weights
    head = model.embedding_weights * precision.activation
    return float(model.num_layers * layer * precision.weight + head)


def kv_token_bytes(model: ModelShape, precision: Precision) -> float:
    """Bytes of K and V that one token leaves in the cache, over all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * precision.kv


def decode_floor_ms(
    model: ModelShape, precision: Precision, bytes_per_s: float, batch: int = 1, context: float = 0
) -> float:
    """The shortest time of a decode step: its weights once, and every sequence's K and V, read.

    Args:
        bytes_per_s: bandwidth of the memory that holds both.
        batch: sequences that compute one token each.
        context: tokens that a sequence attends to, on average.

    Returns:
        ms. No engine is faster; arithmetic, launches and scheduling come on top.

    Raises:
        ValueError: if the batch holds no sequence, or the bandwidth is not positive.
    """
    if batch < 1 or bytes_per_s <= 0:
        raise ValueError(
            f"A step of {batch} sequences at {bytes_per_s} bytes/s has no time; expected at least "
            "one sequence and a bandwidth above 0."
        )
    weights = weights_read_bytes(model, precision, batch)
    caches = batch * context * kv_token_bytes(model, precision)
    return 1000 * (weights + caches) / bytes_per_s


def equal_traffic_context(model: ModelShape, precision: Precision, batch: int) -> float:
    """Tokens of context a sequence at which a step reads as many bytes of K and V as of weights."""
    cache_bytes = batch * kv_token_bytes(model, precision)
    return weights_read_bytes(model, precision, batch) / cache_bytes


def classify(found: Iterable[Operator], ceilings: Ceilings) -> dict[str, str]:
    """For each operator by name, what bounds it: `"arithmetic"` or `"memory"`.

    On the ridge both take equally long; that counts as arithmetic. An operator that moves nothing
    and computes nothing is bound by memory.
    """
    bounds = {}
    for one in found:
        is_arithmetic = one.flop > 0 and one.flop >= ceilings.ridge * one.bytes
        bounds[one.name] = "arithmetic" if is_arithmetic else "memory"
    return bounds


def step_floor_ms(found: Iterable[Operator], ceilings: Ceilings) -> float:
    """The shortest time, in ms, of operators that run one after the other.

    Each takes the longer of its arithmetic and its traffic: within an operator the two overlap,
    between operators they do not. So the sum is at least the roof's value for the whole step.
    """
    seconds = 0.0
    for one in found:
        seconds += max(one.flop / ceilings.flop_per_s, one.bytes / ceilings.bytes_per_s)
    return 1000 * seconds
