"""Probes of the tiled product: what it computes, what it moves, and in which pieces."""

from functools import partial
from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week03-tiled-traffic"


def multiply(code: Any, inputs: Any) -> dict[str, Any]:
    """Product and traffic; the output holds NaN at first."""
    left, right = code.CountedMatrix(inputs["left"]), code.CountedMatrix(inputs["right"])
    shape = len(inputs["left"]), inputs["right"].shape[1]
    output = code.CountedMatrix(np.full(shape, np.nan, inputs["left"].dtype))
    code.tiled_matmul(left, right, output, *inputs["tiles"])
    return {
        "product": output.array,
        "loaded": [left.loaded, right.loaded, output.loaded],
        "stored": [left.stored, right.stored, output.stored],
        "largest": [*left.largest, *right.largest],
    }


def factors(random: np.random.Generator, m: int, n: int, k: int) -> dict[str, Any]:
    """Small whole numbers, whose products are exact in any order."""
    return {
        "left": random.integers(-9, 10, (m, k)).astype(np.float32),
        "right": random.integers(-9, 10, (k, n)).astype(np.float32),
    }


def ragged_output(random: np.random.Generator) -> dict[str, Any]:
    tile_m, tile_n = random.integers(3, 8, 2).tolist()
    m, n = 3 * tile_m + 1 + int(random.integers(tile_m - 1)), 2 * tile_n + 1
    return factors(random, m, n, 12) | {"tiles": [tile_m, tile_n, 4]}


@probe(
    title="An output that is no whole number of tiles, either way",
    exercise=EXERCISE,
    trials=3,
    inputs=ragged_output,
    message="At the lower or the right edge a product, or what is moved for it, is wrong.",
)
def ragged_tiles(code: Any, inputs: Any) -> dict[str, Any]:
    return multiply(code, inputs)


def ragged_depth(random: np.random.Generator) -> dict[str, Any]:
    tile_k = int(random.integers(3, 9))
    k = 2 * tile_k + 1 + int(random.integers(tile_k - 1))
    return factors(random, 8, 12, k) | {"tiles": [4, 6, tile_k]}


@probe(
    title="A depth that is no whole number of tiles",
    exercise=EXERCISE,
    trials=3,
    inputs=ragged_depth,
    message="The last columns of the left matrix and rows of the right one are not all used once.",
)
def ragged_last_depth(code: Any, inputs: Any) -> dict[str, Any]:
    return multiply(code, inputs)


def oversized_tiles(random: np.random.Generator) -> dict[str, Any]:
    m, n, k = random.integers(1, 9, 3).tolist()
    return factors(random, m, n, k) | {"tiles": [64, 128, 32]}


@probe(
    title="Tiles that are larger than the matrices",
    exercise=EXERCISE,
    trials=3,
    inputs=oversized_tiles,
    message="With one tile for everything each matrix moves once, and no more than there is.",
)
def one_tile(code: Any, inputs: Any) -> dict[str, Any]:
    return multiply(code, inputs)


def wide_numbers(random: np.random.Generator) -> dict[str, Any]:
    """Whole numbers that float64 adds up exactly and float32 does not."""
    left, right = (random.integers(2**20, 2**21, shape) for shape in ((4, 12), (12, 4)))
    return {
        "left": left.astype(np.float64),
        "right": right.astype(np.float64),
        "tiles": [2, 2, 3],
    }


@probe(
    title="Numbers that need the precision of the matrices",
    exercise=EXERCISE,
    trials=2,
    inputs=wide_numbers,
    message="The sums are kept in another precision than that of the matrices.",
)
def wide_sums(code: Any, inputs: Any) -> dict[str, Any]:
    return multiply(code, inputs)


def misfits(random: np.random.Generator) -> dict[str, Any]:
    m, n, k = random.integers(2, 6, 3).tolist()
    return {
        "shapes": [
            [[m, k], [k + 1, n], [m, n]],
            [[m, k], [k, n], [m + 1, n]],
            [[m, k], [k, n], [m, n + 1]],
            [[m, k], [k, n], [m, n]],
        ]
    }


@probe(
    title="Matrices that do not fit, and some that do",
    exercise=EXERCISE,
    trials=2,
    inputs=misfits,
    message="Shapes that do not fit are a ValueError before anything moves, and others are not.",
)
def misfitting_shapes(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for shapes in inputs["shapes"]:
        matrices = [code.CountedMatrix(np.ones(shape)) for shape in shapes]
        refused = refuses(partial(code.tiled_matmul, *matrices, 2, 2, 2))
        seen.append([refused, [[one.loaded, one.stored] for one in matrices]])
    return seen


def drawn_products(random: np.random.Generator) -> dict[str, Any]:
    sides = random.integers(100, 3000, (5, 3)).tolist()
    tiles = random.integers(3, 90, (5, 2)).tolist()
    return {"products": [[*one, *tile] for one, tile in zip(sides, tiles)]}


@probe(
    title="The traffic of large products with tiles of any sides",
    exercise=EXERCISE,
    trials=3,
    inputs=drawn_products,
    message="The formula says something else than a product of these sides would move.",
)
def large_traffic(code: Any, inputs: Any) -> list[list[int]]:
    return [list(code.tiled_traffic(*one)) for one in inputs["products"]]


def extreme_products(random: np.random.Generator) -> dict[str, Any]:
    m, n, k = random.integers(2, 40, 3).tolist()
    return {"products": [[1, n, k, 64, 64], [m, 1, k, 64, 64], [m, n, 1, 1, 1], [m, n, k, m, n]]}


@probe(
    title="The traffic of one row, one column, tiles of one, and one tile for all",
    exercise=EXERCISE,
    trials=3,
    inputs=extreme_products,
    message="Where a matrix is smaller than a tile, or a tile has a side of one, the count is off.",
)
def extreme_traffic(code: Any, inputs: Any) -> list[list[int]]:
    return [list(code.tiled_traffic(*one)) for one in inputs["products"]]


@probe(
    title="Intensities in formats of one, two and four bytes",
    exercise=EXERCISE,
    trials=3,
    tolerance=1e-9,
    inputs=drawn_products,
    message="FLOP per byte is not that of all elements moved, in the format that is asked for.",
)
def intensity_formats(code: Any, inputs: Any) -> list[float]:
    return [
        float(code.tiled_intensity(*one, element_bytes))
        for one in inputs["products"]
        for element_bytes in (1, 2, 4)
    ]
