"""Probes of `lpm`: the order of a queue, and what is looked up for it."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.request import Request

EXERCISE = "week06-lpm"


Prompt = list[Any]  # runs of a first token and a number of tokens, and a salt


def path(random: np.random.Generator) -> list[list[int]]:
    """A path whose branches are shorter and longer than the threshold."""
    runs: list[list[int]] = []
    while not runs or random.random() < 0.6:
        branch = 1000 * int(random.integers(3))
        runs.append([branch, int(random.choice([2, 8, 16, 40]))])
    return runs


def spelt(runs: list[list[int]]) -> list[int]:
    return [first + i for first, count in runs for i in range(count)]


def holding(cached: list[Prompt]) -> RadixKVCacheManager:
    manager = RadixKVCacheManager(20_000)
    for runs, salt in cached:
        manager.tree.insert(spelt(runs), spelt(runs), salt)
    return manager


def requests_of(waiting: list[Prompt]) -> list[Request]:
    return [
        Request(str(place), spelt(runs), cache_salt=salt)
        for place, (runs, salt) in enumerate(waiting)
    ]


def order_of(code: Any, inputs: Any) -> list[int]:
    waiting = requests_of(inputs["waiting"])
    return [int(one.request_id) for one in code.lpm(waiting, holding(inputs["cached"]))]


def by_match(random: np.random.Generator) -> dict[str, Any]:
    """Matches longer than the threshold only, and of several the same."""
    lengths = random.integers(34, 60, 8).tolist()
    lengths += [lengths[0], 40]
    return {
        "cached": [[[[0, 120]], ""]],
        "waiting": [[[[0, n], [9000 + 50 * i, 12 - i]], ""] for i, n in enumerate(lengths)],
    }


@probe(
    title="Matches of different lengths, and of the same",
    exercise=EXERCISE,
    trials=3,
    inputs=by_match,
    message="The longest match comes first, and requests with equal matches keep their order.",
)
def ordered_by_match(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def forests(random: np.random.Generator) -> dict[str, Any]:
    return {
        "cached": [[path(random), ""] for _ in range(int(random.integers(0, 6)))],
        "waiting": [[path(random), ""] for _ in range(int(random.integers(6, 20)))],
    }


@probe(
    title="Queues in which some are cached, some share with another, and some stand alone",
    exercise=EXERCISE,
    trials=6,
    inputs=forests,
    message="A request is deferred if it has little in the cache and shares much with one before "
    "it that is not deferred itself; the deferred come last.",
)
def ordered_forests(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def at_the_threshold(random: np.random.Generator) -> dict[str, Any]:
    waiting, cached = [], []
    for group, shared in enumerate([31, 32, 33, 34, 40] * 2):
        first = 10_000 * (group + 1)
        if group < 5:
            cached.append([[[first, shared]], ""])
        waiting += [[[[first, shared], [first + 500 + i, 1]], ""] for i in range(2)]
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
def ordered_at_threshold(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def salted(random: np.random.Generator) -> dict[str, Any]:
    salts = random.choice(["", "one", "two"], 9).tolist()
    return {
        "cached": [[[[0, 45]], str(random.choice(["one", "two"]))]],
        "waiting": [[[[0, 50], [9000 + i, 1]], salt] for i, salt in enumerate(salts)],
    }


@probe(
    title="Tenants with salts who ask the same",
    exercise=EXERCISE,
    trials=4,
    inputs=salted,
    message="A request neither hits nor waits for what a request with another salt has or will "
    "compute.",
)
def ordered_by_salt(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


def crowds(random: np.random.Generator) -> dict[str, Any]:
    return {"count": 127 + int(random.integers(4)), "hits": random.integers(33, 50, 2).tolist()}


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
def ordered_crowds(code: Any, inputs: Any) -> list[Any]:
    manager = Counting(20_000)
    manager.tree.insert(range(50), range(50))
    strangers = [[[[5000 + i, 1]], ""] for i in range(inputs["count"] - 2)]
    hits = [[[[0, n], [9000, 1]], ""] for n in inputs["hits"]]
    order = code.lpm(requests_of(strangers + hits), manager)
    return [[int(one.request_id) for one in order], manager.lookups]


def chains(random: np.random.Generator) -> dict[str, Any]:
    cuts = random.permutation([20, 31, 32, 60, 90, 130, 200]).tolist()
    return {"cached": [], "waiting": [[[[0, n], [7000 + n, 1]], ""] for n in cuts]}


@probe(
    title="Each waiting prompt begins with the one before, and nothing is cached",
    exercise=EXERCISE,
    trials=4,
    inputs=chains,
    message="How much a request shares with those before it in the queue decides, not how long it "
    "or another is.",
)
def ordered_chains(code: Any, inputs: Any) -> list[int]:
    return order_of(code, inputs)


@probe(
    title="What is left of the queue and of the cache afterwards",
    exercise=EXERCISE,
    trials=3,
    inputs=forests,
    message="Ordering changes neither the list of waiting requests nor what the cache holds.",
)
def left_untouched(code: Any, inputs: Any) -> list[Any]:
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
