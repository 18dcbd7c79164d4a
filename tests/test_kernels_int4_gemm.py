"""The int4 product in Triton beside the engine's `Int4Linear`; in the interpreter without a GPU.

Tolerance: both sum k products of magnitude |x| |q| s in float32, each off by at most k·2⁻²⁴ times
the sum of those magnitudes, and scaling adds a rounding a group (see `test_kernels_tiled_gemm`).
Rounding the result to float16 adds half a unit in its last place.
"""

import sys

import numpy as np
import pytest

from inferlab.engine.layers import DenseLinear
from inferlab.engine.quantization import Int4Linear, unpack_int4

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")


def layer(k: int, n: int, group_size: int) -> Int4Linear:
    """Groups of very different scale, so that a scale from the wrong group shows."""
    rng = np.random.default_rng([k, n])
    weight = rng.standard_normal((k, n), dtype=np.float32)
    weight *= np.repeat(4.0 ** rng.integers(-3, 3, (k // group_size, n)), group_size, axis=0)
    return Int4Linear.from_dense(DenseLinear(weight.astype(np.float32)), group_size)


def rounding_bound(x: np.ndarray, linear: Int4Linear) -> np.ndarray:
    """How far two float32 sums of the same products may be apart, `[m, n]`."""
    values, num_groups = unpack_int4(linear.packed), len(linear.scales)
    weight = values * np.repeat(linear.scales, len(values) // num_groups, axis=0)
    magnitudes = np.abs(x).astype(float) @ np.abs(weight).astype(float)
    bound: np.ndarray = 2 * (len(values) + 2 * num_groups) * 2.0**-24 * magnitudes
    return bound


def error_over_bound(x: np.ndarray, linear: Int4Linear, **tiles: int) -> float:
    """Largest difference between kernel and engine, in units of what rounding can explain."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.int4_gemm import int4_gemm

    arrays = x, linear.packed, linear.scales
    output = int4_gemm(*(torch.from_numpy(array).to(kernels.DEVICE) for array in arrays), **tiles)
    assert output.dtype is getattr(torch, str(x.dtype))
    expected = linear(x.astype(np.float32))
    assert output.shape == expected.shape
    bound = rounding_bound(x, linear) + 2.0**-126
    if x.dtype == np.float16:
        bound += 2.0**-11 * np.abs(expected) + 2.0**-25
    return float((np.abs(output.cpu().numpy().astype(float) - expected) / bound).max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("m", "n", "k", "group_size"),
    [(1, 1, 32, 32), (1, 70, 64, 32), (16, 64, 128, 128), (17, 65, 256, 128), (33, 96, 192, 64)],
)
def test_the_kernel_equals_the_engine(dtype: str, m: int, n: int, k: int, group_size: int) -> None:
    x = np.random.default_rng(m).standard_normal((m, k)).astype(dtype)
    for tile_k in {32, min(group_size, 64)}:
        assert error_over_bound(x, layer(k, n, group_size), tile_k=tile_k) <= 1


@pytest.mark.parametrize("wrong", ["nibbles", "groups"])
def test_the_bound_notices_swapped_nibbles_and_swapped_groups(wrong: str) -> None:
    """Control: one byte or one scale out of its place is far beyond rounding."""
    linear = layer(128, 8, 32)
    x = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    right = linear(x)
    if wrong == "nibbles":
        column = linear.packed[:, 0]
        i = int(np.argmax(column >> 4 != column & 15))
        column[i] = column[i] >> 4 | column[i] << 4
    else:
        linear.scales[:2, 0] = linear.scales[1::-1, 0]
    assert (np.abs(linear(x) - right) / rounding_bound(x, linear)).max() > 10


def test_every_value_of_a_nibble_is_unpacked_at_both_places() -> None:
    """x picks one input at a time out of a weight that holds every pair of values."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.int4_gemm import int4_gemm

    packed = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scales = np.ones((1, 16), dtype=np.float32)
    arrays = np.eye(32, dtype=np.float16), packed, scales
    output = int4_gemm(
        *(torch.from_numpy(array).to(kernels.DEVICE) for array in arrays), tile_n=16, tile_k=32
    )
    assert np.array_equal(output.cpu().numpy(), unpack_int4(packed))
    assert output[0].tolist() == [i % 16 - 8 for i in range(16)], "the low nibble is the even row"


def test_what_lies_past_the_edges_is_not_used_and_not_overwritten() -> None:
    """The matrices are the heads of larger buffers that hold NaN, or bytes that would show."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.int4_gemm import int4_gemm_kernel

    m, n, k = 20, 19, 64
    x, scales, output = (torch.full((4096,), torch.nan, device=kernels.DEVICE) for _ in range(3))
    packed = torch.full((4096,), 255, dtype=torch.uint8, device=kernels.DEVICE)
    x[: m * k], scales[: 2 * n], packed[: k // 2 * n] = 1, 1, 0x99
    tiles = {"TILE_M": 16, "TILE_N": 16, "TILE_K": 32}
    int4_gemm_kernel[(2, 2)](x, packed, scales, output, m, n, k, 32, **tiles)
    assert (output[: m * n] == k).all()
    assert output[m * n :].isnan().all()


def test_matrices_that_do_not_go_together_are_refused() -> None:
    import torch

    from inferlab.kernels.int4_gemm import int4_gemm

    x, packed, scales = torch.ones(3, 64), torch.zeros(32, 8, dtype=torch.uint8), torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"x \(3, 62\) does not go with"):
        int4_gemm(x[:, :62].contiguous(), packed, scales, tile_k=32)
    with pytest.raises(ValueError, match="group size that tile_k = 64 divides"):
        int4_gemm(x, packed, scales)
    with pytest.raises(ValueError, match=r"scales \(2, 7\)"):
        int4_gemm(x, packed, scales[:, :7].contiguous(), tile_k=32)
    with pytest.raises(ValueError, match="not contiguous"):
        int4_gemm(torch.ones(64, 3).T, packed, scales, tile_k=32)
