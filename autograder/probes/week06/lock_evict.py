"""Probes of `RadixCache`: locks and evictions, with both sums and the tree after each."""

from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe
from autograder.probes.week06.match_insert import fingerprint, sequence, shape, spelt

EXERCISE = "week06-lock-evict"


def drawn(random: np.random.Generator, names: list[str], count: int) -> list[list[Any]]:
    """Operations on a few sequences and their beginnings, so that the same nodes are met again."""
    known = [sequence(random) for _ in range(6)]
    found: list[list[Any]] = []
    for number in range(count):
        name = str(random.choice(names))
        if name == "unlock":
            found.append([name, int(random.integers(100))])
        elif name == "evict":
            found.append([name, int(random.choice([1, 2, 4, 10, 40]))])
        else:
            runs = known[int(random.integers(6))]
            salt = str(random.choice(["", "", "", "tenant"]))
            kept = max(1, len(runs) - int(random.integers(3)))
            found.append([name, runs[:kept], salt, 1000 * number])
    return found


def sums(cache: Any) -> list[int]:
    return [cache.evictable_size, cache.protected_size]


def operate(cache: Any, held: list[Any], name: str, *arguments: Any) -> Any:
    """One operation: what it answered."""
    if name == "insert":
        runs, salt, first = arguments
        tokens = spelt(runs)
        return cache.insert(tokens, range(first, first + len(tokens)), salt)
    if name == "evict":
        return list(cache.evict(*arguments))
    if name == "unlock":
        return cache.unlock(held.pop(arguments[0] % len(held))) if held else None
    match = cache.match_prefix(spelt(arguments[0]), arguments[1])
    if name == "lock":
        cache.lock(match.node)
        held.append(match.node)
    return len(match.values)


def replayed(cache: Any, inputs: Any) -> list[Any]:
    held: list[Any] = []
    return [[operate(cache, held, *one), sums(cache)] for one in inputs["operations"]]


def without_locks(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": drawn(random, ["insert", "insert", "match", "evict"], 40)}


@probe(
    title="Which leaves go, in which order, when nothing is locked",
    exercise=EXERCISE,
    trials=4,
    inputs=without_locks,
    message="Whole leaves go, the least recently used first, until enough tokens are gone and no "
    "longer; a parent that has lost its last child is a leaf.",
)
def evicted_in_order(code: Any, inputs: Any) -> list[Any]:
    return replayed(code.RadixCache(), inputs)


def with_locks(random: np.random.Generator) -> dict[str, Any]:
    return {"operations": drawn(random, ["insert", "insert", "lock", "unlock", "match"], 40)}


@probe(
    title="Both sums under locks that overlap",
    exercise=EXERCISE,
    trials=4,
    inputs=with_locks,
    message="A node's tokens change sides when it is locked for the first time and unlocked for "
    "the last, and at no other time.",
)
def sums_with_locks(code: Any, inputs: Any) -> list[Any]:
    return replayed(code.RadixCache(), inputs)


def everything(random: np.random.Generator) -> dict[str, Any]:
    names = ["insert", "insert", "insert", "match", "lock", "unlock", "evict", "evict"]
    return {"operations": drawn(random, names, 50)}


@probe(
    title="Locks and evictions together, with the tree after each",
    exercise=EXERCISE,
    trials=4,
    inputs=everything,
    message="What is locked stays, what was unlocked can go, and the tree holds exactly what was "
    "not dropped.",
)
def locks_and_evictions(code: Any, inputs: Any) -> list[Any]:
    cache = code.RadixCache()
    held: list[Any] = []
    seen: list[Any] = []
    for operation in inputs["operations"]:
        answer = operate(cache, held, *operation)
        seen.append([answer, sums(cache), fingerprint(shape(cache.root))])
    return seen


def used_again(random: np.random.Generator) -> dict[str, Any]:
    count = int(random.integers(6, 10))
    lengths = random.integers(1, 6, count).tolist()
    uses = [int(i) for i in random.integers(0, count, 12)]
    return {"lengths": lengths, "uses": uses, "steps": random.integers(1, 5, 12).tolist()}


@probe(
    title="Leaves that are used again after they were queued",
    exercise=EXERCISE,
    trials=4,
    inputs=used_again,
    message="A leaf that was used since it was queued waits for its turn by the later use, and is "
    "not lost from the queue.",
)
def queued_then_used(code: Any, inputs: Any) -> list[Any]:
    cache = code.RadixCache()
    sequences = [
        [100 * number + i for i in range(length)] for number, length in enumerate(inputs["lengths"])
    ]
    for tokens in sequences:
        cache.insert(tokens, tokens)
    seen: list[Any] = []
    for use, step in zip(inputs["uses"], inputs["steps"]):
        cache.match_prefix(sequences[use])
        if step > 2:
            seen.append(list(cache.evict(step)))
    return [*seen, list(cache.evict(10**6)), sums(cache)]


def locked_leaves(random: np.random.Generator) -> dict[str, Any]:
    return {
        "prefix": [7000 + i for i in range(int(random.integers(2, 6)))],
        "tails": [
            [10 * n + i for i in range(int(k))] for n, k in enumerate(random.integers(1, 6, 5))
        ],
        "held": random.integers(0, 4, 5).tolist(),
        "asked": int(random.integers(1, 30)),
    }


@probe(
    title="A path that stays locked while everything else goes",
    exercise=EXERCISE,
    trials=3,
    inputs=locked_leaves,
    message="A node that was passed over because it was locked, or had a child, has to be found "
    "again once it can go.",
)
def locked_then_free(code: Any, inputs: Any) -> list[Any]:
    cache = code.RadixCache()
    sequences = [inputs["prefix"] + tail for tail in inputs["tails"]]
    for tokens in sequences:
        cache.insert(tokens, tokens)
    held = [cache.match_prefix(sequences[place]).node for place in inputs["held"]]
    for node in held:
        cache.lock(node)
    seen: list[Any] = [sorted(cache.evict(10**6)), sums(cache), list(cache.evict(1))]
    for node in held:
        cache.unlock(node)
        seen += [list(cache.evict(inputs["asked"])), sums(cache)]
    return [*seen, list(cache.evict(10**6)), sums(cache), shape(cache.root)]


def misuses(random: np.random.Generator) -> dict[str, Any]:
    return {"tokens": random.choice(900, 6, replace=False).tolist()}


@probe(
    title="Locks of evicted nodes, unlocks without a lock, the root, and evictions of nothing",
    exercise=EXERCISE,
    trials=2,
    inputs=misuses,
    message="Misuse raises ValueError and changes nothing; the root can be locked and unlocked "
    "any number of times, and an eviction of no tokens drops nothing.",
)
def misused_cache(code: Any, inputs: Any) -> list[Any]:
    cache, tokens = code.RadixCache(), inputs["tokens"]
    cache.lock(cache.root)
    for _ in range(3):
        cache.unlock(cache.root)
    seen: list[Any] = [sums(cache), cache.root.lock_count]
    cache.insert(tokens, tokens)
    node = cache.match_prefix(tokens[:4]).node

    def state() -> list[Any]:
        return [*sums(cache), node.lock_count, shape(cache.root)]

    seen.append(refusal(lambda: cache.unlock(node), state))
    cache.lock(node)
    cache.unlock(node)
    seen.append(refusal(lambda: cache.unlock(node), state))
    seen += [list(cache.evict(0)), list(cache.evict(-3)), state()]
    seen += [sorted(cache.evict(6)), node.parent is None]
    return [*seen, refusal(lambda: cache.lock(node), state)]
