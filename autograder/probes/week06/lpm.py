"""Probes of `lpm`: the order of a queue, and what is looked up for it."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.request import Request

EXERCISE = "week06-lpm"


def tokens(random: np.random.Generator) -> list[int]:
    """A path whose branches are shorter and longer than the threshold."""
    found: list[int] = []
    while not found or random.random() < 0.6:
        branch = int(random.integers(3))
        found += [1000 * branch + i for i in range(int(random.choice([2, 8, 16, 40])))]
    return found


def holding(cached: list[Any]) -> RadixKVCacheManager:
    manager = RadixKVCacheManager(20_000)
    for token_ids, salt in cached:
        manager.tree.insert(token_ids, token_ids, salt)
    return manager


def requests_of(waiting: list[Any]) -> list[Request]:
    return [
        Request(str(place), token_ids, cache_salt=salt)
        for place, (token_ids, salt) in enumerate(waiting)
    ]


def order_of(code: Any, inputs: Any) -> list[int]:
    waiting = requests_of(inputs["waiting"])
    return [int(one.request_id) for one in code.lpm(waiting, holding(inputs["cached"]))]


def by_match(random: np.random.Generator) -> dict[str, Any]:
    """Matches longer than the threshold only, and of several the same."""
    base = [int(t) for t in random.choice(5000, 120, replace=False)]
    lengths = random.integers(34, 60, 8).tolist()
    return {
        "cached": [[base, ""]],
        "waiting": [
            [base[:n] + [9000 + i] * (12 - i), ""] for i, n in enumerate([*lengths, lengths[0], 40])
        ],
    }


@probe(
    title="Matches of different lengths, and of the same",
    exercise=EXERCISE,
    trials=3,
    inputs=by_match,
    message="The longest match comes first, and requests with equal matches keep their order.",
)
def longest_first(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def forests(random: np.random.Generator) -> dict[str, Any]:
    return {
        "cached": [[tokens(random), ""] for _ in range(int(random.integers(0, 6)))],
        "waiting": [[tokens(random), ""] for _ in range(int(random.integers(6, 20)))],
    }


@probe(
    title="Queues in which some are cached, some share with another, and some stand alone",
    exercise=EXERCISE,
    trials=6,
    inputs=forests,
    message="A request is deferred if it has little in the cache and shares much with one before "
    "it that is not deferred itself; the deferred come last.",
)
def mixed_queues(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def at_the_threshold(random: np.random.Generator) -> dict[str, Any]:
    waiting: list[list[Any]] = []
    cached = []
    for group, shared in enumerate(random.permutation([31, 32, 33, 34, 40]).tolist()):
        first = 10_000 * (group + 1)
        prefix = list(range(first, first + shared))
        if group % 2:
            cached.append([prefix, ""])
        waiting += [[[*prefix, first + 500 + i], ""] for i in range(3)]
    places = random.permutation(len(waiting)).tolist()
    return {"cached": cached, "waiting": [waiting[place] for place in places]}


@probe(
    title="Shared and cached prefixes of just the threshold, one less and one more",
    exercise=EXERCISE,
    trials=5,
    inputs=at_the_threshold,
    message="The two comparisons with the threshold are not the same: one includes it on the "
    "side of those considered, the other on the side of those deferred.",
)
def thresholds(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def salted(random: np.random.Generator) -> dict[str, Any]:
    prefix = [int(t) for t in random.choice(5000, 50, replace=False)]
    salts = random.choice(["", "one", "two"], 9).tolist()
    return {
        "cached": [[prefix[:45], str(random.choice(["one", "two"]))]],
        "waiting": [[[*prefix, 9000 + i], salt] for i, salt in enumerate(salts)],
    }


@probe(
    title="Tenants with salts who ask the same",
    exercise=EXERCISE,
    trials=4,
    inputs=salted,
    message="A request neither hits nor waits for what a request with another salt has or will "
    "compute.",
)
def tenants(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def crowds(random: np.random.Generator) -> dict[str, Any]:
    count = int(random.integers(127, 131))
    return {
        "cached": [[list(range(50)), ""]],
        "waiting": [[[5000 + i], ""] for i in range(count - 2)]
        + [[[*range(40), 1], ""], [[*range(50), 2], ""]],
    }


class Counting(RadixKVCacheManager):
    """A manager that counts how often it is asked."""

    lookups = 0

    def get_computed_blocks(self, request: Request) -> Any:
        self.lookups += 1
        return RadixKVCacheManager.get_computed_blocks(self, request)


@probe(
    title="Queues about as long as the limit, and the lookups that they cost",
    exercise=EXERCISE,
    trials=5,
    inputs=crowds,
    message="Beyond the limit the order stays and nothing is looked up; up to it, each request is "
    "looked up once.",
)
def long_queues(code: Any, inputs: Any) -> list[Any]:
    manager = Counting(20_000)
    for token_ids, salt in inputs["cached"]:
        manager.tree.insert(token_ids, token_ids, salt)
    order = code.lpm(requests_of(inputs["waiting"]), manager)
    return [[int(one.request_id) for one in order], manager.lookups]


def chains(random: np.random.Generator) -> dict[str, Any]:
    base = [int(t) for t in random.choice(5000, 200, replace=False)]
    cuts = [20, 31, 32, 60, 90, 130, 200]
    waiting = [[[*base[:n], 7000 + n], ""] for n in random.permutation(cuts).tolist()]
    return {"cached": [], "waiting": waiting}


@probe(
    title="Each waiting prompt begins with the one before, and nothing is cached",
    exercise=EXERCISE,
    trials=4,
    inputs=chains,
    message="Who is deferred does not stand for others: only what a request that goes first will "
    "compute is worth waiting for.",
)
def nested(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


@probe(
    title="What is left of the queue and of the cache afterwards",
    exercise=EXERCISE,
    trials=3,
    inputs=forests,
    message="Ordering changes neither the list of waiting requests nor what the cache holds.",
)
def untouched(code: Any, inputs: Any) -> list[Any]:
    waiting, manager = requests_of(inputs["waiting"]), holding(inputs["cached"])
    before = [one.request_id for one in waiting]
    size = manager.tree.evictable_size
    order = code.lpm(waiting, manager)
    return [
        order is waiting,
        [one.request_id for one in waiting] == before,
        sorted(int(one.request_id) for one in order),
        [manager.tree.evictable_size - size, manager.tree.protected_size],
    ]
