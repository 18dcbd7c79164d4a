"""Invariants of the free queue and the block pool, on random operation sequences."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferlab.engine import Block, BlockPool, FreeBlockQueue, hash_block_tokens


def ids(blocks: list[Block]) -> list[int]:
    return [block.block_id for block in blocks]


@given(st.lists(st.tuples(st.sampled_from("append prepend remove popleft".split()), st.integers())))
def test_free_queue_behaves_like_a_list(operations: list[tuple[str, int]]) -> None:
    blocks = [Block(i) for i in range(8)]
    queue, model = FreeBlockQueue(blocks), list(blocks)
    outside: list[Block] = []
    for name, choice in operations:
        if name in ("append", "prepend") and outside:
            block = outside.pop(choice % len(outside))
            getattr(queue, name)(block)
            model.insert(len(model) if name == "append" else 0, block)
        elif name == "remove" and model:
            block = model.pop(choice % len(model))
            queue.remove(block)
            outside.append(block)
        elif name == "popleft" and model:
            assert queue.popleft() is model.pop(0)
            outside.append(next(b for b in blocks if b not in model and b not in outside))
        assert queue.blocks() == model
        assert queue.num_free_blocks == len(model)


def test_removal_touches_two_neighbours_only() -> None:
    """O(1) as a count: blocks other than the removed one and its neighbours keep their links."""
    blocks = [Block(i) for i in range(1000)]
    queue = FreeBlockQueue(blocks)
    before = {b.block_id: (b.previous_free, b.next_free) for b in blocks}
    queue.remove(blocks[500])
    changed = [b.block_id for b in blocks if (b.previous_free, b.next_free) != before[b.block_id]]
    assert changed == [499, 500, 501]


def test_removing_twice_and_popping_an_empty_queue_are_errors() -> None:
    block = Block(3)
    queue = FreeBlockQueue([block])
    queue.remove(block)
    with pytest.raises(ValueError, match="Block 3 is not in the free queue"):
        queue.remove(block)
    with pytest.raises(ValueError, match="empty"):
        queue.popleft()
    assert queue.num_free_blocks == 0


def test_null_block_is_reserved() -> None:
    pool = BlockPool(4)
    assert ids(pool.get_new_blocks(3)) == [1, 2, 3]
    assert pool.null_block.block_id == 0
    with pytest.raises(ValueError, match="double free"):
        pool.free_blocks([pool.null_block, pool.null_block])


def test_a_pool_of_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="null block"):
        BlockPool(1)


def test_exhaustion_raises_and_changes_nothing() -> None:
    pool = BlockPool(6)
    held = pool.get_new_blocks(3)
    before = ids(pool.free_queue.blocks())
    with pytest.raises(ValueError, match="3 blocks were asked for and 2 are free"):
        pool.get_new_blocks(3)
    assert ids(pool.free_queue.blocks()) == before
    assert [b.ref_count for b in held] == [1, 1, 1]


def test_double_free_raises_and_changes_nothing() -> None:
    pool = BlockPool(6)
    first, second = pool.get_new_blocks(2)
    with pytest.raises(ValueError, match="double free"):
        pool.free_blocks([first, second, first])
    assert (first.ref_count, second.ref_count, pool.num_free_blocks) == (1, 1, 3)
    pool.free_blocks([first])
    with pytest.raises(ValueError, match="double free"):
        pool.free_blocks([first])


def test_cached_blocks_are_evicted_after_empty_ones_and_in_order_of_their_release() -> None:
    pool = BlockPool(6)
    blocks = pool.get_new_blocks(5)
    for block in blocks[:3]:
        pool.cache_full_block(block, hash_block_tokens(None, [block.block_id]))
    pool.free_blocks(blocks)
    assert ids(pool.free_queue.blocks()) == [4, 5, 1, 2, 3]


def test_a_freed_block_can_be_revived_from_the_middle_of_the_queue() -> None:
    pool = BlockPool(6)
    blocks = pool.get_new_blocks(3)
    for block in blocks:
        pool.cache_full_block(block, hash_block_tokens(None, [block.block_id]))
    pool.free_blocks(blocks)
    found = pool.get_cached_block(hash_block_tokens(None, [blocks[1].block_id]))
    assert found is blocks[1]
    pool.touch([found])
    assert found.ref_count == 1
    assert ids(pool.free_queue.blocks()) == [4, 5, 1, 3]


def test_reuse_does_not_leave_a_stale_hash() -> None:
    pool = BlockPool(3)
    first, second = pool.get_new_blocks(2)
    stale = hash_block_tokens(None, [1, 2])
    pool.cache_full_block(first, stale)
    pool.free_blocks([first, second])
    pool.get_new_blocks(2)
    assert pool.get_cached_block(stale) is None
    assert first.block_hash is None


def test_equal_blocks_are_both_indexed_and_survive_each_other() -> None:
    pool = BlockPool(4)
    first, second, third = pool.get_new_blocks(3)
    same = hash_block_tokens(None, [7])
    pool.cache_full_block(first, same)
    pool.cache_full_block(second, same)
    assert pool.get_cached_block(same) is first
    pool.free_blocks([third, first])
    pool.get_new_blocks(2)  # evicts the first copy
    assert pool.get_cached_block(same) is second


def test_hash_depends_on_parent_tokens_and_salt() -> None:
    parent = hash_block_tokens(None, [1])
    hashes = {
        hash_block_tokens(None, [2, 3]),
        hash_block_tokens(parent, [2, 3]),
        hash_block_tokens(None, [3, 2]),
        hash_block_tokens(None, [2, 3], salt="tenant"),
        hash_block_tokens(None, [-1]),
        hash_block_tokens(None, [-2]),  # Python's hash() would give both the same value
    }
    assert len(hashes) == 6


class PoolMachine(RuleBasedStateMachine):
    """Random use of a pool by requests that allocate, share, cache and free."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.references: list[Block] = []
        self.next_hash = 0

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free_blocks:
            with pytest.raises(ValueError, match="are free"):
                self.pool.get_new_blocks(count)
        else:
            self.references += self.pool.get_new_blocks(count)

    @precondition(lambda self: self.references)
    @rule(choice=st.integers(0))
    def cache(self, choice: int) -> None:
        block = self.references[choice % len(self.references)]
        self.next_hash += 1
        self.pool.cache_full_block(block, hash_block_tokens(None, [self.next_hash]))

    @rule(choice=st.integers(0))
    def share(self, choice: int) -> None:
        cached = [b for b in self.pool.blocks if b.block_hash is not None]
        if cached:
            block = cached[choice % len(cached)]
            self.pool.touch([block])
            self.references.append(block)

    @precondition(lambda self: self.references)
    @rule(choice=st.integers(0))
    def free(self, choice: int) -> None:
        self.pool.free_blocks([self.references.pop(choice % len(self.references))])

    @invariant()
    def free_exactly_when_unreferenced(self) -> None:
        free = self.pool.free_queue.blocks()
        assert len(set(ids(free))) == len(free) == self.pool.num_free_blocks
        for block in self.pool.blocks:
            assert (block in free) == (block.ref_count == 0)
            assert block.ref_count == self.references.count(block) + block.is_null

    @invariant()
    def index_and_blocks_agree(self) -> None:
        for block in self.pool.blocks:
            if block.block_hash is not None:
                assert self.pool.get_cached_block(block.block_hash) is block


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40)
