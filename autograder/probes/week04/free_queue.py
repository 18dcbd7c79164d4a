"""Probes of the free queue: operations are replayed, and its links walked in both directions.

One direction still looks right when a link of the other is wrong.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe

EXERCISE = "week04-free-queue"


def links(queue: Any, limit: int) -> list[list[int]]:
    """Block ids front to back along the one kind of link, then back to front along the other.

    A wrong link can make a ring, so the walk ends after `limit` blocks.
    """
    forward: list[int] = []
    backward: list[int] = []
    block = queue._head.next_free
    while block is not None and block is not queue._tail and len(forward) <= limit:
        forward.append(block.block_id)
        block = block.next_free
    block = queue._tail.previous_free
    while block is not None and block is not queue._head and len(backward) <= limit:
        backward.append(block.block_id)
        block = block.previous_free
    return [forward, backward]


def queue_operations(
    random: np.random.Generator, size: int, count: int, removable: slice
) -> dict[str, Any]:
    """A legal sequence of operations; blocks are removed from the `removable` part of the queue."""
    free = list(range(size))
    taken: list[int] = []
    operations: list[list[Any]] = []
    for _ in range(count):
        choices = ["popleft", "remove", "remove"] * bool(free) + ["append", "prepend"] * bool(taken)
        name = str(random.choice(choices))
        if name == "popleft":
            taken.append(free.pop(0))
            operations.append([name])
            continue
        block_id = int(random.choice(free[removable] if name == "remove" else taken))
        operations.append([name, block_id])
        if name == "remove":
            free.remove(block_id)
            taken.append(block_id)
        else:
            taken.remove(block_id)
            free.insert(len(free) if name == "append" else 0, block_id)
    return {"size": size, "operations": operations}


def operations_anywhere(random: np.random.Generator) -> dict[str, Any]:
    return queue_operations(random, int(random.integers(4, 9)), 25, slice(None))


def operations_at_the_front(random: np.random.Generator) -> dict[str, Any]:
    return queue_operations(random, int(random.integers(4, 9)), 25, slice(1))


def operations_at_the_back(random: np.random.Generator) -> dict[str, Any]:
    return queue_operations(random, int(random.integers(1, 4)), 25, slice(-1, None))


def replay(code: Any, inputs: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Queue, blocks, and what the operation returned, after each operation."""
    blocks = [code.Block(block_id) for block_id in range(inputs["size"])]
    queue = code.FreeBlockQueue(blocks)
    for name, *block_ids in inputs["operations"]:
        returned = getattr(queue, name)(*(blocks[block_id] for block_id in block_ids))
        yield queue, blocks, returned


@probe(
    title="The order of the queue from front to back, after every operation",
    exercise=EXERCISE,
    trials=3,
    inputs=operations_anywhere,
    message="Followed from the front, the queue does not hold the blocks in the order in which "
    "they are to be reused.",
)
def front_to_back(code: Any, inputs: Any) -> list[Any]:
    return [
        [returned and returned.block_id, links(queue, inputs["size"])[0]]
        for queue, _, returned in replay(code, inputs)
    ]


@probe(
    title="The order of the queue from back to front, after every operation",
    exercise=EXERCISE,
    trials=3,
    inputs=operations_anywhere,
    message="Followed from the back, the queue is not the reverse of what it is from the front.",
)
def back_to_front(code: Any, inputs: Any) -> list[Any]:
    return [links(queue, inputs["size"])[1] for queue, _, _ in replay(code, inputs)]


@probe(
    title="The count of free blocks, after every operation",
    exercise=EXERCISE,
    trials=3,
    inputs=operations_at_the_front,
    message="The count has to be the number of blocks in the queue after each operation, whichever "
    "it was.",
)
def count_of_free_blocks(code: Any, inputs: Any) -> list[Any]:
    return [
        [queue.num_free_blocks, len(links(queue, inputs["size"])[0])]
        for queue, _, _ in replay(code, inputs)
    ]


@probe(
    title="The links of blocks that have left the queue",
    exercise=EXERCISE,
    trials=2,
    inputs=operations_at_the_front,
    message="A block that is not in the queue still holds a link into it.",
)
def links_after_leaving(code: Any, inputs: Any) -> list[Any]:
    return [
        [block.block_id for block in blocks if block.previous_free or block.next_free]
        for _, blocks, _ in replay(code, inputs)
    ]


@probe(
    title="The back of the queue: the last block leaves, another follows",
    exercise=EXERCISE,
    trials=3,
    inputs=operations_at_the_back,
    message="After the last block has left, the next one must be linked to what is then the back.",
)
def back_of_the_queue(code: Any, inputs: Any) -> list[Any]:
    return [links(queue, inputs["size"]) for queue, _, _ in replay(code, inputs)]


def long_queue(random: np.random.Generator) -> dict[str, Any]:
    # Far apart, so that no removed block is the neighbour of another.
    return {"size": 300, "removed": random.permutation(np.arange(10, 290, 4))[:8]}


@probe(
    title="The number of blocks that an operation looks at",
    exercise=EXERCISE,
    inputs=long_queue,
    message="An operation on one block may follow the links of that block and its neighbours, and "
    "must not search the queue: it has to cost the same in a pool of any size.",
)
def blocks_looked_at(code: Any, inputs: Any) -> list[int]:
    seen: set[int] = set()

    class Watched(code.Block):  # type: ignore[misc]
        """Notes whose links are read."""

        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            value = object.__getattribute__(self, name)
            if name in ("previous_free", "next_free"):
                seen.add(object.__getattribute__(self, "block_id"))
            return value

    blocks = [Watched(block_id) for block_id in range(inputs["size"])]
    queue = code.FreeBlockQueue(blocks)
    counts = []
    for block_id in inputs["removed"].tolist():
        seen.clear()
        queue.remove(blocks[block_id])
        counts.append(len(seen - {block_id - 1, block_id, block_id + 1}))
    seen.clear()
    front = queue.popleft().block_id
    counts.append(len(seen - {front, front + 1}))
    return [*counts, front]


@probe(
    title="Misuse: removing what is not there, popping from an empty queue",
    exercise=EXERCISE,
    trials=2,
    inputs=operations_at_the_front,
    message="Misuse is a ValueError, and the queue, its count and its links are as before.",
)
def queue_misuse(code: Any, inputs: Any) -> list[Any]:
    size = inputs["size"]
    *_, (queue, blocks, _) = replay(code, inputs)

    def snapshot() -> Any:
        return [links(queue, size), queue.num_free_blocks]

    queue.prepend(stranger := code.Block(size))
    queue.remove(stranger)
    seen = [refusal(lambda: queue.remove(code.Block(size + 1)), snapshot)]
    seen.append(refusal(lambda: queue.remove(stranger), snapshot))
    queue.prepend(stranger)
    queue.popleft()
    seen.append(refusal(lambda: queue.remove(stranger), snapshot))
    for _ in range(len(links(queue, size)[0])):
        queue.popleft()
    seen.append(refusal(queue.popleft, snapshot))
    queue.prepend(blocks[0])
    return [*seen, snapshot()]
