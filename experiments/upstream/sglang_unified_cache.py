"""The operations of `sglang_radix_cache.py` on the tree that SGLang's server really uses.

Runs in the engines' interpreter. The server's default is `UnifiedRadixCache`, whose tree has two
cores: one in Python, for reading, and one in Rust, the default. The answer holds a trace of each.
Values are slots of a real allocator here, written as the operation and token that they came from:
token `i` of the sequence that was inserted with `first` is `first + i`.
"""

from array import array

import torch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

SLOTS = 16_384


def main(data):
    return {core: Replay(core).trace(data["operations"]) for core in ("python", "rust")}


class Replay:
    def __init__(self, core):
        kv = MHATokenToKVPool(
            SLOTS,
            1,
            torch.bfloat16,
            head_num=1,
            head_dim=8,
            layer_num=1,
            device="cpu",
            enable_memory_saver=False,
        )
        self.allocator = TokenToKVPoolAllocator(SLOTS, torch.bfloat16, "cpu", kv, False)
        self.tree = UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=ReqToTokenPool(
                    size=8, max_context_len=64, device="cpu", enable_memory_saver=False
                ),
                token_to_kv_pool_allocator=self.allocator,
                page_size=1,
                tree_components=(ComponentType.FULL,),
                tree_core_backend=core,
            )
        )
        self.core = type(self.tree.tree_core).__name__
        self.held, self.names = [], {}

    def trace(self, operations):
        trace = []
        for operation in operations:
            free = self.allocator.available_size()
            answer = self.apply(*operation)
            trace.append(
                {
                    "answer": answer,
                    "slots_given_back": self.allocator.available_size() - free,
                    "evictable": self.tree.evictable_size(),
                    "protected": self.tree.protected_size(),
                }
            )
        return {"core": self.core, "trace": trace}

    def apply(self, name, *arguments):
        if name == "insert":
            token_ids, salt, first = arguments
            slots = self.allocator.alloc(len(token_ids))
            self.names |= {slot: first + i for i, slot in enumerate(slots.tolist())}
            return self.tree.insert(InsertParams(key=key(token_ids, salt), value=slots)).prefix_len
        if name == "evict":
            return self.tree.evict(EvictParams(num_tokens=arguments[0])).num_tokens_evicted
        if name == "unlock":
            if self.held:
                self.tree.unlock(self.held.pop(arguments[0] % len(self.held)))
            return None
        match = self.tree.match_prefix(MatchPrefixParams(key=key(*arguments)))
        if name == "lock":
            self.held.append(self.tree.lock(match.last_device_node))
        slots = self.tree.path_device_indices(match.last_device_node).tolist()
        return [self.names[slot] for slot in slots]


def key(token_ids, salt):
    return RadixKey(token_ids=array("q", token_ids), cache_salt=salt or None)
