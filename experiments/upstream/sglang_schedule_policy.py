"""The orders of SGLang's own schedule policies: runs in the engines' interpreter.

Each of the `queues` holds what is `cached`, pairs of token ids and salt, and the `waiting` requests
in order of arrival. The answer holds, for each queue and policy, the places of the waiting requests
in the order in which the policy puts them.
"""

from array import array

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.runtime_context import publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

POLICIES = ("fcfs", "priority", "lpm", "dfs-weight", "shortest-prefill-first")


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
    return [{policy: order(policy, **queue) for policy in POLICIES} for queue in data["queues"]]


def order(policy, cached, waiting):
    tree = RadixCache.create_simulated()
    for token_ids, salt in cached:
        key = RadixKey(token_ids=array("q", token_ids), cache_salt=salt or None)
        tree.insert(InsertParams(key=key))
    queue = [request(str(place), **fields) for place, fields in enumerate(waiting)]
    # Priorities are an option of fcfs; as in vLLM, the lowest number is the most urgent.
    by_priority = policy == "priority"
    name = "fcfs" if by_priority else policy
    SchedulePolicy(name, tree, False, by_priority, True).calc_priority(queue)
    return [int(entry.rid) for entry in queue]


def request(name, token_ids, arrival_time, salt="", priority=0):
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
