"""Probes of the Triton product, on matrices whose surroundings hold poison."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week03-tiled-kernel"


def launch(code: Any, inputs: Any, precision: str = "float32") -> list[Any]:
    """The output, and whether what lies past it is untouched.

    Each matrix is the head of a buffer that holds NaN. Factors are small whole numbers, whose sums
    are exact in any order; what is no number is shown as -1.
    """
    # Here, so that a grader who asks for the inputs does not wait for PyTorch.
    import torch

    from inferlab.kernels import DEVICE

    left, right = inputs["left"], inputs["right"]
    (m, k), n = left.shape, right.shape[1]
    buffers = []
    for array in (left, right, np.empty((m, n), np.int8)):
        buffer = torch.full((array.size + 4096,), torch.nan, dtype=getattr(torch, precision))
        buffer[: array.size] = torch.from_numpy(array.reshape(-1).astype(np.float32))
        buffers.append(buffer.to(DEVICE))
    buffers[2].fill_(torch.nan)
    tile_m, tile_n, tile_k, group = inputs["tiles"]
    grid = -(-n // tile_n), -(-m // tile_m)
    sizes = {"TILE_M": tile_m, "TILE_N": tile_n, "TILE_K": tile_k, "GROUP": group}
    code.tiled_gemm_kernel[grid](*buffers, m, n, k, **sizes)
    output = buffers[2].float().cpu().numpy()
    numbers = np.clip(np.nan_to_num(output[: m * n], nan=-1.0), -1, 32000).round()
    return [numbers.astype(np.int16), bool(np.isnan(output[m * n :]).all())]


def drawn(
    random: np.random.Generator, sides: tuple[int, int, int], tiles: list[int]
) -> dict[str, Any]:
    m, n, k = sides
    return {
        "left": random.integers(1, 9, (m, k)).astype(np.int8),
        "right": random.integers(1, 9, (k, n)).astype(np.int8),
        "tiles": tiles,
    }


def wide_and_high(random: np.random.Generator) -> dict[str, Any]:
    tiles = [16, 16, 16, int(random.choice([1, 3, 8]))]
    return {
        "wide": drawn(random, (16, 64, 16), tiles),
        "high": drawn(random, (64, 16, 16), tiles),
    }


@probe(
    title="Many more tiles one way than the other",
    exercise=EXERCISE,
    inputs=wide_and_high,
    message="A program computes another tile than its own when the tiles are no square.",
)
def not_square(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, inputs["wide"]), launch(code, inputs["high"])]


def ragged_sides(random: np.random.Generator) -> dict[str, Any]:
    m, n = random.integers(17, 31, 2).tolist()
    return drawn(random, (m, n, 32), [16, 16, 16, 2])


@probe(
    title="Rows and columns that are no whole number of tiles",
    exercise=EXERCISE,
    trials=2,
    inputs=ragged_sides,
    message="At an edge of the output a value is missing, wrong, or written where none belongs.",
)
def ragged_edges(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs)


def ragged_depth(random: np.random.Generator) -> dict[str, Any]:
    return drawn(random, (16, 16, int(random.integers(17, 31))), [16, 16, 16, 2])


@probe(
    title="A depth that is no whole number of tiles, with NaN behind each matrix",
    exercise=EXERCISE,
    trials=2,
    inputs=ragged_depth,
    message="What lies past the end of a matrix reaches the sum, or the sum ends too early.",
)
def ragged_sums(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs)


def different_tiles(random: np.random.Generator) -> dict[str, Any]:
    return {
        "deep": drawn(random, (16, 16, 64), [16, 16, 32, 2]),
        "flat": drawn(random, (32, 16, 32), [32, 16, 16, 2]),
    }


@probe(
    title="Tiles that are deeper than high, and higher than deep",
    exercise=EXERCISE,
    inputs=different_tiles,
    message="The depth of a tile is taken from another of its sides.",
)
def tile_depths(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, inputs["deep"]), launch(code, inputs["flat"])]


def half_precision(random: np.random.Generator) -> dict[str, Any]:
    """A pattern whose repetitions add up to some ten thousand: half precision would round."""
    return drawn(random, (16, 16, 32), [16, 16, 32, 1])


@probe(
    title="Long sums of factors in half precision",
    exercise=EXERCISE,
    inputs=half_precision,
    message="With factors in half precision the sums are not kept in single precision.",
)
def half_sums(code: Any, inputs: Any) -> list[Any]:
    repeated = {"left": np.tile(inputs["left"], 16), "right": np.tile(inputs["right"], (16, 1))}
    # The output is rounded once, as it is stored; a sum that is kept in half precision often.
    return launch(code, inputs | repeated, "float16")


def thin(random: np.random.Generator) -> dict[str, Any]:
    return {
        "row": drawn(random, (1, 40, 20), [16, 16, 16, 4]),
        "column": drawn(random, (40, 1, 20), [16, 16, 16, 4]),
        "outer": drawn(random, (20, 20, 1), [16, 16, 16, 4]),
    }


@probe(
    title="One row, one column, and a depth of one",
    exercise=EXERCISE,
    inputs=thin,
    message="A matrix that is thinner than a tile is computed wrongly.",
)
def thin_matrices(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, inputs[name]) for name in ("row", "column", "outer")]
