"""Who SGLang's own policies admit while requests for a cached prefix keep coming.

Runs in the engines' interpreter. One request shares nothing with the others and came first. In each
turn the policy orders the queue, its head is admitted and its tokens are put into the tree, and one
more request for the cached prefix arrives. The answer holds, for each policy, the numbers of the
admitted requests by turn; 0 is the one that came first.
"""

from array import array

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.runtime_context import publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

ALONE = "alone"  # hrrn settles ties by name, and this one sorts behind all numbers


def main(data):
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
    return {policy: admitted(policy, **data["queue"]) for policy in data["policies"]}


def admitted(name, alone, prefix, suffix_tokens, num_waiting, turns):
    tree = RadixCache.create_simulated()
    insert(tree, prefix)
    policy = SchedulePolicy(name, tree, False, False, True)
    computed = 0  # tokens, which is the clock of hrrn

    def popular(number):
        first = 10_000 + 100 * number
        return request(number, [*prefix, *range(first, first + suffix_tokens)], computed)

    queue = [request(0, alone, computed)] + [popular(i) for i in range(1, num_waiting + 1)]
    order = []
    for turn in range(turns):
        policy.calc_priority(queue, None, computed)
        head = queue.pop(0)
        order.append(0 if head.rid == ALONE else int(head.rid))
        found = tree.match_prefix(MatchPrefixParams(key=key(head.origin_input_ids)))
        computed += len(head.origin_input_ids) - found.device_prefix_len
        insert(tree, head.origin_input_ids)
        queue.append(popular(num_waiting + 1 + turn))
    return order


def insert(tree, token_ids):
    tree.insert(InsertParams(key=key(token_ids)))


def key(token_ids):
    return RadixKey(token_ids=array("q", token_ids))


def request(number, token_ids, computed):
    entry = Req(
        rid=str(number) if number else ALONE,
        origin_input_text="",
        origin_input_ids=array("q", token_ids),
        sampling_params=SamplingParams(max_new_tokens=4),
    )
    entry.time_stats.wait_queue_entry_time = float(number)
    entry.arrival_processed_tokens = computed
    return entry
