"""Paged decode with the keys split over programs (flash-decoding), in Triton.

With few sequences `paged_decode` has too few programs to fill a GPU. Here several share a context
and a second kernel merges their states. The oracle is `inferlab.engine.attention`. Week 13 builds
it; mirrors `vllm/v1/attention/ops/triton_unified_attention.py:reduce_segments`. Source: Dao et al.,
"Flash-Decoding for long-context inference", 2023.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def split_kv_partial_kernel(
    queries,  # [num_sequences, num_heads, HEAD_DIM]
    key_cache,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_cache,  # like key_cache
    block_tables,  # [num_sequences, max_blocks]
    sequence_lengths,  # [num_sequences]
    maxima,  # [num_sequences, num_heads, num_splits]
    totals,  # like maxima
    outputs,  # [num_sequences, num_heads, num_splits, HEAD_DIM]
    scale,
    max_blocks,
    HEADS_PER_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Softmax state of one query over one split: program (s, h, i) owns split i of head h.

    A split without a key leaves maximum -inf, total 0 and output 0, which merge as nothing.
    """
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads, num_splits = tl.num_programs(1), tl.num_programs(2)
    num_kv_heads = num_heads // HEADS_PER_GROUP
    dims = tl.arange(0, HEAD_DIM)
    offsets = tl.arange(0, BLOCK_SIZE)
    row = sequence * num_heads + head
    query = tl.load(queries + row * HEAD_DIM + dims).to(tl.float32) * scale
    length = tl.load(sequence_lengths + sequence)
    num_blocks = tl.cdiv(length, BLOCK_SIZE)
    share = tl.cdiv(num_blocks, num_splits)

    maximum = -float("inf")
    total = 0.0
    weighted = tl.zeros([HEAD_DIM], dtype=tl.float32)
    for i in range(split * share, tl.minimum((split + 1) * share, num_blocks)):
        block = tl.load(block_tables + sequence * max_blocks + i).to(tl.int64)
        valid = i * BLOCK_SIZE + offsets < length
        rows = ((block * BLOCK_SIZE + offsets) * num_kv_heads + head // HEADS_PER_GROUP) * HEAD_DIM
        places = rows[:, None] + dims[None, :]
        keys = tl.load(key_cache + places, mask=valid[:, None], other=0.0).to(tl.float32)
        values = tl.load(value_cache + places, mask=valid[:, None], other=0.0).to(tl.float32)
        scores = tl.where(valid, tl.sum(query[None, :] * keys, axis=1), -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=0))
        correction = tl.exp(maximum - new_maximum)
        weights = tl.exp(scores - new_maximum)
        total = total * correction + tl.sum(weights, axis=0)
        weighted = weighted * correction + tl.sum(weights[:, None] * values, axis=0)
        maximum = new_maximum
    place = row * num_splits + split
    tl.store(maxima + place, maximum)
    tl.store(totals + place, total)
    tl.store(outputs + place * HEAD_DIM + dims, weighted)


@triton.jit
def merge_splits_kernel(
    maxima,  # [num_rows, num_splits]
    totals,  # [num_rows, num_splits]
    outputs,  # [num_rows, num_splits, HEAD_DIM]
    merged,  # [num_rows, HEAD_DIM]
    num_splits,
    SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Merge the splits of one query: program r owns row r, a head of a sequence.

    `SPLITS` is `num_splits` rounded up to a power of two; the splits it adds hold no key.
    """
    row = tl.program_id(0)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, HEAD_DIM)
    held = splits < num_splits
    places = row * num_splits + splits
    partial_maxima = tl.load(maxima + places, mask=held, other=-float("inf"))
    corrections = tl.exp(partial_maxima - tl.max(partial_maxima, axis=0))
    total = tl.sum(tl.load(totals + places, mask=held, other=0.0) * corrections, axis=0)
    pointers = outputs + places[:, None] * HEAD_DIM + dims[None, :]
    partial_outputs = tl.load(pointers, mask=held[:, None], other=0.0)
    weighted = tl.sum(partial_outputs * corrections[:, None], axis=0)
    tl.store(merged + row * HEAD_DIM + dims, weighted / total)


def split_kv_partials(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    sequence_lengths: torch.Tensor,
    num_splits: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax state of each split of the keys; the other arguments are those of `paged_decode`.

    Split i holds blocks `i * share` to `(i + 1) * share`, share = ceil(blocks / num_splits).

    Returns:
        Maximum and total `[num_sequences, num_heads, num_splits]` and weighted values
        `[num_sequences, num_heads, num_splits, head_dim]`, in float32.
    """
    num_sequences, num_heads, head_dim = queries.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    grid = num_sequences, num_heads, num_splits
    maxima, totals = (torch.empty(grid, device=queries.device) for _ in range(2))
    outputs = torch.empty(*grid, head_dim, device=queries.device)
    arguments = queries, key_cache, value_cache, block_tables, sequence_lengths
    split_kv_partial_kernel[grid](
        *(*arguments, maxima, totals, outputs, head_dim**-0.5, block_tables.shape[1]),
        HEADS_PER_GROUP=num_heads // num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
    )
    return maxima, totals, outputs


def merge_splits(maxima: torch.Tensor, totals: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Attention `[num_sequences, num_heads, head_dim]`, float32, from `split_kv_partials`."""
    num_sequences, num_heads, num_splits, head_dim = outputs.shape
    merged = torch.empty(num_sequences, num_heads, head_dim, device=outputs.device)
    splits = triton.next_power_of_2(num_splits)
    merge_splits_kernel[(num_sequences * num_heads,)](
        maxima, totals, outputs, merged, num_splits, SPLITS=splits, HEAD_DIM=head_dim
    )
    return merged
