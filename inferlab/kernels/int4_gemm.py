"""A matrix product with packed int4 weights in Triton; its oracle is the engine's `Int4Linear`.

The weights cross the memory bus at four bits and become floats in registers, which is where weight
quantisation saves time: a decode step waits for weights. Week 12 builds it. Mirrors
`vllm/model_executor/layers/quantization/awq_triton.py:awq_gemm_kernel`.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def int4_gemm_kernel(
    x,  # [m, k]
    packed,  # [k / 2, n] row i holds rows 2 * i (low four bits) and 2 * i + 1 of the weight
    scales,  # [k / group, n]
    output,  # [m, n]
    m,
    n,
    k,
    group,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """Multiply: each program owns one tile of the output and walks along k, `TILE_K` at a time.

    A tile lies in one group, so its sums are scaled and not its weights: whole numbers from -8 to 7
    are exact in every dtype, and one scale a column and tile is multiplied instead of `TILE_K`.
    """
    rows = (tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)).to(tl.int64)[:, None]
    columns = (tl.program_id(0) * TILE_N + tl.arange(0, TILE_N))[None, :]
    pairs = tl.arange(0, TILE_K // 2)
    total = tl.zeros([TILE_M, TILE_N], dtype=tl.float32)
    for first in range(0, k, TILE_K):
        across, down = (first + 2 * pairs)[None, :], (first // 2 + pairs)[:, None]
        even = tl.load(x + rows * k + across, mask=rows < m, other=0.0)
        odd = tl.load(x + rows * k + across + 1, mask=rows < m, other=0.0)
        # Padding columns read byte 0, which stands for -8 twice; the store leaves them out.
        byte = tl.load(packed + down * n + columns, mask=columns < n, other=0).to(tl.int32)
        low, high = ((byte & 15) - 8).to(even.dtype), ((byte >> 4) - 8).to(even.dtype)
        # A sum does not mind its order: even and odd inputs apart, no nibbles are interleaved.
        part = tl.dot(even, low, input_precision="ieee")
        part = tl.dot(odd, high, part, input_precision="ieee")
        scale = tl.load(scales + first // group * n + columns, mask=columns < n, other=0.0)
        total += part * scale
    tl.store(output + rows * n + columns, total, mask=(rows < m) & (columns < n))


def int4_gemm(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    tile_m: int = 16,
    tile_n: int = 64,
    tile_k: int = 64,
) -> torch.Tensor:
    """Product of activations and int4 weights, summed in float32 whatever the dtype.

    Args:
        x: `[m, k]`, contiguous, float16 or float32.
        packed: `[k / 2, n]` uint8, contiguous, as `pack_int4` gives them.
        scales: `[k / group_size, n]` float32, contiguous.
        tile_m: rows of an output tile, a power of two and at least 16, like `tile_n`.
        tile_k: a power of two, at least 32 (two inputs share a byte, and `tl.dot` needs 16); it has
            to divide the group size.

    Returns:
        `[m, n]` in the dtype of `x`.

    Raises:
        ValueError: if the shapes do not go together, or a matrix is not contiguous.
    """
    (m, k), n, num_groups = x.shape, packed.shape[1], len(scales)
    if k != 2 * len(packed) or scales.shape[1] != n or k % (num_groups * tile_k):
        raise ValueError(
            f"x {tuple(x.shape)} does not go with packed weights {tuple(packed.shape)} and scales "
            f"{tuple(scales.shape)}; expected [m, k], [k / 2, n] and [k / group_size, n], with a "
            f"group size that tile_k = {tile_k} divides."
        )
    if not all(matrix.is_contiguous() for matrix in (x, packed, scales)):
        raise ValueError("A matrix is not contiguous; call .contiguous() on it first.")
    output = torch.empty(m, n, dtype=x.dtype, device=x.device)
    grid = triton.cdiv(n, tile_n), triton.cdiv(m, tile_m)
    tiles = dict(TILE_M=tile_m, TILE_N=tile_n, TILE_K=tile_k)
    int4_gemm_kernel[grid](x, packed, scales, output, m, n, k, k // num_groups, **tiles)
    return output
