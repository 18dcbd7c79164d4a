"""Scheduling policies: functions that put waiting requests in the order of admission.

Built in weeks 6 and 9. Mirrors sglang/srt/managers/schedule_policy.py:SchedulePolicy, and for
priorities vllm/v1/core/sched/request_queue.py:PriorityRequestQueue. Requests that a policy holds
for equal stay in the order in which they wait.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import inf

from inferlab.engine.kv_cache import CacheManager
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.radix_node import RadixNode
from inferlab.engine.request import Request

Waiting = Sequence[Request]
Policy = Callable[[Waiting, CacheManager], list[Request]]

MAX_WAITING_TO_MATCH = 128  # with more, `lpm` leaves the order as it is: matching all costs a step
SHARED_PREFIX_TOKENS = 32  # so long a prefix is worth waiting for, if another is to compute it


def fcfs(waiting: Waiting, cache: CacheManager) -> list[Request]:
    """First come, first served."""
    return list(waiting)


def priority(waiting: Waiting, cache: CacheManager) -> list[Request]:
    """Most urgent first (the lowest number), then the earliest arrival."""
    return sorted(waiting, key=urgency)


def urgency(request: Request) -> tuple[int, float]:
    """What `priority` sorts by: the greatest waits longest, and is preempted first."""
    return request.priority, request.arrival_time


def lpm(waiting: Waiting, cache: CacheManager) -> list[Request]:
    """Longest prefix match first; what had better wait for another's prefix comes last."""
    if len(waiting) > MAX_WAITING_TO_MATCH:
        return list(waiting)
    num_cached, deferred = _match(waiting, cache)
    return sorted(waiting, key=lambda r: inf if r in deferred else -num_cached[r])


def shortest_prefill_first(waiting: Waiting, cache: CacheManager) -> list[Request]:
    """Fewest tokens to compute first; what had better wait for another's prefix comes last."""
    num_cached, deferred = _match(waiting, cache)
    tokens_left = {request: request.num_tokens - num_cached[request] for request in waiting}
    return sorted(waiting, key=lambda r: (r in deferred, tokens_left[r], r.arrival_time))


def _match(waiting: Waiting, cache: CacheManager) -> tuple[dict[Request, int], set[Request]]:
    """Cached tokens of each request, and those that share an uncached prefix with one before them.

    Admitted together, each would compute it; once the first has, the others hit it.
    """
    num_cached = {request: cache.get_computed_blocks(request).num_tokens for request in waiting}
    deferred, queued = set(), RadixCache()
    for request in waiting:
        if num_cached[request] <= SHARED_PREFIX_TOKENS:
            token_ids = request.token_ids(0, request.num_tokens)
            shared = queued.match_prefix(token_ids, request.cache_salt).values
            if len(shared) >= SHARED_PREFIX_TOKENS:
                deferred.add(request)
            else:
                queued.insert(token_ids, token_ids, request.cache_salt)
    return num_cached, deferred


def dfs_weight(waiting: Waiting, cache: CacheManager) -> list[Request]:
    """The order of a walk through the radix tree, into the branch of most requests first.

    The requests of a branch follow one another, and use it before it is evicted. Raises ValueError
    if the cache is no tree.
    """
    if not isinstance(cache, RadixKVCacheManager):
        raise ValueError(f"dfs_weight walks a radix tree, and {type(cache).__name__} has none.")
    ending: defaultdict[RadixNode, list[Request]] = defaultdict(list)
    weights: defaultdict[RadixNode, int] = defaultdict(int)
    for request in waiting:
        token_ids = request.token_ids(0, request.num_tokens)
        ending[cache.tree.match_prefix(token_ids, request.cache_salt).node].append(request)
    for end, requests in ending.items():
        node: RadixNode | None = end
        while node is not None:
            weights[node] += len(requests)
            node = node.parent
    order: list[Request] = []
    stack = [cache.tree.root]
    while stack:  # backwards: a node before its children, the lightest child first
        node = stack.pop()
        order += reversed(ending[node])
        children = [child for child in node.children.values() if child in weights]
        stack += sorted(children, key=weights.__getitem__, reverse=True)
    return order[::-1]


class Aged:
    """A policy under which nobody starves. It counts for one scheduler: make each its own.

    Invariant: a request that `max_overtaken` later ones have overtaken waits for earlier ones only,
    so at most `max_overtaken - 1` and those admitted in one more step ever overtake it.
    """

    def __init__(self, policy: Policy, max_overtaken: int) -> None:
        self.policy = policy
        self.max_overtaken = max_overtaken
        self._overtaken: dict[Request, int] = {}  # in the order of arrival

    def __call__(self, waiting: Waiting, cache: CacheManager) -> list[Request]:
        still_waiting, num_admitted = set(waiting), 0
        for request in reversed(list(self._overtaken)):
            if request in still_waiting:
                self._overtaken[request] += num_admitted
            else:
                num_admitted += 1
                del self._overtaken[request]
        for request in waiting:
            self._overtaken.setdefault(request, 0)
        aged = {r: None for r, count in self._overtaken.items() if count >= self.max_overtaken}
        return [*aged, *(r for r in self.policy(waiting, cache) if r not in aged)]
