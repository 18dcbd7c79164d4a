"""The tiled product and the copy in Triton; in the interpreter where there is no GPU.

Tolerance: a sum of k products in float32, in any order, is off by at most k·2⁻²⁴ times the sum of
their magnitudes (Higham, "Accuracy and stability of numerical algorithms", section 3.1, to first
order). Rounding the result to float16 adds half a unit in its last place, 2⁻¹¹ of the result.
"""

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")

SHAPES = [(1, 1, 1), (1, 40, 70), (33, 16, 1), (64, 64, 64), (65, 33, 100), (100, 129, 17)]


def error_over_bound(dtype: str, m: int, n: int, k: int, **tiles: int) -> float:
    """Largest error of the kernel, in units of what rounding can explain."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.tiled_gemm import tiled_gemm

    rng = np.random.default_rng([m, n, k])
    left, right = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
    product = tiled_gemm(
        *(torch.from_numpy(array).to(kernels.DEVICE) for array in (left, right)), **tiles
    )
    assert product.shape == (m, n)
    assert product.dtype is getattr(torch, dtype)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    bound = k * 2.0**-24 * (np.abs(left.astype(float)) @ np.abs(right.astype(float)))
    if dtype == "float16":
        bound += 2.0**-11 * np.abs(exact) + 2.0**-25  # the second term: subnormal results
    return float((np.abs(product.cpu().numpy().astype(float) - exact) / bound).max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_product_is_right_to_the_last_bits(dtype: str, m: int, n: int, k: int) -> None:
    assert error_over_bound(dtype, m, n, k, tile_m=32, tile_n=32, tile_k=16) <= 1


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_the_order_of_the_programs_changes_nothing(group: int) -> None:
    """Five tile rows are no multiple of 2, 3 or 8: the last group is a short one."""
    assert (
        error_over_bound("float32", 70, 50, 20, tile_m=16, tile_n=16, tile_k=16, group=group) <= 1
    )


def test_the_bound_would_notice_one_missing_product() -> None:
    """Control: leaving out the last of 100 products is an error far above rounding."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((65, 100)), rng.standard_normal((100, 33))
    missing = np.abs(left[:, -1:] @ right[-1:])
    bound = 100 * 2.0**-24 * (np.abs(left) @ np.abs(right))
    assert (missing / bound).max() > 1000


def test_sums_are_kept_in_float32_for_float16_factors() -> None:
    """4,096 products of 1: a float16 sum would stop growing at 2,048."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.tiled_gemm import tiled_gemm

    ones = torch.ones(16, 4096, dtype=torch.float16, device=kernels.DEVICE)
    product = tiled_gemm(ones, ones.T.contiguous(), tile_m=16, tile_n=16, tile_k=256)
    assert (product == 4096).all()


def test_memory_past_the_edges_is_neither_read_nor_written() -> None:
    """The matrices are the heads of larger buffers that hold NaN."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.tiled_gemm import tiled_gemm_kernel

    m, n, k = 20, 19, 18
    left, right, output = (torch.full((4096,), torch.nan, device=kernels.DEVICE) for _ in range(3))
    left[: m * k] = right[: k * n] = 1
    tiles = {"TILE_M": 16, "TILE_N": 16, "TILE_K": 16, "GROUP": 8}
    tiled_gemm_kernel[(2, 2)](left, right, output, m, n, k, **tiles)
    assert (output[: m * n] == k).all()
    assert output[m * n :].isnan().all()


def test_matrices_that_do_not_multiply_are_refused() -> None:
    import torch

    from inferlab.kernels.tiled_gemm import tiled_gemm

    with pytest.raises(ValueError, match=r"\(3, 4\) cannot be multiplied by .* \(5, 6\)"):
        tiled_gemm(torch.ones(3, 4), torch.ones(5, 6))
    with pytest.raises(ValueError, match="in one dtype"):
        tiled_gemm(torch.ones(3, 4), torch.ones(4, 6, dtype=torch.float16))
    with pytest.raises(ValueError, match="not contiguous"):
        tiled_gemm(torch.ones(3, 4), torch.ones(6, 4).T)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_copy_is_exact_and_stays_inside(size: int, dtype: str) -> None:
    import torch

    from inferlab import kernels
    from inferlab.kernels.tiled_gemm import copy_kernel, copy_tensor

    values = torch.arange(3000, device=kernels.DEVICE).remainder(100).to(getattr(torch, dtype))
    assert torch.equal(copy_tensor(values[:size]), values[:size])
    target = torch.full_like(values, 77)
    copy_kernel[(-(-size // 1024),)](values, target, size, TILE=1024)
    assert torch.equal(target[:size], values[:size])
    assert (target[size:] == 77).all()


def test_a_tensor_with_gaps_is_not_copied() -> None:
    import torch

    from inferlab.kernels.tiled_gemm import copy_tensor

    with pytest.raises(ValueError, match="not contiguous"):
        copy_tensor(torch.ones(4, 6).T)
    whole = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(copy_tensor(whole, tile=4), whole), "all of a matrix, not its first row"


@pytest.mark.parametrize(("m", "n", "k"), [(100, 90, 70), (16, 16, 16), (1, 33, 20)])
def test_the_kernels_move_what_the_formula_counts(m: int, n: int, k: int) -> None:
    import torch

    from inferlab.analysis.tiled_traffic import tiled_traffic
    from inferlab.kernels import INTERPRETED
    from inferlab.kernels.counted_traffic import counted_traffic
    from inferlab.kernels.tiled_gemm import copy_tensor, tiled_gemm

    if not INTERPRETED:
        pytest.skip("only the interpreter sees single elements")
    left, right = torch.ones(m, k), torch.ones(k, n)
    with counted_traffic() as found:
        tiled_gemm(left, right, tile_m=32, tile_n=16, tile_k=16)
    assert (found.loaded, found.stored) == tiled_traffic(m, n, k, 32, 16)
    with counted_traffic() as found:
        copy_tensor(left, tile=64)
    assert found.loaded == found.stored == m * k
    copy_tensor(left)
    assert found.loaded == m * k, "counting has ended with its block"
