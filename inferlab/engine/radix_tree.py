"""A radix tree of token sequences: what was inserted, found to the token.

Built in week 6. Mirrors sglang/srt/mem_cache/radix_cache.py:RadixCache with a page size of 1.
`radix_cache.py` adds what makes a cache of it: locks, sizes and eviction.
"""

from array import array
from collections.abc import Sequence

import numpy as np

from inferlab.engine.radix_node import RadixMatch, RadixNode


class RadixTree:
    """A tree whose paths from the root are the sequences that were inserted, and their prefixes.

    Invariants:
      1. No two children of a node start with the same token (below the root: the same token and
         salt), so every sequence is spelt by exactly one path.
      2. The value of a token never changes while the tree holds it.
    """

    def __init__(self) -> None:
        self.root = RadixNode(None, None, array("q"), array("q"), last_used=0, lock_count=1)
        self._time = 0  # counts operations: a clock's time would make runs differ

    def match_prefix(self, token_ids: Sequence[int], salt: str = "") -> RadixMatch:
        """Find the longest prefix of `token_ids` that the tree holds, and mark it as used.

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
            self._added(leaf)
        return start

    def _walk(self, tokens: "array[int]", salt: str) -> tuple[list[RadixNode], int]:
        """Nodes from the root on that spell the longest prefix, and its length; all become used."""
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
        """`RadixNode.split`, as an operation of its own on the tree's clock."""
        self._time += 1
        return node.split(length, self._time)

    def _added(self, leaf: RadixNode) -> None:
        """Called with each new leaf; a cache keeps its books here."""


def _common_prefix_length(tokens: "array[int]", others: "array[int]") -> int:
    """Leading tokens that are equal; `others` is no longer than `tokens`."""
    tokens = tokens[: len(others)]
    if tokens == others:  # the usual case by far, and cheaper than looking for a difference
        return len(others)
    return int(np.argmax(np.frombuffer(tokens, np.int64) != np.frombuffer(others, np.int64)))
