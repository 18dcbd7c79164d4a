"""Probes of the copy: every element once, in any format and shape, and nothing past the end."""

from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week03-copy-kernel"


def tensor(array: np.ndarray) -> Any:
    # Here, so that a grader who asks for the inputs does not wait for PyTorch.
    import torch

    from inferlab.kernels import DEVICE

    return torch.from_numpy(array.copy()).to(DEVICE)


def whole_numbers(random: np.random.Generator) -> dict[str, Any]:
    return {"values": random.integers(2**40, 2**60, 200), "flags": random.random(200) < 0.5}


@probe(
    title="Numbers of sixty bits, and flags",
    exercise=EXERCISE,
    inputs=whole_numbers,
    message="On its way an element is turned into one of another format.",
)
def copy_formats(code: Any, inputs: Any) -> list[np.ndarray]:
    return [code.copy_tensor(tensor(inputs[name])).cpu().numpy() for name in ("values", "flags")]


def shaped(random: np.random.Generator) -> dict[str, Any]:
    shapes = [[20, 30], [3, 60, 2], [1, 1]]
    return {"arrays": [random.integers(1, 100, shape).astype(np.int8) for shape in shapes]}


@probe(
    title="Tensors of two and three dimensions",
    exercise=EXERCISE,
    inputs=shaped,
    message="A tensor that is no vector comes back incomplete or in another shape.",
)
def copy_shapes(code: Any, inputs: Any) -> list[np.ndarray]:
    return [code.copy_tensor(tensor(array), tile=64).cpu().numpy() for array in inputs["arrays"]]


def tiles_and_sizes(random: np.random.Generator) -> dict[str, Any]:
    return {"values": random.integers(1, 100, 1104).astype(np.int8), "tiles": [64, 512, 2048]}


@probe(
    title="Small tiles and large ones",
    exercise=EXERCISE,
    inputs=tiles_and_sizes,
    message="With another tile than the default the copy is incomplete.",
)
def copy_tiles(code: Any, inputs: Any) -> list[np.ndarray]:
    return [
        code.copy_tensor(tensor(inputs["values"]), tile).cpu().numpy() for tile in inputs["tiles"]
    ]


def around_a_tile(random: np.random.Generator) -> dict[str, Any]:
    values = random.integers(1, 100, 400).astype(np.int8)
    return {"values": values, "sizes": [1, 63, 64, 65, 128, 129]}


@probe(
    title="Sizes around a whole number of tiles, with more programs than they need",
    exercise=EXERCISE,
    inputs=around_a_tile,
    message="A program writes where nothing was asked of it, or leaves out what was.",
)
def copy_sizes(code: Any, inputs: Any) -> list[np.ndarray]:
    seen = []
    for size in inputs["sizes"]:
        source, target = tensor(inputs["values"]), tensor(np.full(400, -1, np.int8))
        code.copy_kernel[(5,)](source, target, size, TILE=64)
        seen.append(target.cpu().numpy())
    return seen


def one_vector(random: np.random.Generator) -> dict[str, Any]:
    return {"values": random.random(304, dtype=np.float32)}


@probe(
    title="A copy that is changed afterwards",
    exercise=EXERCISE,
    inputs=one_vector,
    message="What happens to the copy happens to the source as well.",
)
def copy_memory(code: Any, inputs: Any) -> np.ndarray:
    source = tensor(inputs["values"])
    code.copy_tensor(source).fill_(5)
    kept: np.ndarray = source.cpu().numpy()
    return kept


def tensors_with_gaps(random: np.random.Generator) -> dict[str, Any]:
    return {"values": random.random((12, 10), dtype=np.float32)}


@probe(
    title="Tensors with gaps: a transposed matrix, some of its columns, every other element",
    exercise=EXERCISE,
    inputs=tensors_with_gaps,
    message="A tensor whose elements do not follow each other is a ValueError, and no other is.",
)
def copy_gaps(code: Any, inputs: Any) -> list[bool]:
    whole = tensor(inputs["values"])
    views = [whole.T, whole[:, :4], whole[0, ::2], whole[2:5], whole]
    return [refuses(partial(code.copy_tensor, view)) for view in views]
