"""Blocks of the KV cache: who holds them, which are free, and in which order they are reused."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Block:
    """The bookkeeping of one physical block; its K and V live in `KVCache` under `block_id`."""

    block_id: int
    ref_count: int = 0
    block_hash: bytes | None = None
    """Set only while the block is full and can be found in the prefix cache."""
    is_null: bool = False
    previous_free: "Block | None" = None
    next_free: "Block | None" = None


class FreeBlockQueue:
    """The free blocks in the order in which they will be reused: a doubly linked list.

    A deque would do for both ends, but a prefix-cache hit takes a block out of the middle, and that
    has to cost O(1) whatever the size of the pool. The links live in the blocks themselves, so no
    operation allocates memory. Two sentinels spare every operation the case of an empty neighbour.
    Source: vllm/v1/core/kv_cache_utils.py:FreeKVCacheBlockQueue.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.num_free_blocks = 0
        self._head = Block(-1)
        self._tail = Block(-1)
        self._head.next_free, self._tail.previous_free = self._tail, self._head
        for block in blocks:
            self.append(block)

    def append(self, block: Block) -> None:
        """Put `block` at the back: reused last."""
        self._insert(block, before=self._tail)

    def prepend(self, block: Block) -> None:
        """Put `block` at the front: reused next."""
        assert self._head.next_free is not None
        self._insert(block, before=self._head.next_free)

    def _insert(self, block: Block, before: Block) -> None:
        previous = before.previous_free
        assert previous is not None
        previous.next_free = before.previous_free = block
        block.previous_free, block.next_free = previous, before
        self.num_free_blocks += 1

    def remove(self, block: Block) -> None:
        """Take `block` out from wherever it is, in O(1).

        Raises:
            ValueError: if the block is not in the queue.
        """
        if block.previous_free is None or block.next_free is None:
            raise ValueError(
                f"Block {block.block_id} is not in the free queue, so it cannot be removed from it."
            )
        block.previous_free.next_free = block.next_free
        block.next_free.previous_free = block.previous_free
        block.previous_free = block.next_free = None
        self.num_free_blocks -= 1

    def popleft(self) -> Block:
        """Take the block at the front.

        Raises:
            ValueError: if no block is free.
        """
        block = self._head.next_free
        if block is None or block is self._tail:
            raise ValueError("The free queue is empty: there is no block left to take.")
        self.remove(block)
        return block

    def blocks(self) -> list[Block]:
        """All free blocks, front first; walks the whole list, so for tests and figures only."""
        found = []
        block = self._head.next_free
        while block is not None and block is not self._tail:
            found.append(block)
            block = block.next_free
        return found


def hash_block_tokens(parent: bytes | None, token_ids: Sequence[int], salt: str = "") -> bytes:
    """Hash of a full block that stands for the whole sequence up to and including it.

    The parent's hash is part of the input, because the K and V of a token depend on every token
    before it: equal tokens after different prefixes must not share a block.
    Source: vllm/v1/core/kv_cache_utils.py:hash_block_tokens.
    """
    digest = hashlib.sha256(parent or b"root")
    digest.update(array("q", token_ids).tobytes())
    digest.update(salt.encode())
    return digest.digest()


def extend_block_hashes(
    hashes: list[bytes], token_ids: Sequence[int], block_size: int, salt: str = ""
) -> None:
    """Append to `hashes` those of the full blocks of `token_ids`, each the parent of the next.

    Args:
        hashes: of the blocks of the sequence that are hashed already; extended in place.
        token_ids: what follows them in the sequence; a tail that fills no block has no hash.
        salt: enters the first block of the sequence; by their parents, all others depend on it.

    Source: vllm/v1/core/kv_cache_utils.py:get_request_block_hasher.
    """
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = hashes[-1] if hashes else None
        block = token_ids[start : start + block_size]
        hashes.append(hash_block_tokens(parent, block, "" if hashes else salt))


