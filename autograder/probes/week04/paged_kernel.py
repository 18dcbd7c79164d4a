"""Probes of the Triton kernel, on batches whose unused slots hold poison."""

from typing import Any

import numpy as np

from autograder.probe import probe
from autograder.probes.week04.paged_attention import paged_arrays, paged_batch

EXERCISE = "week04-paged-kernel"


def launch(
    code: Any, inputs: Any, scale: float | None = None, precision: str = "float32"
) -> list[np.ndarray]:
    """The kernel's output for each kind of poison, launched over sequences and query heads."""
    # Here, so that a grader who asks for the inputs does not wait for PyTorch.
    import torch

    from inferlab.kernels import DEVICE

    seen = []
    for poison in inputs["poison"]:
        arrays = paged_arrays(inputs, poison)
        num_sequences, num_heads, head_dim = arrays[0].shape
        block_size, num_kv_heads = arrays[1].shape[1:3]
        tensors = [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]
        tensors[:3] = [tensor.to(getattr(torch, precision)) for tensor in tensors[:3]]
        output = torch.full_like(tensors[0], 7.0)
        code.paged_decode_kernel[(num_sequences, num_heads)](
            *tensors,
            output,
            head_dim**-0.5 if scale is None else scale,
            arrays[3].shape[1],
            HEADS_PER_GROUP=num_heads // num_kv_heads,
            BLOCK_SIZE=block_size,
            HEAD_DIM=head_dim,
        )
        seen.append(output.float().cpu().numpy())
    return seen


def kernel_groups(random: np.random.Generator) -> dict[str, Any]:
    shapes = [(1, 3), (3, 1), (2, 3)]
    return {
        "batches": [
            paged_batch(
                random, [2, 5], block_size=16, num_kv_heads=kv_heads, group=group, head_dim=8
            )
            for kv_heads, group in shapes
        ]
    }


@probe(
    title="One, two and three KV heads, each read by one or three query heads",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=kernel_groups,
    message="A program reads another KV head than the one of its query head's group.",
)
def kernel_heads(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, batch, scale=0.125) for batch in inputs["batches"]]


def kernel_scale_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [3, 18], block_size=16, num_kv_heads=1, group=1, head_dim=32)
    return {"batch": batch, "scales": [0.03125, 0.25]}


@probe(
    title="The scale and the size of a head",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=kernel_scale_inputs,
    message="Scores are multiplied by something else than the scale that the caller gives.",
)
def kernel_scale(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, inputs["batch"], scale) for scale in inputs["scales"]]


def kernel_block_sizes_inputs(random: np.random.Generator) -> dict[str, Any]:
    return {
        "batches": [
            paged_batch(
                random,
                [1, block_size, block_size + 1],
                block_size=block_size,
                num_kv_heads=1,
                group=1,
            )
            for block_size in (2, 8, 32)
        ]
    }


@probe(
    title="Blocks of 2, 8 and 32 slots: one token, a full block, one token more",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=kernel_block_sizes_inputs,
    message="With another block size, or at the edge of a block, a sequence attends to other "
    "tokens than its own.",
)
def kernel_block_sizes(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, batch, scale=0.125) for batch in inputs["batches"]]


def kernel_poison_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [7, 1, 20], block_size=16, num_kv_heads=1, group=1)
    poison = np.array([[np.nan, np.nan], [np.inf, -np.inf], [1e30, 1e30]])
    return batch | {"poison": poison}


@probe(
    title="Slots past the end that hold NaN, infinities and huge numbers; the longest comes first",
    exercise=EXERCISE,
    tolerance=1e-3,
    inputs=kernel_poison_inputs,
    message="What lies in slots that hold no token of the sequence reaches the output.",
)
def kernel_poison(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_large_scores_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [40, 52, 75], block_size=16, num_kv_heads=1, group=1)
    return batch | {"query_scale": 100.0}


@probe(
    title="Scores in the hundreds that rise and fall from block to block",
    exercise=EXERCISE,
    tolerance=1e-2,
    inputs=kernel_large_scores_inputs,
    message="The running sums overflow when a block's largest score is far below an earlier one's.",
)
def kernel_large_scores(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_negative_scores_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [5, 19], block_size=16, num_kv_heads=1, group=1)
    return batch | {"query_scale": 60.0, "negative_scores": True}


@probe(
    title="Scores that are all far below zero",
    exercise=EXERCISE,
    tolerance=1e-2,
    inputs=kernel_negative_scores_inputs,
    message="A number that was thought to be smaller than every score takes part in the softmax.",
)
def kernel_negative_scores(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_half_inputs(random: np.random.Generator) -> dict[str, Any]:
    # Scores far from zero and near each other: rounded to half precision they are the same.
    batch = paged_batch(random, [12, 33, 50], block_size=16, num_kv_heads=1, group=1, head_dim=128)
    return batch | {"query_scale": 4.0, "negative_scores": True}


@probe(
    title="Inputs in half precision",
    exercise=EXERCISE,
    tolerance=5e-3,
    inputs=kernel_half_inputs,
    message="With inputs in half precision the scores are not kept in single precision.",
)
def kernel_half_precision(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125, precision="float16")
