"""Random operations on a block pool, and what a pool makes of them: to be laid beside vLLM's pool.

An operation names a held block by its place among the held ones and a cached one by its hash, never
by its id. So the sequence can be written down before any pool has run it, and two pools that differ
are led astray by their own answers only.

| operation | does |
|---|---|
| `["get", n]` | hand out n blocks; refused when fewer are free |
| `["give back", places]` | free the held blocks at these places |
| `["fill", place, hash]` | give the held block at this place a hash, unless it has one |
| `["hit", hash]` | look the hash up, and hold the block that is found once more |

Places count from the oldest, modulo the number of held references.
"""

import random
from collections import Counter
from contextlib import suppress
from typing import Any

from inferlab.engine import Block, BlockPool

NUM_HASHES = 12
Operation = list[Any]
Observation = dict[str, Any]


def random_operations(seed: int, num_operations: int) -> list[Operation]:
    """Operations that keep a pool of some 24 blocks crowded, so that hits and evictions occur."""
    rng = random.Random(seed)
    operations: list[Operation] = []
    for name in rng.choices(["get", "give back", "fill", "hit"], [4, 4, 5, 3], k=num_operations):
        if name == "get":
            operations.append([name, rng.randint(1, 4)])
        elif name == "give back":
            operations.append([name, [rng.randrange(1000) for _ in range(rng.randint(1, 4))]])
        elif name == "fill":
            operations.append([name, rng.randrange(1000), rng.randrange(NUM_HASHES)])
        else:
            operations.append([name, rng.randrange(NUM_HASHES)])
    return operations


def replay(pool: BlockPool, operations: list[Operation]) -> list[Observation]:
    """What can be seen of the pool after each operation.

    Free block ids from front to back; for each hash the block that a lookup finds, or None; and the
    reference count of every block except the null block, which vLLM does not count.
    """
    held: list[Block] = []
    trace = []
    for operation in operations:
        _apply(pool, held, *operation)
        found = [pool.get_cached_block(_hash(number)) for number in range(NUM_HASHES)]
        trace.append(
            {
                "free": [block.block_id for block in pool.free_queue.blocks()],
                "hits": [block.block_id if block else None for block in found],
                "references": [block.ref_count for block in pool.blocks[1:]],
            }
        )
    return trace


def _apply(pool: BlockPool, held: list[Block], name: str, *arguments: Any) -> None:
    if name == "get":
        # Too few may be free; the observation shows whether anything has changed.
        with suppress(ValueError):
            held += pool.get_new_blocks(arguments[0])
    elif name == "give back":
        places = arguments[0][: len(held)]
        pool.free_blocks([held.pop(place % len(held)) for place in places])
    elif name == "fill" and held:
        pool.cache_full_block(held[arguments[0] % len(held)], _hash(arguments[1]))
    elif name == "hit":
        found = pool.get_cached_block(_hash(arguments[0]))
        if found is not None:
            pool.touch([found])
            held.append(found)


def _hash(number: int) -> bytes:
    return bytes([number] * 32)


def first_difference(ours: list[Observation], theirs: list[Observation]) -> int | None:
    """Index of the first operation after which the two differ; None if they never do."""
    pairs = zip(ours, theirs, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), None)


def count_events(operations: list[Operation], trace: list[Observation]) -> Counter[str]:
    """What the operations after the first brought about, so that a test can prove it happened.

    `refused` requests for blocks, hits that were `revived` from the free queue or `shared` with a
    holder, and hashes that were `evicted`.
    """
    events: Counter[str] = Counter()
    for (name, argument, *_), before, after in zip(operations[1:], trace, trace[1:]):
        if name == "get":
            events["refused"] += argument > len(before["free"])
            pairs = zip(before["hits"], after["hits"])
            events["evicted"] += sum(old is not None and old != new for old, new in pairs)
        elif name == "hit" and (block_id := before["hits"][argument]) is not None:
            events["revived" if block_id in before["free"] else "shared"] += 1
    return events
