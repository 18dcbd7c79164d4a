"""A radix tree of token sequences: what the KV cache holds, found to the token.

Built in week 6. Mirrors sglang/srt/mem_cache/radix_cache.py:RadixCache with a page size of 1.
"""

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np


@dataclass(eq=False, slots=True)
class RadixNode:
    """A run of tokens that every sequence through it shares, and a value (a slot) for each."""

    edge: Hashable  # key among its parent's children: its first token, below the root (salt, token)
    parent: "RadixNode | None"  # None for the root, and for a node that was evicted
    token_ids: "array[int]"
    values: "array[int]"
    last_used: int
    lock_count: int = 0
    children: "dict[Hashable, RadixNode]" = field(default_factory=dict)
    is_queued: bool = False  # for eviction; a node is queued at most once


class RadixMatch(NamedTuple):
    """The longest prefix of a sequence that the tree holds."""

    values: "array[int]"  # one for each token of the prefix
    node: RadixNode  # where the prefix ends; the root if it is empty


class RadixCache:
    """A tree whose paths from the root are the cached sequences.

    Invariants:
      1. No two children of a node start with the same token (below the root: the same token and
         salt), so every cached sequence is spelt by exactly one path.
      2. `protected_size` counts the tokens of locked nodes, `evictable_size` all others.
      3. A node is locked at least as often as its children together: a lock holds a whole path.
      4. Only leaves that are not locked are evicted, the least recently used first.
      5. The value of a cached token never changes until it is evicted.
    """

    def __init__(self) -> None:
        self.root = RadixNode(None, None, array("q"), array("q"), last_used=0, lock_count=1)
        self.evictable_size = self.protected_size = 0  # tokens
        self._time = 0  # counts operations: a clock's time would make runs differ
        # Leaves by their last use when queued, a lower bound that is put right when they come up:
        # to queue them at every use would let the heap grow for as long as nothing is evicted.
        self._queue: list[tuple[int, int, RadixNode]] = []

    def match_prefix(self, token_ids: Sequence[int], salt: str = "") -> RadixMatch:
        """Find the longest cached prefix of `token_ids`, and mark it as used.

        A match that ends inside a node splits it, so that exactly the matched part can be locked.
        Sequences with different salts never match. An `array("q")` is the fastest key.
        """
        path, _ = self._walk(array("q", token_ids), salt)
        values = array("q")
        for node in path:
            values += node.values
        return RadixMatch(values, path[-1])

    def insert(self, token_ids: Sequence[int], values: Sequence[int], salt: str = "") -> int:
        """Add a sequence with a value for each token; returns how many tokens were there before.

        For those the tree keeps the values it had: the new ones are the caller's to free. Raises
        ValueError if there are more or fewer values than tokens.
        """
        if len(token_ids) != len(values):
            raise ValueError(f"{len(token_ids)} tokens came with {len(values)} values: one each.")
        tokens = array("q", token_ids)
        path, start = self._walk(tokens, salt)
        if start < len(tokens):
            self._time += 1
            edge = tokens[start] if start else (salt, tokens[0])
            new, new_values = tokens[start:], array("q", values[start:])
            leaf = path[-1].children[edge] = RadixNode(edge, path[-1], new, new_values, self._time)
            self.evictable_size += len(new)
            self._queue_if_evictable(leaf)
        return start

    def evict(self, num_tokens: int) -> "array[int]":
        """Drop whole leaves until `num_tokens` tokens are gone; returns the values of all dropped.

        These are more if the last leaf is longer than needed, and fewer if the rest is locked.
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

    def _walk(self, tokens: "array[int]", salt: str) -> tuple[list[RadixNode], int]:
        """Nodes from the root on that spell the longest cached prefix, and its length."""
        self._time += 1
        node, path, start, now = self.root, [self.root], 0, self._time
        while start < len(tokens):
            child = node.children.get(tokens[start] if start else (salt, tokens[0]))
            if child is None:
                break
            child.last_used = now
            length = len(child.token_ids)
            shared = _common_prefix_length(child.token_ids, tokens[start : start + length])
            node = child if shared == length else self._split(child, shared)
            path.append(node)
            start += shared
        return path, start

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cut off and return the first `length` tokens; who has locked `node` now locks both."""
        self._time += 1
        parent, tokens, values = node.parent, node.token_ids, node.values
        assert parent is not None
        upper = RadixNode(node.edge, parent, tokens[:length], values[:length], self._time)
        upper.lock_count = node.lock_count
        parent.children[node.edge] = upper
        node.edge, node.parent = tokens[length], upper
        node.token_ids, node.values = tokens[length:], values[length:]
        upper.children[node.edge] = node
        return upper

    def _queue_if_evictable(self, node: RadixNode) -> None:
        if not (node.is_queued or node.children or node.lock_count):  # the root is locked for good
            # No two leaves were last used at the same time; id() spares the heap comparing nodes.
            heappush(self._queue, (node.last_used, id(node), node))
            node.is_queued = True


def _common_prefix_length(tokens: "array[int]", others: "array[int]") -> int:
    """Leading tokens that are equal; `others` is no longer than `tokens`."""
    tokens = tokens[: len(others)]
    if tokens == others:  # the usual case by far, and cheaper than looking for a difference
        return len(others)
    return int(np.argmax(np.frombuffer(tokens, np.int64) != np.frombuffer(others, np.int64)))
