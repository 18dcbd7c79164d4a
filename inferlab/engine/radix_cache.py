"""A radix tree as a cache: what is in use is locked, and the least recently used leaves go first.

Built in week 6. Mirrors sglang/srt/mem_cache/radix_cache.py:RadixCache with a page size of 1.
"""

from array import array
from heapq import heappop, heappush

from inferlab.engine.radix_node import RadixNode
from inferlab.engine.radix_tree import RadixTree


class RadixCache(RadixTree):
    """A tree whose paths from the root are the cached sequences.

    Invariants, beside those of the tree:
      1. `protected_size` counts the tokens of locked nodes, `evictable_size` all others.
      2. A node is locked at least as often as its children together: a lock holds a whole path.
      3. Only leaves that are not locked are evicted, the least recently used first.
    """

    def __init__(self) -> None:
        RadixTree.__init__(self)
        self.evictable_size = self.protected_size = 0  # tokens
        # Leaves by their last use when queued, a lower bound that is put right when they come up:
        # to queue them at every use would let the heap grow for as long as nothing is evicted.
        self._queue: list[tuple[int, int, RadixNode]] = []

    def evict(self, num_tokens: int) -> "array[int]":
        """Drop whole leaves until `num_tokens` tokens are gone; returns the values of all dropped.

        These are more if the last leaf is longer than needed, and fewer if the rest is locked. A
        node whose last child goes is a leaf from then on. What was dropped has no parent any more.
        """
        freed = array("q")
        while len(freed) < num_tokens and self._queue:
            time, _, node = heappop(self._queue)
            node.is_queued = False
            if node.last_used == time and not (node.children or node.lock_count):
                parent, node.parent = node.parent, None
                assert parent is not None
                del parent.children[node.edge]
                freed += node.values
                node = parent
            self._queue_if_evictable(node)
        self.evictable_size -= len(freed)
        return freed

    def lock(self, node: RadixNode) -> None:
        """Keep the path to `node` from being evicted; raises ValueError if `node` already was."""
        if node.parent is None and not node.lock_count:
            raise ValueError("The node was evicted after it was matched; match again, then lock.")
        while node.parent is not None:
            if node.lock_count == 0:
                self.evictable_size -= len(node.token_ids)
                self.protected_size += len(node.token_ids)
            node.lock_count += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        """Take back one `lock` of the path to `node`; raises ValueError if there is none."""
        if not node.lock_count:
            raise ValueError("The node is not locked; unlock it once for each time it was locked.")
        while node.parent is not None:
            node.lock_count -= 1
            if node.lock_count == 0:
                self.evictable_size += len(node.token_ids)
                self.protected_size -= len(node.token_ids)
                self._queue_if_evictable(node)
            node = node.parent

    def _added(self, leaf: RadixNode) -> None:
        self.evictable_size += len(leaf.token_ids)
        self._queue_if_evictable(leaf)

    def _queue_if_evictable(self, node: RadixNode) -> None:
        if not (node.is_queued or node.children or node.lock_count):  # the root is locked for good
            # No two leaves were last used at the same time; id() spares the heap comparing nodes.
            heappush(self._queue, (node.last_used, id(node), node))
            node.is_queued = True
