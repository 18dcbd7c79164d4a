"""What a tiled matrix product moves between slow and fast memory, counted and as a formula.

Slow memory holds the matrices; fast memory (a core's cache, a GPU's registers and shared memory)
holds one tile of each. Source: Lam, Rothberg and Wolf, "The cache performance and optimizations of
blocked algorithms", ASPLOS 1991.
"""

from typing import NamedTuple

import numpy as np


class Traffic(NamedTuple):
    """Elements that went from slow memory to fast and back."""

    loaded: int
    stored: int


class CountedMatrix:
    """A matrix in slow memory. Blocks of it are copied out and in, and every element is counted."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # [rows, columns]
        self.loaded = 0
        self.stored = 0
        self.largest = (0, 0)  # most rows and most columns of a block

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def load(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        """A copy of the block whose first element is `[row, column]`, cut off at the edges."""
        block = self.array[row : row + rows, column : column + columns].copy()
        self.loaded += block.size
        self._note(block)
        return block

    def store(self, row: int, column: int, block: np.ndarray) -> None:
        """Write a block back; it must lie inside the matrix."""
        self.array[row : row + block.shape[0], column : column + block.shape[1]] = block
        self.stored += block.size
        self._note(block)

    def _note(self, block: np.ndarray) -> None:
        rows, columns = block.shape
        self.largest = max(self.largest[0], rows), max(self.largest[1], columns)


def tiled_matmul(
    left: CountedMatrix,
    right: CountedMatrix,
    output: CountedMatrix,
    tile_m: int,
    tile_n: int,
    tile_k: int,
) -> None:
    """Put the product of `left` and `right` into `output`, tile by tile.

    Each output tile is summed in fast memory and stored once. Beside it fast memory holds one tile
    of `left`, at most `[tile_m, tile_k]`, and one of `right`, at most `[tile_k, tile_n]`, and keeps
    nothing for the next output tile.

    Args:
        left: `[m, k]`; right: `[k, n]`; output: `[m, n]`, whatever it holds.

    Raises:
        ValueError: if the shapes do not fit.
    """
    (m, k), (right_k, n) = left.shape, right.shape
    if k != right_k or output.shape != (m, n):
        raise ValueError(
            f"{left.shape} times {right.shape} does not make {output.shape}: expected [m, k] times "
            "[k, n] into [m, n]."
        )
    for row in range(0, m, tile_m):
        for column in range(0, n, tile_n):
            total = np.zeros((min(tile_m, m - row), min(tile_n, n - column)), left.array.dtype)
            for depth in range(0, k, tile_k):
                a = left.load(row, depth, tile_m, tile_k)
                b = right.load(depth, column, tile_k, tile_n)
                total += a @ b
            output.store(row, column, total)


def tiled_traffic(m: int, n: int, k: int, tile_m: int, tile_n: int) -> Traffic:
    """The elements that `tiled_matmul` loads and stores, without running it.

    Every column of tiles reads all of `left`, every row of tiles all of `right`; the last tile of a
    row or column may be smaller, which changes their number and not what they read.
    """
    tile_rows = -(-m // tile_m)
    tile_columns = -(-n // tile_n)
    return Traffic(m * k * tile_columns + k * n * tile_rows, m * n)


def tiled_intensity(
    m: int, n: int, k: int, tile_m: int, tile_n: int, element_bytes: float
) -> float:
    """FLOP per byte of slow memory, loads and stores, of a tiled product.

    For matrices that are large in every direction it tends to the harmonic mean of the tile's sides
    over `element_bytes`.
    """
    traffic = tiled_traffic(m, n, k, tile_m, tile_n)
    return 2 * m * n * k / (element_bytes * (traffic.loaded + traffic.stored))


class TiledLinear:
    """A linear layer of the engine, computed by `tiled_matmul`; it counts what all calls moved.

    Takes the place of `inferlab.engine.layers.DenseLinear`.
    """

    def __init__(self, weight: np.ndarray, tile_m: int, tile_n: int, tile_k: int) -> None:
        self.weight = weight  # [input, output]
        self.tiles = tile_m, tile_n, tile_k
        self.weights_loaded = 0
        self.rows_loaded = 0
        self.stored = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        product = np.empty((len(x), self.weight.shape[1]), x.dtype)
        left, right, output = (CountedMatrix(array) for array in (x, self.weight, product))
        tiled_matmul(left, right, output, *self.tiles)
        self.rows_loaded += left.loaded
        self.weights_loaded += right.loaded
        self.stored += output.stored
        return product
