"""Linear layers that hold int8 or int4 weights, and SmoothQuant; week 12 builds them.

Here quantisation saves bytes and not time: NumPy multiplies small integers slowly, so each call
turns the weights into float32 again. `inferlab.kernels.int4_gemm` does that in a GPU's registers.
Mirrors `CompressedTensorsW8A8Int8` and `CompressedTensorsWNA16` in
`vllm/model_executor/layers/quantization/compressed_tensors/schemes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferlab.engine.layers import DenseLinear, GatedMLP, Linear, parts_of
from inferlab.engine.model import LlamaModel
from inferlab.engine.moe import MixtureOfExperts


def symmetric_scales(x: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Scales that put the largest magnitude along `axis`, which is kept, at `2**(bits - 1) - 1`."""
    largest = np.abs(x).max(axis=axis, keepdims=True)
    # Zeros need something to be divided by, and a subnormal quotient is inexact.
    scales: np.ndarray = np.maximum(largest / (2 ** (bits - 1) - 1), np.finfo(np.float32).tiny)
    return scales


def quantize(x: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The whole numbers nearest to `x / scales`, ties to even, saturated; float32, to multiply."""
    limit = 2 ** (bits - 1)
    values: np.ndarray = np.clip(np.rint(x / scales), -limit, limit - 1)
    return values


def _round(weight: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(weight).all():
        bad = weight.size - np.isfinite(weight).sum()
        raise ValueError(f"{bad} of {weight.size} weights are infinite or NaN; load intact ones.")
    scales = symmetric_scales(weight, bits, axis)
    return quantize(weight, scales, bits).astype(np.int8), scales


@dataclass
class Int8Linear:
    """A linear layer with 8-bit weights, a scale for each output channel.

    Invariants: no float32 copy of the weight outlives a call; an element of the weight is off by
    at most half its channel's scale.
    """

    weight: np.ndarray  # [input, output] int8
    scales: np.ndarray  # [output] float32
    int8_activations: bool = False
    """Round each token too, by its largest element: W8A8 instead of W8A16. The sum of the integer
    products is exact up to 1,040 inputs, beyond which 127 * 127 * inputs passes 2**24."""

    @classmethod
    def from_dense(cls, linear: DenseLinear, int8_activations: bool = False) -> "Int8Linear":
        """Round to nearest. Raises ValueError if a weight is not finite."""
        values, scales = _round(linear.weight, 8, axis=0)
        return cls(values, scales[0], int8_activations)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        scales = self.scales
        if self.int8_activations:
            token_scales = symmetric_scales(x, 8, axis=1)
            x, scales = quantize(x, token_scales, 8), token_scales * scales
        product: np.ndarray = (x @ self.weight.astype(np.float32)) * scales
        return product


def pack_int4(values: np.ndarray) -> np.ndarray:
    """Two neighbouring rows of `values` `[rows, columns]`, -8 to 7, in each row of bytes.

    The even row is in the low four bits, each value with 8 added: read along the rows, these are
    the bytes of compressed-tensors' little-endian int32 words. Raises ValueError if the number of
    rows is odd or a value does not fit.
    """
    if len(values) % 2 or values.min(initial=0) < -8 or values.max(initial=0) > 7:
        raise ValueError(
            f"{len(values)} rows with values from {values.min(initial=0)} to "
            f"{values.max(initial=0)} cannot be packed; expected an even number, -8 to 7."
        )
    nibbles = (values + 8).astype(np.uint8)
    return nibbles[0::2] | nibbles[1::2] << 4


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """The int8 values `[2 * rows, columns]` that `pack_int4` packed."""
    values = np.empty((2 * len(packed), *packed.shape[1:]), dtype=np.int8)
    values[0::2], values[1::2] = packed & 15, packed >> 4
    return values - np.int8(8)


@dataclass
class Int4Linear:
    """A linear layer with 4-bit weights, a scale for each group of inputs and each output.

    Invariants: at most one group of inputs is in float32 at a time; an element of the weight is off
    by at most half its group's scale. In groups of 128 it takes 4.25 bits, its share of a scale
    included.
    """

    packed: np.ndarray  # [input / 2, output] uint8, as `pack_int4` gives them
    scales: np.ndarray  # [input / group_size, output] float32

    @classmethod
    def from_dense(cls, linear: DenseLinear, group_size: int = 128) -> "Int4Linear":
        """Round to nearest; raises ValueError if a weight is not finite or a group is short."""
        num_inputs, num_outputs = linear.weight.shape
        if group_size < 2 or group_size % 2 or num_inputs % group_size:
            raise ValueError(
                f"{num_inputs} inputs cannot be divided into groups of {group_size}; choose an "
                "even group size that divides them, since two inputs share a byte."
            )
        groups = linear.weight.reshape(-1, group_size, num_outputs)
        values, scales = _round(groups, 4, axis=1)
        return cls(pack_int4(values.reshape(num_inputs, num_outputs)), scales[:, 0])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        product = np.zeros((len(x), self.packed.shape[1]), dtype=np.float32)
        inputs = np.split(x, len(self.scales), axis=1)
        for part, packed, scales in zip(inputs, np.split(self.packed, len(inputs)), self.scales):
            product += (part @ unpack_int4(packed).astype(np.float32)) * scales
        return product


def replace_projections(model: LlamaModel, replace: Callable[..., Linear]) -> None:
    """Replace every projection, for example by its `Int4Linear.from_dense`.

    Embedding, head, norms and routers stay: published checkpoints keep them in 16 bits too.
    """
    for layer in model.layers:
        experts: Any = layer.mlp.experts if isinstance(layer.mlp, MixtureOfExperts) else [layer.mlp]
        layer.qkv, layer.output = replace(layer.qkv), replace(layer.output)
        for expert in experts:
            expert.gate_up, expert.down = replace(expert.gate_up), replace(expert.down)


def num_bytes(part: object) -> int:
    """Bytes of all weights of a layer or a model, scales included."""
    return sum(found.nbytes for found in parts_of(part) if isinstance(found, np.ndarray))


@dataclass
class Observed:
    """A linear layer that keeps the largest magnitude of each of its inputs, to calibrate with."""

    linear: DenseLinear
    maxima: np.ndarray | float = 0.0  # [input]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.maxima = np.maximum(self.maxima, np.abs(x).max(axis=0))
        return self.linear(x)


def smooth_scales(activations: np.ndarray, weights: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """What to divide each input by, and multiply its row of the weight by, from the maxima of both.

    At `alpha` 0 the rows of the weight become alike, at 1 the activations; between, they share the
    outliers. An input that is always zero, or has no weight, stays as it is.
    Source: Xiao et al., "SmoothQuant", ICML 2023, equation 4.
    """
    used = (activations > 0) & (weights > 0)
    activations, weights = (np.where(used, maxima, 1) for maxima in (activations, weights))
    return activations**alpha / weights ** (1 - alpha)


def smooth(model: LlamaModel, alpha: float = 0.5) -> None:
    """Fold `smooth_scales` into the norms before qkv and gate_up, and into their weights.

    The model's function stays the same, and its `Observed` projections are dense again. `output`
    and `down` have no norm before them. Raises ValueError if a projection has seen no prompt.
    """
    for layer in model.layers:
        assert isinstance(layer.mlp, GatedMLP), "Experts share their norm with a router."
        layer.input_norm, layer.qkv = _migrate(layer.input_norm, layer.qkv, alpha)
        migrated = _migrate(layer.post_attention_norm, layer.mlp.gate_up, alpha)
        layer.post_attention_norm, layer.mlp.gate_up = migrated
    replace_projections(model, lambda p: p.linear if isinstance(p, Observed) else p)


def _migrate(norm: np.ndarray, observed: Linear, alpha: float) -> tuple[np.ndarray, DenseLinear]:
    if not isinstance(observed, Observed) or not isinstance(observed.maxima, np.ndarray):
        raise ValueError(
            "A projection has seen no prompt; call replace_projections(model, Observed), run some."
        )
    weight = observed.linear.weight
    scales = smooth_scales(observed.maxima, np.abs(weight).max(axis=1), alpha)
    return norm / scales, DenseLinear(weight * scales[:, None])
