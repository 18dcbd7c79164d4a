"""Runs operations on SGLang's own radix tree: runs in the engines' interpreter.

| operation | does |
|---|---|
| `["match", token_ids, salt]` | look the longest prefix up |
| `["insert", token_ids, salt, first]` | add the sequence, with values `first`, `first + 1`, … |
| `["lock", token_ids, salt]` | look up, and lock the node where the match ends |
| `["unlock", place]` | unlock the held node at this place, counted from the oldest |
| `["evict", n]` | drop leaves until n tokens are gone |

After each the answer holds the values of the match, the number of tokens that were present before
the insertion, or the values evicted; and the evictable and the protected number of tokens. With
`show_tree` it holds the whole tree too; `last_used` of a node counts the operations from 0.
"""

import time
from array import array
from bisect import bisect

import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey


class Allocator:
    """Stands in for the pool of KV slots; remembers what the tree gives back."""

    device = "cpu"

    def __init__(self):
        self.freed = []

    def free_segment(self, values, start_pos):
        self.freed += values.tolist()


def main(data):
    allocator = Allocator()
    tree = RadixCache.create_simulated(mock_allocator=allocator)
    held, trace, starts = [], [], []
    for operation in data["operations"]:
        starts.append(time.monotonic())
        answer = apply(tree, allocator, held, *operation)
        seen = {
            "answer": answer,
            "evictable": tree.evictable_size(),
            "protected": tree.protected_size(),
        }
        if data["show_tree"]:
            seen["tree"] = [picture(node, starts) for node in tree.root_node.children.values()]
        trace.append(seen)
    return trace


def apply(tree, allocator, held, name, *arguments):
    if name == "insert":
        token_ids, salt, first = arguments
        values = torch.arange(first, first + len(token_ids))
        return tree.insert(InsertParams(key=key(token_ids, salt), value=values)).prefix_len
    if name == "evict":
        allocator.freed.clear()
        tree.evict(EvictParams(num_tokens=arguments[0]))
        return sorted(allocator.freed)
    if name == "unlock":
        if held:
            tree.dec_lock_ref(held.pop(arguments[0] % len(held)))
        return None
    match = tree.match_prefix(MatchPrefixParams(key=key(*arguments)))
    if name == "lock":
        tree.inc_lock_ref(match.last_device_node)
        held.append(match.last_device_node)
    return tree.path_device_indices(match.last_device_node).tolist()


def key(token_ids, salt):
    return RadixKey(token_ids=array("q", token_ids), cache_salt=salt or None)


def picture(node, starts):
    """A node and all below it, with the operation that used it last instead of the time."""
    return {
        "token_ids": list(node.key.raw_token_ids()),
        "salt": node.key.cache_salt or "",
        "values": node.value.tolist(),
        "locks": node.lock_ref,
        "last_used": bisect(starts, node.last_access_time) - 1,
        "children": [picture(child, starts) for child in node.children.values()],
    }