class BlockPool:
    """All blocks of the cache, the free ones among them, and an index of the cached ones.

    Invariants:
      1. A block is in the free queue exactly when its reference count is 0.
      2. Block ids are stable: a block table, once written, never changes under a request.
      3. Only full blocks carry a hash.
      4. Cached does not mean unusable: a free block keeps its hash until it is handed out again,
         so it can still be found and revived (`touch`).

    Block 0 is the null block. It pads block tables, and the pool's own reference to it keeps it
    from ever being handed out.
    Source: vllm/v1/core/block_pool.py:BlockPool.
    """

    def __init__(self, num_blocks: int, enable_caching: bool = True) -> None:
        if num_blocks < 2:
            raise ValueError(
                f"A pool of {num_blocks} blocks cannot serve: block 0 is the null block, "
                "so it takes at least 2."
            )
        self.num_blocks = num_blocks
        self.enable_caching = enable_caching
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self.free_queue = FreeBlockQueue(self.blocks)
        self.null_block = self.free_queue.popleft()
        self.null_block.is_null = True
        self.null_block.ref_count = 1
        self._cached: dict[bytes, dict[int, Block]] = {}

    @property
    def num_free_blocks(self) -> int:
        return self.free_queue.num_free_blocks

    @property
    def usage(self) -> float:
        """Share of the usable blocks that is held by requests, 0 to 1."""
        return 1 - self.num_free_blocks / (self.num_blocks - 1)

    def get_new_blocks(self, num_blocks: int) -> list[Block]:
        """Hand out `num_blocks` blocks with reference count 1, in the order of the free queue.

        A block that was still cached loses its hash here: this is where eviction happens.

        Raises:
            ValueError: if fewer blocks are free; nothing has changed then.
        """
        if num_blocks > self.num_free_blocks:
            raise ValueError(
                f"{num_blocks} blocks were asked for and {self.num_free_blocks} are free; "
                "free or preempt a request first."
            )
        blocks = [self.free_queue.popleft() for _ in range(num_blocks)]
        for block in blocks:
            self._evict(block)
            block.ref_count = 1
        return blocks

    def touch(self, blocks: Iterable[Block]) -> None:
        """Take one more reference to each block; a free one leaves the queue, wherever it is."""
        for block in blocks:
            if block.ref_count == 0:
                self.free_queue.remove(block)
            block.ref_count += 1

    def free_blocks(self, blocks: Sequence[Block]) -> None:
        """Give back one reference to each block, first to be evicted first.

        A block that reaches 0 goes to the back of the queue if it is cached, so that the least
        recently used is evicted first, and to the front if it is not: it holds nothing of use.

        Raises:
            ValueError: if a block has no reference left to give back; nothing has changed then.
        """
        releases = Counter(block.block_id for block in blocks)
        for block in blocks:
            if block.ref_count < releases[block.block_id]:
                raise ValueError(
                    f"Block {block.block_id} is freed more often than it is held "
                    f"(reference count {block.ref_count}): a double free."
                )
        released = []
        for block in blocks:
            block.ref_count -= 1
            if block.ref_count == 0:
                released.append(block)
        for block in released:
            if block.block_hash is not None:
                self.free_queue.append(block)
        for block in reversed(released):
            if block.block_hash is None:
                self.free_queue.prepend(block)

    def cache_full_block(self, block: Block, block_hash: bytes) -> None:
        """Make a full block findable under `block_hash`.

        Equal blocks are not merged: a second block with the same hash is indexed beside the first,
        because replacing it would change a block table that is in use (invariant 2).
        """
        if not self.enable_caching or block.is_null or block.block_hash is not None:
            return
        block.block_hash = block_hash
        self._cached.setdefault(block_hash, {})[block.block_id] = block

    def uncache_blocks(self, blocks: Iterable[Block]) -> None:
        """Make blocks unfindable that will not be filled with what they were indexed for."""
        for block in blocks:
            self._evict(block)

    def get_cached_block(self, block_hash: bytes) -> Block | None:
        """The oldest block indexed under `block_hash`, free or held, or None."""
        holders = self._cached.get(block_hash)
        return next(iter(holders.values())) if holders else None

    def _evict(self, block: Block) -> None:
        """Forget what `block` held, so that its reuse cannot revive a stale hash."""
        if block.block_hash is None:
            return
        holders = self._cached[block.block_hash]
        del holders[block.block_id]
        if not holders:
            del self._cached[block.block_hash]
        block.block_hash = None
