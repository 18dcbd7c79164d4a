"""Our radix tree and scheduling policies beside SGLang's own classes.

Differences on purpose, kept out of the comparison: SGLang decides from the uncapped length of a
match whether it is short, we from what would be computed again, one token less (no prompt here has
33 tokens); and our `dfs_weight` refuses a cache that is no tree, where SGLang falls back to fcfs.
"""

import random
from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from inferlab import models
from inferlab.engine import Request
from inferlab.engine.kv_cache import CacheManager
from inferlab.engine.policy import (
    MAX_WAITING_TO_MATCH,
    Policy,
    dfs_weight,
    fcfs,
    lpm,
    priority,
    shortest_prefill_first,
)
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.radix_node import RadixNode
from inferlab.lab.radix_replay import Observation, count_events, random_operations, replay
from inferlab.lab.upstream import SCRIPTS, Question, ask

pytestmark = [pytest.mark.engines, pytest.mark.slow]
OPERATIONS = random_operations(seed=1, num_operations=4000)
POLICIES: dict[str, Policy] = {
    "fcfs": fcfs,
    "priority": priority,
    "lpm": lpm,
    "dfs-weight": dfs_weight,
    "shortest-prefill-first": shortest_prefill_first,
}
Queue = dict[str, Any]


def random_prompt(rng: random.Random) -> list[int]:
    """A path through a forest whose branches are shorter and longer than the threshold of 32."""
    token_ids: list[int] = []
    while not token_ids or rng.random() < 0.6:
        branch = rng.randrange(3)
        token_ids += [1000 * branch + i for i in range(rng.choice([2, 8, 16, 40]))]
    return token_ids


def random_queue(seed: int, num_waiting: int) -> Queue:
    rng = random.Random(seed)
    salts = ["", "", "", "tenant"]
    return {
        "cached": [[random_prompt(rng), rng.choice(salts)] for _ in range(rng.randrange(12))],
        "waiting": [
            {
                "token_ids": random_prompt(rng),
                "salt": rng.choice(salts),
                "priority": rng.randrange(3),
                "arrival_time": float(rng.randrange(100)),
            }
            for _ in range(num_waiting)
        ],
    }


QUEUES = [random_queue(seed, 2 + seed % 24) for seed in range(150)] + [
    random_queue(seed, num_waiting)
    for seed in (1000, 1001)
    for num_waiting in (MAX_WAITING_TO_MATCH, MAX_WAITING_TO_MATCH + 1)
]


def order(policy: Policy, cached: list[Any], waiting: list[dict[str, Any]]) -> list[int]:
    manager = RadixKVCacheManager(2)
    for token_ids, salt in cached:
        manager.tree.insert(token_ids, token_ids, salt)
    requests = [
        Request(
            str(place),
            fields["token_ids"],
            cache_salt=fields.get("salt", ""),
            priority=fields.get("priority", 0),
            arrival_time=fields["arrival_time"],
        )
        for place, fields in enumerate(waiting)
    ]
    return [int(request.request_id) for request in policy(requests, manager)]


@pytest.fixture(scope="module")
def sglang() -> dict[str, Any]:
    tree, policy = (
        (SCRIPTS / f"sglang_{name}.py").read_text() for name in ("radix_cache", "schedule_policy")
    )
    queues = {"checkpoint": str(models.path("tiny-chat")), "queues": QUEUES}
    trace, orders = ask(
        [
            Question(tree, {"operations": OPERATIONS, "show_tree": False}),
            Question(policy, queues),
        ]
    )
    return {"trace": trace, "orders": orders}


class ForgetsLocksInASplit(RadixCache):
    """Wrong on purpose: the upper part of a locked node is not locked."""

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        upper = RadixCache._split(self, node, length)
        upper.lock_count = 0
        return upper


class EvictsTheOldest(RadixCache):
    """Wrong on purpose: what counts is when a leaf was made, not when it was last used."""

    def _walk(self, tokens: "array[int]", salt: str) -> tuple[list[RadixNode], int]:
        path, length = RadixCache._walk(self, tokens, salt)
        for node in path:
            node.last_used = min((entry[0] for entry in self._queue if entry[2] is node), default=0)
        return path, length


def first_difference(ours: list[Observation], theirs: list[Observation]) -> int | None:
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), None)


def test_the_tree_equals_sglangs_after_every_operation(sglang: Any) -> None:
    """Values of every match, tokens present before every insertion, values evicted, both sizes."""
    ours = replay(RadixCache(), OPERATIONS)
    assert first_difference(ours, sglang["trace"]) is None
    events = count_events(OPERATIONS, sglang["trace"])
    assert len(events) == 7, events
    assert min(events.values()) > 100, events


@pytest.mark.parametrize("wrong", [ForgetsLocksInASplit, EvictsTheOldest])
def test_a_tree_that_is_wrong_on_purpose_is_caught(wrong: type[RadixCache], sglang: Any) -> None:
    assert first_difference(replay(wrong(), OPERATIONS), sglang["trace"]) is not None


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_gives_sglangs_order(name: str, sglang: Any) -> None:
    for queue, theirs in zip(QUEUES, sglang["orders"], strict=True):
        assert order(POLICIES[name], **queue) == theirs[name]


def test_the_policies_had_something_to_decide(sglang: Any) -> None:
    for name in POLICIES:
        orders = [theirs[name] for theirs in sglang["orders"][:150]]
        moved = sum(places != sorted(places) for places in orders)
        assert (moved == 0) if name == "fcfs" else (moved > 100)
    for queue, theirs in zip(QUEUES[150:], sglang["orders"][150:]):
        stays = theirs["lpm"] == sorted(theirs["lpm"])
        assert stays == (len(queue["waiting"]) > MAX_WAITING_TO_MATCH)


def longest_match_only(waiting: Sequence[Request], cache: CacheManager) -> list[Request]:
    """Wrong on purpose: nobody waits for another's prefix."""
    return sorted(waiting, key=lambda r: -cache.get_computed_blocks(r).num_tokens)


def lightest_branch_first(waiting: Sequence[Request], cache: CacheManager) -> list[Request]:
    """Wrong on purpose: the walk goes the other way round."""
    return dfs_weight(list(waiting)[::-1], cache)[::-1]


@pytest.mark.parametrize(
    ("name", "wrong"), [("lpm", longest_match_only), ("dfs-weight", lightest_branch_first)]
)
def test_a_policy_that_is_wrong_on_purpose_is_caught(name: str, wrong: Policy, sglang: Any) -> None:
    differing = [
        order(wrong, **queue) != theirs[name] for queue, theirs in zip(QUEUES, sglang["orders"])
    ]
    assert sum(differing) > 20
