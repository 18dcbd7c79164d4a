"""Paged attention against dense attention, with everything that must not matter made wild."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from inferlab.engine import paged_decode_attention, paged_prefill_attention


def dense_attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int
) -> np.ndarray:
    """Causal attention in float64, one softmax per query; row i is at position start + i."""
    num_new, num_heads, head_dim = queries.shape
    group = num_heads // keys.shape[1]
    output = np.empty((num_new, num_heads, head_dim))
    for i in range(num_new):
        for head in range(num_heads):
            seen = slice(0, start + i + 1)
            k = keys[seen, head // group].astype(np.float64)
            scores = k @ queries[i, head] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            output[i, head] = weights / weights.sum() @ values[seen, head // group]
    return output


class PagedSequences:
    """Random sequences scattered over a cache whose unused slots are poisoned."""

    def __init__(self, lengths: list[int], block_size: int, kv_heads: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        counts = [-(-length // block_size) for length in lengths]
        num_blocks = sum(counts) + 3
        shape = (num_blocks, block_size, kv_heads, 16)
        self.key_cache = np.full(shape, 1e6, dtype=np.float32)
        self.value_cache = np.full(shape, np.nan, dtype=np.float32)
        ids = iter(rng.permutation(np.arange(1, num_blocks)))
        self.tables = np.zeros((len(lengths), max(counts)), dtype=int)
        self.keys, self.values = [], []
        for row, (length, count) in enumerate(zip(lengths, counts)):
            self.tables[row, :count] = [next(ids) for _ in range(count)]
            keys, values = rng.standard_normal((2, length, kv_heads, 16), dtype=np.float32)
            for position in range(length):
                block = self.tables[row, position // block_size]
                self.key_cache[block, position % block_size] = keys[position]
                self.value_cache[block, position % block_size] = values[position]
            self.keys.append(keys)
            self.values.append(values)


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
    st.integers(1, 20),
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_paged_decode_equals_dense_attention(
    lengths: list[int], block_size: int, heads: tuple[int, int], tile_blocks: int, seed: int
) -> None:
    num_heads, kv_heads = heads
    pages = PagedSequences(lengths, block_size, kv_heads, seed)
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((len(lengths), num_heads, 16), dtype=np.float32)
    output = paged_decode_attention(
        queries, pages.key_cache, pages.value_cache, pages.tables, np.array(lengths), tile_blocks
    )
    for row, length in enumerate(lengths):
        expected = dense_attention(
            queries[row : row + 1], pages.keys[row], pages.values[row], length - 1
        )
        np.testing.assert_allclose(output[row], expected[0], atol=2e-5)


@settings(max_examples=40)
@given(
    st.integers(0, 40),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([4, 2, 1]),
    st.integers(0, 99),
)
def test_paged_prefill_of_a_chunk_equals_dense_attention(
    start: int, num_new: int, block_size: int, kv_heads: int, seed: int
) -> None:
    pages = PagedSequences([start + num_new], block_size, kv_heads, seed)
    queries = np.random.default_rng(seed).standard_normal((num_new, 4, 16), dtype=np.float32)
    output = paged_prefill_attention(
        queries, pages.key_cache, pages.value_cache, pages.tables[0].tolist(), start
    )
    expected = dense_attention(queries, pages.keys[0], pages.values[0], start)
    np.testing.assert_allclose(output, expected, atol=2e-5)


def test_scores_of_a_thousand_do_not_overflow() -> None:
    pages = PagedSequences([33], 8, 1, 0)
    queries = np.full((1, 1, 16), 1e3, dtype=np.float32)
    output = paged_decode_attention(
        queries, pages.key_cache, pages.value_cache, pages.tables, np.array([33]), 2
    )
    expected = dense_attention(queries, pages.keys[0], pages.values[0], 32)
    np.testing.assert_allclose(output, expected, rtol=1e-4)


def test_two_physical_layouts_give_identical_bits() -> None:
    first = PagedSequences([50], 8, 2, seed=5)
    order = np.random.default_rng(1).permutation(len(first.key_cache))
    queries = np.random.default_rng(2).standard_normal((1, 4, 16), dtype=np.float32)
    moved = np.argsort(order)[first.tables]
    args = first.key_cache, first.value_cache
    one = paged_decode_attention(queries, *args, first.tables, np.array([50]))
    two = paged_decode_attention(queries, *(a[order] for a in args), moved, np.array([50]))
    assert np.array_equal(one, two)
