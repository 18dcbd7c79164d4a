"""Attention over a paged KV cache, with the online softmax that never needs a whole row of scores.

Shapes: queries `[num_tokens, num_heads, head_dim]`; one layer's K and V
`[num_blocks, block_size, num_kv_heads, head_dim]`. With grouped-query attention, query head h reads
KV head `h // (num_heads // num_kv_heads)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inferlab.engine.fp8 import Pages


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
    key_cache: Pages,
    value_cache: Pages,
    block_tables: np.ndarray,
    sequence_lengths: np.ndarray,
    tile_blocks: int = 24,
) -> np.ndarray:
    """Attention of one new token per sequence over that sequence's blocks.

    K and V are read tile by tile, `tile_blocks` blocks of one sequence at a time, through its block
    table; nothing larger is ever copied out of the cache, and short sequences are not padded to
    the longest. Slots past a sequence's length may hold anything. The default keeps a tile in
    the core's own cache until the products have read it (`make bench` compares sizes).

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
    num_sequences, _, head_dim = queries.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    scale: float = head_dim**-0.5
    grouped = queries.reshape(num_sequences, num_kv_heads, -1, head_dim) * scale
    output = np.empty_like(grouped)
    for row, length in enumerate(sequence_lengths.tolist()):
        num_blocks = -(-length // block_size)
        state = None
        for first in range(0, num_blocks, tile_blocks):
            table = block_tables[row, first : min(first + tile_blocks, num_blocks)]
            num_tokens = length - first * block_size
            keys, values = (_gather(cache, table, num_tokens) for cache in (key_cache, value_cache))
            tile = _attend_tile(grouped[row], keys, values)
            state = tile if state is None else state.merge(tile)
        assert state is not None
        output[row] = state.output / state.total
    return output.reshape(queries.shape)


def _gather(cache: Pages, table: np.ndarray, num_tokens: int) -> np.ndarray:
    """The first `num_tokens` tokens of the blocks in `table`: `[num_kv_heads, tokens, head_dim]`.

    What lies behind the last token is cut off here, so no score is ever computed from it.
    """
    _, _, num_kv_heads, head_dim = cache.shape
    tokens: np.ndarray = cache[table].reshape(-1, num_kv_heads, head_dim)[:num_tokens]
    return tokens.swapaxes(0, 1)


def _attend_tile(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, visible: np.ndarray | None = None
) -> SoftmaxState:
    """Softmax state of `queries` `[..., q, d]` over one tile of K and V `[..., k, d]`.

    `visible` `[q, k]` says which keys a query may see, at least one each; without it, all. It hides
    what lies in the future, not what is no token: a value of NaN stays NaN under a weight of 0.
    """
    scores: np.ndarray = queries @ keys.swapaxes(-1, -2)
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    maximum = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - maximum)
    return SoftmaxState(maximum, weights.sum(axis=-1, keepdims=True), weights @ values)


def paged_prefill_attention(
    queries: np.ndarray,
    key_cache: Pages,
    value_cache: Pages,
    block_table: Sequence[int],
    context_length: int,
    tile_queries: int = 128,
) -> np.ndarray:
    """Causal attention of a chunk of one sequence whose first token is at `context_length`.

    The chunk's own K and V are in the cache already. The query at position p sees keys 0 to p, so a
    tile of queries reads no key behind its last one: half the work of a long prompt, and scores
    for `tile_queries` queries at a time.

    Args:
        queries: `[num_new_tokens, num_heads, head_dim]`.
        block_table: physical ids that cover `context_length + num_new_tokens` tokens.

    Returns:
        `[num_new_tokens, num_heads, head_dim]`.
    """
    num_new, _, head_dim = queries.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    length = context_length + num_new
    table = np.asarray(block_table[: -(-length // block_size)])
    keys, values = (
        _gather(cache, table, length)[:, None] for cache in (key_cache, value_cache)
    )  # [num_kv_heads, 1, length, head_dim]
    grouped = queries.reshape(num_new, num_kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    scale: float = head_dim**-0.5
    grouped = grouped * scale  # [num_kv_heads, heads_per_group, num_new, head_dim]
    output = np.empty_like(grouped)
    for first in range(0, num_new, tile_queries):
        tile = slice(first, min(first + tile_queries, num_new))
        seen = context_length + tile.stop
        positions = context_length + np.arange(tile.start, tile.stop)
        causal = np.arange(seen) <= positions[:, None]
        state = _attend_tile(grouped[:, :, tile], keys[:, :, :seen], values[:, :, :seen], causal)
        output[:, :, tile] = state.output / state.total
    return output.transpose(2, 0, 1, 3).reshape(queries.shape)
