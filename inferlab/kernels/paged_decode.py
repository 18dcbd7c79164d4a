"""Paged decode attention in Triton; its oracle is `inferlab.engine.attention`."""

import torch
import triton
import triton.language as tl


@triton.jit
def paged_decode_kernel(
    queries,  # [num_sequences, num_heads, HEAD_DIM]
    key_cache,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_cache,  # like key_cache
    block_tables,  # [num_sequences, max_blocks]
    sequence_lengths,  # [num_sequences]
    output,  # like queries
    scale,
    max_blocks,
    HEADS_PER_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Attend with one query: program (s, h) owns query head h of sequence s.

    One query has no second matrix dimension, so there is nothing for `tl.dot` to multiply (it needs
    tiles of at least 16 rows): scores and output are reductions. Sums are kept in float32.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    num_kv_heads = num_heads // HEADS_PER_GROUP
    dims = tl.arange(0, HEAD_DIM)
    offsets = tl.arange(0, BLOCK_SIZE)
    row = (sequence * num_heads + head) * HEAD_DIM
    query = tl.load(queries + row + dims).to(tl.float32) * scale
    length = tl.load(sequence_lengths + sequence)

    maximum = -float("inf")
    total = 0.0
    weighted = tl.zeros([HEAD_DIM], dtype=tl.float32)
    for i in range(tl.cdiv(length, BLOCK_SIZE)):
        block = tl.load(block_tables + sequence * max_blocks + i)
        slots = block * BLOCK_SIZE + offsets
        valid = i * BLOCK_SIZE + offsets < length
        rows = (slots * num_kv_heads + head // HEADS_PER_GROUP) * HEAD_DIM
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
    tl.store(output + row + dims, weighted / total)


def paged_decode(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    sequence_lengths: torch.Tensor,
) -> torch.Tensor:
    """Launch the kernel over sequences and heads.

    Args:
        queries: `[num_sequences, num_heads, head_dim]`, contiguous; `head_dim` a power of two.
        key_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`, contiguous; `block_size` a
            power of two. `value_cache` likewise.
        block_tables: `[num_sequences, max_blocks]` int32.
        sequence_lengths: `[num_sequences]` int32, at least 1 each.

    Returns:
        `[num_sequences, num_heads, head_dim]` in the dtype of `queries`.
    """
    num_sequences, num_heads, head_dim = queries.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    output = torch.empty_like(queries)
    paged_decode_kernel[(num_sequences, num_heads)](
        queries,
        key_cache,
        value_cache,
        block_tables,
        sequence_lengths,
        output,
        head_dim**-0.5,
        block_tables.shape[1],
        HEADS_PER_GROUP=num_heads // num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
    )
    return output
