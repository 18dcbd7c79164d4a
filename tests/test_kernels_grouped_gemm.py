"""The grouped product in Triton against the engine's; in the interpreter where there is no GPU.

Tolerance: a sum of k products in float32, in any order, is off by at most k·2⁻²⁴ times the sum of
their magnitudes (Higham, "Accuracy and stability of numerical algorithms", section 3.1, to first
order), in the kernel and in the oracle. Rounding to float16 adds 2⁻¹¹ of the result.
"""

import sys
from typing import Any

import numpy as np
import pytest

from inferlab.engine.layers import DenseLinear
from inferlab.engine.moe import grouped_forward, permute

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")

TILES = {"tile_rows": 16, "tile_width": 32, "tile_depth": 16}
COUNTS = {
    "none, one, a tile, more": [0, 1, 16, 17, 0, 40],
    "all on the last": [0, 0, 0, 35],
    "all on the first": [35, 0, 0],
    "one row each": [1] * 7,
    "whole tiles": [16, 32, 16],
    "a single expert": [21],
    "no row at all": [0, 0],
}


def on_device(*arrays: np.ndarray) -> list[Any]:
    import torch

    from inferlab import kernels

    return [torch.from_numpy(array).to(kernels.DEVICE) for array in arrays]


def matrices(
    dtype: str, num_rows: int, num_experts: int, depth: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([num_rows, num_experts, depth, width])
    shapes = (num_rows, depth), (num_experts, depth, width)
    rows, weights = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return rows, weights


def oracle(rows: np.ndarray, weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The engine's own grouped path, with a dense layer as each expert."""
    return grouped_forward(rows, offsets, [DenseLinear(weight) for weight in weights])


def error_over_bound(
    dtype: str, counts: list[int], depth: int, width: int, shift: int = 0, **tiles: int
) -> float:
    """Largest error of the kernel, in units of what rounding can explain.

    The kernel alone is told that each expert but the last ends `shift` rows later.
    """
    import torch

    from inferlab.kernels.grouped_gemm import grouped_gemm

    rows, weights = matrices(dtype, sum(counts), len(counts), depth, width)
    offsets = np.append(0, np.cumsum(counts)).astype(np.int32)
    told = offsets.copy()
    told[1:-1] += shift
    output = grouped_gemm(*on_device(rows, weights, told), **(TILES | tiles))
    assert output.shape == (sum(counts), width)
    assert output.dtype is getattr(torch, dtype)
    if not sum(counts):
        return 0.0
    single = [array.astype(np.float32) for array in (rows, weights)]
    expected = oracle(*single, offsets)
    bound = 2 * depth * 2.0**-24 * oracle(*map(np.abs, single), offsets)
    if dtype == "float16":
        bound += 2.0**-11 * np.abs(expected) + 2.0**-25  # the second term: subnormal results
    return float((np.abs(output.cpu().numpy().astype(np.float32) - expected) / bound).max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_the_kernel_equals_the_engines_grouped_path(dtype: str, counts: list[int]) -> None:
    assert error_over_bound(dtype, counts, depth=40, width=50) <= 1


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (16, 32), (17, 33), (15, 31), (48, 64)])
def test_neither_matrix_needs_to_be_a_multiple_of_a_tile(depth: int, width: int) -> None:
    assert error_over_bound("float32", [3, 0, 20], depth, width) <= 1


@pytest.mark.parametrize("tile_rows", [16, 32, 64])
def test_the_tile_decides_the_waste_and_not_the_result(tile_rows: int) -> None:
    assert error_over_bound("float32", [5, 40, 0, 1], 20, 20, tile_rows=tile_rows) <= 1


def test_the_bound_would_notice_one_row_at_the_wrong_expert() -> None:
    """Control: the kernel is told that an expert ends one row later than it does."""
    assert error_over_bound("float32", [5, 20], 40, 50, shift=1) > 1000


def test_it_multiplies_what_permute_hands_over() -> None:
    """Skewed routing of 60 tokens to 2 of 6 experts, one of which gets none."""
    from inferlab.kernels.grouped_gemm import grouped_gemm

    rng = np.random.default_rng(1)
    chances = np.array([8, 0, 1, 4, 2, 1]) / 16
    experts = np.stack([rng.choice(6, 2, replace=False, p=chances) for _ in range(60)])
    tokens, weights = matrices("float32", 60, 6, 33, 20)
    rows, _, offsets = permute(tokens, experts, num_experts=6)
    assert np.diff(offsets).min() == 0
    assert np.diff(offsets).max() > 2 * TILES["tile_rows"]
    output = grouped_gemm(*on_device(rows, weights, offsets.astype(np.int32)), **TILES)
    np.testing.assert_allclose(output.cpu().numpy(), oracle(rows, weights, offsets), atol=1e-5)


def test_matrices_that_do_not_go_together_are_refused() -> None:
    from inferlab.kernels.grouped_gemm import grouped_gemm

    rows, weights = matrices("float32", 8, 2, 4, 6)
    offsets = np.array([0, 3, 8], dtype=np.int32)
    wrong = [
        (rows[:, :3].copy(), weights, offsets),
        (rows.astype(np.float16), weights, offsets),
        (rows, weights, offsets[:2]),
    ]
    for arrays in wrong:
        with pytest.raises(ValueError, match="do not go together"):
            grouped_gemm(*on_device(*arrays))
    with pytest.raises(ValueError, match="not contiguous"):
        grouped_gemm(on_device(rows.T.copy())[0].T, *on_device(weights, offsets))
