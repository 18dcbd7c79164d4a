"""The KV cache manager on a radix tree: requests share prefixes to the token, not to the block.

Built in week 6. Mirrors what sglang/srt/mem_cache/radix_cache.py:RadixCache does for a request
(`checkpoint`, `release_kv_cache`), under the contract of vLLM's manager.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from inferlab.engine.kv_cache import PrefixHit
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_node import RadixMatch, RadixNode
from inferlab.engine.request import Request


@dataclass
class _Holding:
    """What a running request has: a slot for each token, and a lock on its path in the tree."""

    slots: list[int]
    node: RadixNode
    num_inserted: int  # leading tokens that are in the tree


class RadixKVCacheManager:
    """A `CacheManager` whose blocks hold one token and whose prefix cache is a tree.

    Invariants:
      - a slot other than slot 0, the null block, is free, or in the tree, or private to a request;
      - the tree holds computed tokens only, and locks those in the block table of a request;
      - a block table changes at its end only: a prefix that two requests computed at once keeps
        its second copy until the request ends (SGLang points the table to the tree's copy at once);
      - `allocate_slots` either succeeds or returns None and gives nothing away.
    """

    block_size = 1

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A cache of {num_blocks} blocks has no room beside its null block.")
        self.num_blocks = num_blocks
        self.capacity = num_blocks - 1
        self.tree = RadixCache()
        self._free = list(range(num_blocks - 1, 0, -1))
        self._holdings: dict[str, _Holding] = {}

    @property
    def num_free_blocks(self) -> int:
        """Slots that can be handed out, by eviction if need be."""
        return len(self._free) + self.tree.evictable_size

    def block_table(self, request_id: str) -> list[int]:
        """Slot of each token of a request, in the order of its tokens."""
        holding = self._holdings.get(request_id)
        return list(holding.slots) if holding else []

    def get_computed_blocks(self, request: Request) -> PrefixHit:
        """The longest cached prefix, less the last token: its logits are still to be computed."""
        match = self.tree.match_prefix(request.token_ids(0, request.num_tokens), request.cache_salt)
        values = match.values[: request.num_tokens - 1]
        return PrefixHit([match._replace(values=values)], len(values))

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[RadixMatch] = (),
        full_sequence_must_fit: bool = False,
    ) -> list[int] | None:
        """Give `request` slots for its next tokens; see `KVCacheManager.allocate_slots`.

        What was computed of its prompt goes into the tree first, for those who are admitted next;
        its output follows when it ends, because token by token it would make a node for each.
        """
        holding = self._holdings.get(request.request_id)
        if holding is None:
            values, node = computed_blocks[0] if computed_blocks else ([], self.tree.root)
            holding = _Holding(list(values), node, num_inserted=len(values))
            self.tree.lock(node)
        elif holding.num_inserted < min(request.num_computed_tokens, request.num_prompt_tokens):
            self._insert_computed(request, holding)
        num_computed = max(request.num_computed_tokens, holding.num_inserted)
        num_missing = max(0, num_computed + num_new_tokens - len(holding.slots))
        num_reserved = request.num_tokens - len(holding.slots) if full_sequence_must_fit else 0
        if max(num_missing, num_reserved) > self.num_free_blocks:
            if request.request_id not in self._holdings:
                self.tree.unlock(holding.node)
            return None
        self._free += self.tree.evict(num_missing - len(self._free))
        new_slots = [self._free.pop() for _ in range(num_missing)]
        holding.slots += new_slots
        self._holdings[request.request_id] = holding
        return new_slots

    def settle(self, request: Request) -> None:
        """Give back the slots of rejected drafts; see `KVCacheManager.settle`."""
        slots = self._holdings[request.request_id].slots
        num_kept = request.num_tokens - 1 + len(request.draft_token_ids)
        self._free += slots[num_kept:]
        del slots[num_kept:]

    def free(self, request: Request) -> None:
        """Leave the computed tokens to the tree, and give back every slot it does not take."""
        holding = self._holdings.pop(request.request_id, None)
        if holding is None:
            return
        kept = self._insert_computed(request, holding)
        self.tree.unlock(holding.node)
        self._free += [mine for mine, theirs in zip(holding.slots, kept) if mine != theirs]
        self._free += holding.slots[len(kept) :]

    def _insert_computed(self, request: Request, holding: _Holding) -> "array[int]":
        """Insert and lock the computed tokens; returns the slots that the tree has for them."""
        token_ids = array("q", request.token_ids(0, request.num_computed_tokens))
        self.tree.insert(token_ids, holding.slots[: len(token_ids)], request.cache_salt)
        values, node = self.tree.match_prefix(token_ids, request.cache_salt)
        self.tree.lock(node)
        self.tree.unlock(holding.node)
        holding.node, holding.num_inserted = node, len(token_ids)
        return values
