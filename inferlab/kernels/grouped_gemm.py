"""The matrix products of all experts in one launch, in Triton.

A launch for each expert would leave a GPU idle, for an expert has few rows. Week 14 builds it; its
oracle is `inferlab.engine.moe:grouped_forward`. Mirrors
`vllm/model_executor/layers/fused_moe/fused_moe.py:fused_moe_kernel`, which also gathers the rows.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def grouped_gemm_kernel(
    rows,  # [num_rows, depth], sorted by expert
    weights,  # [num_experts, depth, width]
    offsets,  # [num_experts + 1]
    tile_ends,  # [num_experts] row tiles of this expert and of those before it
    output,  # [num_rows, width]
    num_experts,
    depth,
    width,
    EXPERTS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
):
    """Multiply: program (i, j) owns row tile i, which lies within one expert, and column tile j.

    A tile never crosses experts, because all its rows are multiplied by one matrix; the last tile
    of an expert is ragged instead. `EXPERTS` is `num_experts` rounded up to a power of two.
    """
    tile = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    held = experts < num_experts
    ends = tl.load(tile_ends + experts, mask=held, other=0)
    expert = tl.sum((held & (ends <= tile)).to(tl.int32), axis=0)
    if expert == num_experts:
        return  # the grid is an upper bound: only the device knows how many tiles there are
    first_row, end_row = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    tiles_left = tl.load(tile_ends + expert) - tile
    first_row += (tl.cdiv(end_row - first_row, TILE_ROWS) - tiles_left) * TILE_ROWS
    places = (first_row + tl.arange(0, TILE_ROWS)).to(tl.int64)[:, None]
    columns = (tl.program_id(1) * TILE_WIDTH + tl.arange(0, TILE_WIDTH))[None, :]
    mine = places < end_row  # the row after that is the next expert's
    matrix = weights + expert.to(tl.int64) * depth * width
    inner = tl.arange(0, TILE_DEPTH)
    total = tl.zeros([TILE_ROWS, TILE_WIDTH], dtype=tl.float32)
    for first in range(0, depth, TILE_DEPTH):
        across, down = (first + inner)[None, :], (first + inner)[:, None]
        inside = (down < depth) & (columns < width)
        left = tl.load(rows + places * depth + across, mask=mine & (across < depth), other=0.0)
        right = tl.load(matrix + down * width + columns, mask=inside, other=0.0)
        # "ieee" keeps float32 products exact: the default rounds their factors to TF32 on a GPU.
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(output + places * width + columns, total, mask=mine & (columns < width))


def grouped_gemm(
    rows: torch.Tensor,
    weights: torch.Tensor,
    offsets: torch.Tensor,
    tile_rows: int = 16,
    tile_width: int = 64,
    tile_depth: int = 32,
) -> torch.Tensor:
    """Multiply the rows of each expert by its matrix, summed in float32 whatever the dtype.

    Args:
        rows: `[num_rows, depth]`, contiguous, expert after expert.
        weights: `[num_experts, depth, width]`, contiguous, in the dtype of `rows`.
        offsets: `[num_experts + 1]` int32; rows `offsets[e]` to `offsets[e + 1]` are expert e's.
        tile_rows: rows of an output tile; like `tile_width` and `tile_depth` a power of two, at
            least 16. Rows that an expert does not have are computed in vain.

    Returns:
        `[num_rows, width]` in the dtype of `rows`.

    Raises:
        ValueError: if the shapes or dtypes do not go together, or a matrix is not contiguous.
    """
    (num_rows, depth), (num_experts, weights_depth, width) = rows.shape, weights.shape
    if depth != weights_depth or rows.dtype != weights.dtype or len(offsets) != num_experts + 1:
        raise ValueError(
            f"{rows.dtype} rows {tuple(rows.shape)}, {weights.dtype} weights "
            f"{tuple(weights.shape)} and {len(offsets)} offsets do not go together; expected "
            "[num_rows, depth], [num_experts, depth, width] in one dtype, and num_experts + 1."
        )
    if not (rows.is_contiguous() and weights.is_contiguous()):
        raise ValueError("A matrix is not contiguous; call .contiguous() on it first.")
    output = torch.empty(num_rows, width, dtype=rows.dtype, device=rows.device)
    tile_ends = torch.cumsum(triton.cdiv(offsets.diff(), tile_rows), 0)
    # Every expert with rows has at most one ragged tile, so no copy to the host is needed.
    grid = num_rows // tile_rows + min(num_experts, num_rows), triton.cdiv(width, tile_width)
    grouped_gemm_kernel[grid](
        rows,
        weights,
        offsets,
        tile_ends,
        output,
        num_experts,
        depth,
        width,
        EXPERTS=triton.next_power_of_2(num_experts),
        TILE_ROWS=tile_rows,
        TILE_WIDTH=tile_width,
        TILE_DEPTH=tile_depth,
    )
    return output
