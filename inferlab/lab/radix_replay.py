"""Operations on a radix tree, and what a tree makes of them: to be laid beside SGLang's.

`experiments/upstream/sglang_radix_cache.py` says what each operation does.
"""

import random
from array import array
from collections import Counter
from typing import Any

from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_node import RadixNode

Operation = list[Any]
Observation = dict[str, Any]


def random_sequence(rng: random.Random) -> list[int]:
    """A path through a small random forest, so that sequences share prefixes of every length."""
    token_ids: list[int] = []
    while not token_ids or rng.random() < 0.75:
        branch = rng.randrange(3)
        token_ids += [1000 * branch + i for i in range(rng.choice([1, 2, 3, 8]))]
    return token_ids


def random_operations(seed: int, num_operations: int) -> list[Operation]:
    rng = random.Random(seed)
    names = rng.choices(["match", "insert", "lock", "unlock", "evict"], [3, 4, 2, 2, 2], k=10**5)
    operations: list[Operation] = []
    for number, name in enumerate(names[:num_operations]):
        if name == "unlock":
            operations.append([name, rng.randrange(1000)])
        elif name == "evict":
            operations.append([name, rng.choice([1, 2, 5, 20, 60])])
        else:
            key = [random_sequence(rng), rng.choice(["", "", "", "tenant"])]
            operations.append([name, *key] + ([10_000 * number] if name == "insert" else []))
    return operations


def replay(tree: RadixCache, operations: list[Operation]) -> list[Observation]:
    """After each operation: what it answered, and the sizes of the tree."""
    held: list[RadixNode] = []
    trace = []
    for operation in operations:
        try:
            answer = _apply(tree, held, *operation)
        except ValueError as error:  # never for a tree that is right
            answer = str(error)
        sizes = {"evictable": tree.evictable_size, "protected": tree.protected_size}
        trace.append({"answer": answer, **sizes})
    return trace


def _apply(tree: RadixCache, held: list[RadixNode], name: str, *arguments: Any) -> Any:
    """Values of a match, number of tokens present before an insertion, sorted values evicted."""
    if name == "insert":
        token_ids, salt, first = arguments
        return tree.insert(token_ids, range(first, first + len(token_ids)), salt)
    if name == "evict":
        return sorted(tree.evict(*arguments))
    if name == "unlock":
        if held:
            tree.unlock(held.pop(arguments[0] % len(held)))
        return None
    match = tree.match_prefix(array("q", arguments[0]), arguments[1])
    if name == "lock":
        tree.lock(match.node)
        held.append(match.node)
    return list(match.values)


def first_difference(ours: list[Observation], theirs: list[Observation]) -> int | None:
    """Place of the first operation after which two trees differ, or None."""
    names = ("answer", "evictable", "protected")
    pairs = zip(ours, theirs, strict=True)
    return next(
        (place for place, (a, b) in enumerate(pairs) if any(a[n] != b[n] for n in names)), None
    )


def count_events(operations: list[Operation], trace: list[Observation]) -> Counter[str]:
    """What happened, so that a test can prove it: hits, partial insertions, and so on."""
    events: Counter[str] = Counter()
    for (name, *arguments), seen in zip(operations, trace):
        answer = seen["answer"]
        if name == "insert":
            events["extended"] += 0 < answer < len(arguments[0])
            events["was there"] += answer == len(arguments[0])
        elif name == "evict":
            events["evicted"] += bool(answer)
            events["evicted more"] += len(answer) > arguments[0]
            events["evicted less"] += len(answer) < arguments[0]
        elif name in ("match", "lock"):
            events["hit"] += bool(answer)
        events["under lock"] += seen["protected"] > 0
    return events
