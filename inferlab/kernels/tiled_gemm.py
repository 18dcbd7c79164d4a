"""A tiled matrix product in Triton, whose oracle is `@`, and a copy that measures bandwidth.

Week 3 reads the two ceilings of the roofline off them: FLOP/s from the product, bytes/s from the
copy. Mirrors `vllm/model_executor/determinism/batch_invariant.py:matmul_kernel_persistent`.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def tiled_gemm_kernel(
    left,  # [m, k]
    right,  # [k, n]
    output,  # [m, n]
    m,
    n,
    k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Multiply: each program owns one tile of the output and walks along k.

    Programs start along axis 0 first. In that order those that run at one time would read all of
    `right` for few rows of `left`; in groups of `GROUP` tile rows they share more in the L2 cache.
    """
    row_tile, column_tile = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), GROUP
    )
    rows = (row_tile * TILE_M + tl.arange(0, TILE_M))[:, None]
    columns = (column_tile * TILE_N + tl.arange(0, TILE_N))[None, :]
    depth = tl.arange(0, TILE_K)
    total = tl.zeros([TILE_M, TILE_N], dtype=tl.float32)
    for first in range(0, k, TILE_K):
        across, down = (first + depth)[None, :], (first + depth)[:, None]
        # Zeros past the edge add nothing; masked at the store alone, they would be read as garbage.
        a = tl.load(left + rows * k + across, mask=(rows < m) & (across < k), other=0.0)
        b = tl.load(right + down * n + columns, mask=(down < k) & (columns < n), other=0.0)
        # "ieee" keeps float32 products exact: the default rounds their factors to TF32 on a GPU.
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(output + rows * n + columns, total, mask=(rows < m) & (columns < n))


def tiled_gemm(
    left: torch.Tensor,
    right: torch.Tensor,
    tile_m: int = 64,
    tile_n: int = 64,
    tile_k: int = 32,
    group: int = 8,
) -> torch.Tensor:
    """Matrix product, summed in float32 whatever the dtype.

    Args:
        left: `[m, k]`, contiguous.
        right: `[k, n]`, contiguous, in the dtype of `left`.
        tile_m: rows of an output tile; like `tile_n` and `tile_k` a power of two, at least 16.
        group: tile rows that share the columns they read, for the L2 cache.

    Returns:
        `[m, n]` in the dtype of `left`.

    Raises:
        ValueError: if the matrices do not multiply or are not contiguous.
    """
    (m, k), (right_k, n) = left.shape, right.shape
    if k != right_k or left.dtype != right.dtype:
        raise ValueError(
            f"{left.dtype} {tuple(left.shape)} cannot be multiplied by {right.dtype} "
            f"{tuple(right.shape)}; expected [m, k] times [k, n] in one dtype."
        )
    if not (left.is_contiguous() and right.is_contiguous()):
        raise ValueError("A matrix is not contiguous; call .contiguous() on it first.")
    output = torch.empty(m, n, dtype=left.dtype, device=left.device)
    grid = triton.cdiv(n, tile_n), triton.cdiv(m, tile_m)
    tiled_gemm_kernel[grid](
        left, right, output, m, n, k, TILE_M=tile_m, TILE_N=tile_n, TILE_K=tile_k, GROUP=group
    )
    return output


@triton.jit
def copy_kernel(source, target, size, TILE: tl.constexpr):
    """Copy `size` elements: program i owns one tile of `TILE`, a power of two."""
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = places < size
    values = tl.load(source + places, mask=inside)
    tl.store(target + places, values, mask=inside)


def copy_tensor(source: torch.Tensor, tile: int = 1024) -> torch.Tensor:
    """A copy of a contiguous tensor, for the bandwidth it reaches: 2 bytes moved per byte held.

    Raises:
        ValueError: if the tensor is not contiguous.
    """
    if not source.is_contiguous():
        raise ValueError("The tensor is not contiguous; call .contiguous() on it first.")
    target = torch.empty_like(source)
    grid = (triton.cdiv(source.numel(), tile),)
    copy_kernel[grid](source, target, source.numel(), TILE=tile)
    return target
