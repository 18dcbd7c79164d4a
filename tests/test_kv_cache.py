"""Block tables: how many blocks, which ones, and what a refused allocation leaves behind."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from inferlab.engine import KVCache, KVCacheManager, Request, slot_mapping


def request(name: str, tokens: list[int], **fields: object) -> Request:
    return Request(name, tokens, **fields)  # type: ignore[arg-type]


def prefill(manager: KVCacheManager, item: Request) -> int:
    """Admit a request and mark all its tokens computed; returns the tokens it found cached."""
    hit = manager.get_computed_blocks(item)
    blocks = manager.allocate_slots(item, item.num_tokens - hit.num_tokens, hit.blocks)
    assert blocks is not None
    item.num_computed_tokens = item.num_tokens
    return hit.num_tokens


def ref_counts(manager: KVCacheManager, item: Request) -> list[int]:
    blocks = manager.block_pool.blocks
    return [blocks[i].ref_count for i in manager.block_table(item.request_id)]


@given(st.integers(1, 8), st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_a_request_holds_exactly_the_blocks_its_tokens_need(
    block_size: int, chunks: list[int]
) -> None:
    manager = KVCacheManager(200, block_size, enable_caching=False)
    item = request("a", list(range(sum(chunks))))
    for chunk in chunks:
        assert manager.allocate_slots(item, chunk) is not None
        item.num_computed_tokens += chunk
        held = len(manager.block_table("a"))
        assert held == -(-item.num_computed_tokens // block_size)
        assert 0 <= held * block_size - item.num_computed_tokens < block_size
    manager.free(item)
    assert manager.block_pool.num_free_blocks == 199
    assert manager.block_table("a") == []


def test_a_refused_allocation_changes_nothing() -> None:
    manager = KVCacheManager(4, 4)
    first = request("a", list(range(8)))
    prefill(manager, first)
    manager.free(first)
    before = [b.block_id for b in manager.block_pool.free_queue.blocks()]
    longer = request("b", list(range(8)) + [9] * 9)
    hit = manager.get_computed_blocks(longer)
    assert hit.num_tokens == 8
    assert manager.allocate_slots(longer, 9, hit.blocks) is None
    assert [b.block_id for b in manager.block_pool.free_queue.blocks()] == before
    assert manager.block_table("b") == []
    assert all(b.ref_count == 0 for b in hit.blocks)


def test_hit_blocks_in_the_free_queue_are_not_counted_as_room() -> None:
    """Two free blocks, both of them the hit: nothing is left for a third."""
    manager = KVCacheManager(3, 4)
    first = request("a", list(range(8)))
    prefill(manager, first)
    manager.free(first)
    longer = request("b", list(range(12)))
    hit = manager.get_computed_blocks(longer)
    assert (hit.num_tokens, manager.block_pool.num_free_blocks) == (8, 2)
    assert manager.allocate_slots(longer, 4, hit.blocks) is None


def test_sharing_follows_the_worked_example() -> None:
    """Block size 4 and a prompt of 32 tokens: the twin shares 7 blocks and costs 1."""
    manager = KVCacheManager(64, 4)
    prompt = list(range(32))
    first, twin = request("a", prompt), request("b", prompt)
    assert prefill(manager, first) == 0
    assert ref_counts(manager, first) == [1] * 8
    free = manager.block_pool.num_free_blocks
    assert prefill(manager, twin) == 28  # the last token's block is always computed
    assert ref_counts(manager, twin) == [2] * 7 + [1]
    assert free - manager.block_pool.num_free_blocks == 1
    diverging = request("c", prompt[:16] + [99] * 16)
    assert prefill(manager, diverging) == 16


def test_a_fully_cached_prompt_of_whole_blocks_still_computes_its_last_block() -> None:
    manager = KVCacheManager(16, 4)
    assert prefill(manager, request("a", [1, 2, 3, 4])) == 0
    assert prefill(manager, request("b", [1, 2, 3, 4])) == 0
    assert prefill(manager, request("c", [1, 2, 3, 4, 5])) == 4


def test_tails_are_evicted_before_the_heads_that_others_share() -> None:
    """Pool of exactly 10: null, 8 for the first request and 1 for its twin's own tail."""
    manager = KVCacheManager(10, 4)
    prompt = list(range(32))
    first, twin = request("a", prompt), request("b", prompt)
    prefill(manager, first)
    prefill(manager, twin)
    manager.free(first)
    manager.free(twin)
    stranger = request("c", [50] * 8)
    prefill(manager, stranger)
    manager.free(stranger)
    assert manager.get_computed_blocks(request("d", prompt)).num_tokens == 28


def test_salted_requests_do_not_share() -> None:
    manager = KVCacheManager(32, 4)
    prompt = list(range(9))
    prefill(manager, request("a", prompt, cache_salt="left"))
    assert prefill(manager, request("b", prompt, cache_salt="right")) == 0
    assert prefill(manager, request("c", prompt, cache_salt="left")) == 8


def test_without_caching_nothing_is_ever_found() -> None:
    manager = KVCacheManager(32, 4, enable_caching=False)
    prompt = list(range(9))
    assert [prefill(manager, request(name, prompt)) for name in "ab"] == [0, 0]


def test_full_sequence_must_fit_looks_past_the_first_chunk() -> None:
    manager = KVCacheManager(3, 4)
    long = request("a", list(range(12)))
    assert manager.allocate_slots(long, 4, full_sequence_must_fit=True) is None
    assert manager.allocate_slots(long, 4) is not None


@given(st.integers(1, 7), st.integers(0, 30), st.integers(1, 30), st.randoms())
def test_slot_mapping_is_table_times_block_size_plus_offset(
    block_size: int, start: int, count: int, random: object
) -> None:
    table = list(range(40))
    random.shuffle(table)  # type: ignore[attr-defined]
    table = table + list(range(40, 80))
    positions = np.arange(start, start + count)
    slots = slot_mapping(np.tile(table, (count, 1)), positions, block_size)
    expected = [
        table[p // block_size] * block_size + p % block_size for p in range(start, start + count)
    ]
    assert slots.tolist() == expected


@given(st.integers(1, 20))
def test_what_is_written_through_the_slots_is_read_back(count: int) -> None:
    rng = np.random.default_rng(count)
    cache = KVCache(num_layers=2, num_blocks=12, block_size=4, num_kv_heads=2, head_dim=8)
    table = rng.permutation(np.arange(1, 12)).tolist()
    keys, values = rng.standard_normal((2, count, 2, 8), dtype=np.float32)
    slots = slot_mapping(np.tile(table, (count, 1)), np.arange(3, 3 + count), 4)
    cache.write(1, slots, keys, values)
    gathered = cache.keys[1][table].reshape(-1, 2, 8)[3 : 3 + count]
    assert np.array_equal(gathered, keys)
    assert np.array_equal(cache.values[1][table].reshape(-1, 2, 8)[3 : 3 + count], values)
    assert not cache.keys[0].any()


def test_a_block_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 0"):
        KVCacheManager(8, 0)
