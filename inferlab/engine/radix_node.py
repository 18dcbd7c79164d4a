"""One node of a radix tree: a run of tokens, and how it is cut in two.

Built in week 6. Mirrors sglang/srt/mem_cache/radix_cache.py:TreeNode.
"""

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple


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

    def split(self, length: int, now: int) -> "RadixNode":
        """Cut off the first `length` tokens as a new node between this one and its parent.

        The new node is returned. It was last used `now`, and who has locked this node has locked
        both. This object keeps the rest of the tokens, its children, its locks and its time of use.

        Raises ValueError for the root, and if one of the two nodes would have no token.
        """
        if self.parent is None or not 0 < length < len(self.token_ids):
            raise ValueError(
                f"A node of {len(self.token_ids)} tokens was cut after {length}: both parts need a "
                "token, and the root has none."
            )
        tokens, values = self.token_ids, self.values
        upper = RadixNode(self.edge, self.parent, tokens[:length], values[:length], now)
        upper.lock_count = self.lock_count
        self.parent.children[self.edge] = upper
        self.edge, self.parent = tokens[length], upper
        self.token_ids, self.values = tokens[length:], values[length:]
        upper.children[self.edge] = self
        return upper


class RadixMatch(NamedTuple):
    """The longest prefix of a sequence that the tree holds."""

    values: "array[int]"  # one for each token of the prefix
    node: RadixNode  # where the prefix ends; the root if it is empty
