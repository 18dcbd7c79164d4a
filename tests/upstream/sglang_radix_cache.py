"""SGLang's own radix tree and schedule policies: runs in the engines' interpreter."""

from array import array

import torch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.runtime_context import publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs


def main(data):
    # The policies that match no prefixes read the server's configuration.
    publish(
        ServerArgs(
            model_path=data["checkpoint"],
            device="cpu",
            attention_backend="torch_native",
            sampling_backend="pytorch",
            skip_tokenizer_init=True,
        ),
        role="scheduler",
    )
    return {
        "trace": replay(data["operations"]),
        "orders": [orders(**queue) for queue in data["queues"]],
    }


class Allocator:
    """Stands in for the pool of KV slots; remembers what the tree gives back."""

    device = "cpu"

    def __init__(self):
        self.freed = []

    def free_segment(self, values, start_pos):
        self.freed += values.tolist()


def replay(operations):
    """As tests/radix_operations.py:replay does it with our tree."""
    allocator = Allocator()
    tree = RadixCache.create_simulated(mock_allocator=allocator)
    held, trace = [], []
    for operation in operations:
        answer = apply(tree, allocator, held, *operation)
        sizes = {"evictable": tree.evictable_size(), "protected": tree.protected_size()}
        trace.append({"answer": answer, **sizes})
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


def orders(cached, waiting):
    """For each policy, the places of the waiting requests in the order that it gives them."""
    found = {}
    for policy in ("fcfs", "priority", "lpm", "dfs-weight", "shortest-prefill-first"):
        tree = RadixCache.create_simulated()
        for token_ids, salt in cached:
            tree.insert(InsertParams(key=key(token_ids, salt)))
        queue = [request(str(place), **fields) for place, fields in enumerate(waiting)]
        # Priorities are an option of fcfs; as in vLLM, the lowest number is the most urgent.
        by_priority = policy == "priority"
        name = "fcfs" if by_priority else policy
        SchedulePolicy(name, tree, False, by_priority, True).calc_priority(queue)
        found[policy] = [int(entry.rid) for entry in queue]
    return found


def request(name, token_ids, salt, priority, arrival_time):
    entry = Req(
        rid=name,
        origin_input_text="",
        origin_input_ids=array("q", token_ids),
        sampling_params=SamplingParams(max_new_tokens=4),
        cache_salt=salt or None,
        priority=priority,
    )
    entry.time_stats.wait_queue_entry_time = arrival_time
    return entry
