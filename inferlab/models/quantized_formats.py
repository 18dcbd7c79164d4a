"""How published formats store a layer whose weights are int8 or int4, and what announces them.

The weights are rounded by `inferlab.engine.quantization`, so an engine that loads them multiplies
by the numbers that ours multiplies by.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from inferlab.engine.layers import DenseLinear
from inferlab.engine.quantization import Int4Linear, Int8Linear, unpack_int4

Tensors = dict[str, np.ndarray]

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbours AutoAWQ puts into each four bits of a word, from the lowest bits on."""


def to_int8(linear: DenseLinear, group_size: int) -> Tensors:
    """compressed-tensors, `int-quantized`: a scale for each output, so that there are no groups."""
    rounded = Int8Linear.from_dense(linear)
    return {"weight": rounded.weight.T, "weight_scale": rounded.scales[:, None]}


def to_int4(linear: DenseLinear, group_size: int) -> Tensors:
    """compressed-tensors, `pack-quantized`: a word holds eight inputs of an output.

    Raises:
        ValueError: if the groups do not divide the inputs.
    """
    rounded = Int4Linear.from_dense(linear, group_size)
    # The engine's bytes hold two inputs each, in the same order: four of them are a word.
    words = np.ascontiguousarray(rounded.packed.T).view("<i4")
    shape = np.array(linear.weight.T.shape)
    return {"weight_packed": words, "weight_scale": rounded.scales.T, "weight_shape": shape}


def to_awq(linear: DenseLinear, group_size: int) -> Tensors:
    """AutoAWQ, `gemm`: a word holds eight outputs of an input, and every group has a zero point.

    Raises:
        ValueError: if the groups do not divide the inputs.
    """
    rounded = Int4Linear.from_dense(linear, group_size)
    zeros = np.zeros(rounded.scales.shape, dtype=np.int8)
    values = _awq_words(unpack_int4(rounded.packed))
    return {"qweight": values, "qzeros": _awq_words(zeros), "scales": rounded.scales}


def _awq_words(values: np.ndarray) -> np.ndarray:
    nibbles = (values + 8).astype(np.uint32).reshape(len(values), -1, 8)[:, :, AWQ_ORDER]
    shifts = 4 * np.arange(8, dtype=np.uint32)
    return np.bitwise_or.reduce(nibbles << shifts, axis=2).astype("<u4").view("<i4")


FORMATS: dict[str, Callable[[DenseLinear, int], Tensors]] = {
    "int8": to_int8,
    "int4": to_int4,
    "int4-awq": to_awq,
}


def quantization_config(form: str, group_size: int) -> dict[str, Any]:
    """What `config.json` says of a checkpoint in the format `form`.

    `int8` asks the engine to round the activations too, each token by its largest: W8A8.
    """
    if form == "int4-awq":
        settings = {"version": "gemm", "zero_point": True, "bits": 4, "group_size": group_size}
        return {"quant_method": "awq", **settings}
    integers = {"type": "int", "symmetric": True}
    if form == "int8":
        kind = "int-quantized"
        weights = {**integers, "num_bits": 8, "strategy": "channel"}
        tokens = {**integers, "num_bits": 8, "strategy": "token", "dynamic": True}
        group = {"weights": weights, "input_activations": tokens}
    else:
        kind = "pack-quantized"
        weights = {**integers, "num_bits": 4, "strategy": "group", "group_size": group_size}
        group = {"weights": weights}
    method = {"quant_method": "compressed-tensors", "format": kind, "ignore": ["lm_head"]}
    return {**method, "config_groups": {"group_0": {"targets": ["Linear"], **group}}}
