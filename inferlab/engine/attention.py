"""Attention over a paged KV cache, with the online softmax that never needs a whole row of scores.

Shapes: queries `[num_tokens, num_heads, head_dim]`; one layer's K and V
`[num_blocks, block_size, num_kv_heads, head_dim]`. With grouped-query attention, query head h reads
KV head `h // (num_heads // num_kv_heads)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SoftmaxState(NamedTuple):
    """Running softmax over the keys seen so far, per query and head.

    Merging two states is associative, so keys may be visited in any grouping: tile by tile here,
    split over workers in flash-decoding, split over GPUs in context parallelism.
    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """

    maximum: np.ndarray  # [..., 1] largest score so far
    total: np.ndarray  # [..., 1] sum of exp(score - maximum)
    output: np.ndarray  # [..., head_dim] sum of exp(score - maximum) * value

    def merge(self, other: "SoftmaxState") -> "SoftmaxState":
        """The state after both sets of keys."""
        maximum = np.maximum(self.maximum, other.maximum)
        mine, theirs = np.exp(self.maximum - maximum), np.exp(other.maximum - maximum)
        return SoftmaxState(
            maximum,
            self.total * mine + other.total * theirs,
            self.output * mine + other.output * theirs,
        )


def paged_decode_attention(
    queries: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    block_tables: np.ndarray,
    sequence_lengths: np.ndarray,
    tile_blocks: int = 8,
) -> np.ndarray:
    """Attention of one new token per sequence over that sequence's blocks.

    K and V are read tile by tile, `tile_blocks` blocks at a time, through the block table; scores
    are never held for more than one tile. Slots past a sequence's length may hold anything.

    Args:
        queries: `[num_sequences, num_heads, head_dim]`.
        key_cache: `[num_blocks, block_size, num_kv_heads, head_dim]`; `value_cache` likewise.
        block_tables: `[num_sequences, max_blocks]` physical ids, padded with any valid id.
        sequence_lengths: `[num_sequences]` tokens to attend to, the new one included, at least 1.

    Returns:
        `[num_sequences, num_heads, head_dim]`.

    Source: Kwon et al., "Efficient memory management for large language model serving with
    PagedAttention", SOSP 2023, section 4.1.
    """
    num_sequences, num_heads, head_dim = queries.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    grouped = queries.reshape(num_sequences, num_kv_heads, -1, head_dim) / np.sqrt(head_dim)
    state = None
    for first in range(0, -(-int(sequence_lengths.max()) // block_size), tile_blocks):
        table = block_tables[:, first : first + tile_blocks]
        keys, values = (
            cache[table].reshape(num_sequences, -1, num_kv_heads, head_dim).swapaxes(1, 2)
            for cache in (key_cache, value_cache)
        )
        positions: np.ndarray = first * block_size + np.arange(keys.shape[2])
        valid = np.less(positions, sequence_lengths[:, None, None, None])
        tile = _attend_tile(grouped, keys, values, valid)
        state = tile if state is None else state.merge(tile)
    assert state is not None
    output: np.ndarray = state.output / state.total
    return output.reshape(num_sequences, num_heads, head_dim)


def _attend_tile(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, valid: np.ndarray
) -> SoftmaxState:
    """Softmax state of `queries` `[..., q, d]` over one tile of K and V `[..., k, d]`.

    `valid` `[..., q or 1, k]` says which keys a query may see. A finite score for the others, and
    zeros for their values, keep a tile with no valid key from producing NaN.
    """
    scores = np.where(valid, queries @ keys.swapaxes(-1, -2), -1e30)
    maximum = scores.max(axis=-1, keepdims=True)
    weights = np.where(valid, np.exp(scores - maximum), 0)
    seen = np.any(valid, axis=-2, keepdims=True).swapaxes(-1, -2)
    values = np.where(seen, values, 0)
    return SoftmaxState(maximum, weights.sum(axis=-1, keepdims=True), weights @ values)


def paged_prefill_attention(
    queries: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    block_table: Sequence[int],
    context_length: int,
) -> np.ndarray:
    """Causal attention of a chunk of one sequence whose first token is at `context_length`.

    The chunk's own K and V are in the cache already. The query at position p sees keys 0 to p.

    Args:
        queries: `[num_new_tokens, num_heads, head_dim]`.
        block_table: physical ids that cover `context_length + num_new_tokens` tokens.

    Returns:
        `[num_new_tokens, num_heads, head_dim]`.
    """
    num_new, num_heads, head_dim = queries.shape
    num_kv_heads = key_cache.shape[2]
    length = context_length + num_new
    num_blocks = -(-length // key_cache.shape[1])
    table = np.asarray(block_table[:num_blocks])
    keys, values = (
        cache[table].reshape(-1, num_kv_heads, head_dim)[:length].swapaxes(0, 1)[:, None]
        for cache in (key_cache, value_cache)
    )  # [num_kv_heads, 1, length, head_dim]
    grouped = queries.reshape(num_new, num_kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    causal: np.ndarray = np.arange(length) <= context_length + np.arange(num_new)[:, None]
    state = _attend_tile(grouped / np.sqrt(head_dim), keys, values, causal)
    output: np.ndarray = state.output / state.total
    return output.transpose(2, 0, 1, 3).reshape(num_new, num_heads, head_dim)
