"""Probes of week 4: what the functions decide on inputs that nobody has seen.

Most of them replay a sequence of operations and note the state of the free queue, walked along the
links in both directions, because one direction still looks right when a link of the other is wrong.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from autograder.observation import refusal, refuses
from autograder.probe import probe
from inferlab.engine.block_pool import BlockPool, hash_block_tokens
from inferlab.engine.request import Request
from inferlab.kernels import DEVICE

FRAGMENTATION = "week04-fragmentation"
FREE_QUEUE = "week04-free-queue"
BLOCK_POOL = "week04-block-pool"
ALLOCATE_SLOTS = "week04-allocate-slots"
PAGED_ATTENTION = "week04-paged-attention"
PAGED_KERNEL = "week04-paged-kernel"


# The fragmentation meter


def outcome(admission: Any) -> list[int]:
    return [
        admission.admitted,
        admission.rejected,
        admission.used_slots,
        admission.wasted_slots,
    ]


def crowded_reservations(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    return {
        "slots": reservation * int(random.integers(5, 20)) + int(random.integers(reservation)),
        "reservation": reservation,
        "lengths": random.integers(1, reservation + 1, 30),
    }


def ample_reservations(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    return {
        "slots": reservation * int(random.integers(31, 60)),
        "reservation": reservation,
        "lengths": random.integers(1, reservation + 1, 30),
    }


def observe_reservations(code: Any, inputs: Any) -> list[int]:
    return outcome(
        code.admit_contiguous(inputs["slots"], inputs["reservation"], inputs["lengths"].tolist())
    )


@probe(
    title="Reservations of requests of different lengths, more of them than fit",
    exercise=FRAGMENTATION,
    trials=3,
    inputs=crowded_reservations,
    message="When the memory is full, the requests admitted are the first ones, and only their "
    "tokens and their empty slots are counted.",
)
def contiguous_when_full(code: Any, inputs: Any) -> list[int]:
    return observe_reservations(code, inputs)


@probe(
    title="Reservations in a memory with room to spare",
    exercise=FRAGMENTATION,
    trials=3,
    inputs=ample_reservations,
    message="A memory with room for more admits exactly the requests that came.",
)
def contiguous_with_room(code: Any, inputs: Any) -> list[int]:
    return observe_reservations(code, inputs)


def reservations_too_small(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    offers = random.integers(1, reservation, (4, 12))
    for offer, (place, excess) in zip(offers, ((0, 1), (5, 7), (11, 1), (3, 0))):
        offer[place] = reservation + excess
    return {"slots": 10 * reservation, "reservation": reservation, "offers": offers}


@probe(
    title="Requests longer than the reservation, and exactly as long",
    exercise=FRAGMENTATION,
    trials=2,
    inputs=reservations_too_small,
    message="A request that is longer than its reservation is a ValueError wherever it stands in "
    "the list, and one that fills it exactly is not.",
)
def contiguous_too_long(code: Any, inputs: Any) -> list[bool]:
    def refused(lengths: list[int]) -> bool:
        return refuses(
            lambda: code.admit_contiguous(inputs["slots"], inputs["reservation"], lengths)
        )

    return [refused(lengths) for lengths in inputs["offers"].tolist()]


def small_memory(random: np.random.Generator) -> dict[str, Any]:
    return {"slots": int(random.integers(16, 64))}


@probe(
    title="No request at all, and a memory too small for any",
    exercise=FRAGMENTATION,
    inputs=small_memory,
    message="Nothing offered and nothing admitted are ordinary cases: all four counts are defined.",
)
def nothing_admitted(code: Any, inputs: Any) -> list[list[int]]:
    slots = inputs["slots"]
    return [
        outcome(code.admit_contiguous(slots, 8, [])),
        outcome(code.admit_contiguous(slots, slots + 1, [3, slots])),
        outcome(code.admit_paged(slots, 8, [])),
        outcome(code.admit_paged(slots, slots + 1, [3, slots])),
    ]


def crowded_blocks(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([3, 8, 16]))
    return {
        "slots": block_size * int(random.integers(40, 60)),
        "block_size": block_size,
        "lengths": random.integers(1, 6 * block_size, 40),
    }


def blocks_with_remainder(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([5, 8, 16]))
    lengths = random.integers(1, 3 * block_size, 10)
    blocks = int(np.sum(-(-lengths // block_size)))
    # One block short, and the rest of a block besides: the last request does not get in whole.
    lengths[-1] = block_size
    slots = (blocks - 1) * block_size + block_size - 1
    return {"slots": slots, "block_size": block_size, "lengths": lengths}


def every_tail(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([4, 7, 16]))
    lengths = random.permutation(np.arange(1, 2 * block_size + 2))
    return {"slots": 1000 * block_size, "block_size": block_size, "lengths": lengths}


def observe_blocks(code: Any, inputs: Any) -> list[int]:
    return outcome(
        code.admit_paged(inputs["slots"], inputs["block_size"], inputs["lengths"].tolist())
    )


@probe(
    title="Paged requests of different lengths, more of them than fit",
    exercise=FRAGMENTATION,
    trials=4,
    inputs=crowded_blocks,
    message="Each admitted request takes its blocks away from those that come later, and one that "
    "does not fit takes nothing.",
)
def paged_when_full(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)


@probe(
    title="A memory that is no whole number of blocks",
    exercise=FRAGMENTATION,
    trials=4,
    inputs=blocks_with_remainder,
    message="What is left over after the last whole block holds nobody.",
)
def paged_remainder(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)


@probe(
    title="Paged requests with every possible tail",
    exercise=FRAGMENTATION,
    trials=3,
    inputs=every_tail,
    message="Used slots hold a token and wasted slots do not; together they make whole blocks.",
)
def paged_tails(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)


# The free queue


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
    exercise=FREE_QUEUE,
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
    exercise=FREE_QUEUE,
    trials=3,
    inputs=operations_anywhere,
    message="Followed from the back, the queue is not the reverse of what it is from the front.",
)
def back_to_front(code: Any, inputs: Any) -> list[Any]:
    return [links(queue, inputs["size"])[1] for queue, _, _ in replay(code, inputs)]


@probe(
    title="The count of free blocks, after every operation",
    exercise=FREE_QUEUE,
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
    exercise=FREE_QUEUE,
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
    exercise=FREE_QUEUE,
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
    exercise=FREE_QUEUE,
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
    exercise=FREE_QUEUE,
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


# The block pool


def block_ids(blocks: Any) -> list[int]:
    return [block.block_id for block in blocks]


def hash_of(number: int) -> bytes:
    return hash_block_tokens(None, [number])


def pool_state(pool: Any) -> dict[str, Any]:
    """Everything that can be seen of a pool without changing it."""
    return {
        "free": links(pool.free_queue, pool.num_blocks),
        "count": pool.num_free_blocks,
        "references": [block.ref_count for block in pool.blocks],
        "hashes": [
            [block.block_id, block.block_hash.hex()[:6]]
            for block in pool.blocks
            if block.block_hash
        ],
    }


def pool_operations(
    random: np.random.Generator, names: list[str], count: int, num_hashes: int = 1
) -> dict[str, Any]:
    """A legal sequence of operations `names` on a pool, tried out on the reference.

    `free` gives back lists in which a shared block may stand twice, one right after the other, as
    the exercise does not say which of two places counts for the order. `cache` gives a held block
    one of `num_hashes` hashes, so that two blocks may have the same.
    """
    num_blocks = int(random.integers(6, 10))
    pool = BlockPool(num_blocks)
    operations: list[list[Any]] = []
    while len(operations) < count:
        held = [block.block_id for block in pool.blocks[1:] if block.ref_count]
        cached = [block.block_id for block in pool.blocks if block.block_hash]
        name = str(random.choice(names))
        if name == "new":
            argument: Any = int(random.integers(0, pool.num_free_blocks + 1))
        elif name == "cache" and held:
            argument = [int(random.choice(held)), int(random.integers(num_hashes))]
        elif name == "touch" and (cached or held):
            choice = random.permutation(np.unique(cached + held))
            argument = choice[: random.integers(1, 4)].tolist()
        elif name == "free" and held:
            counts = {i: random.integers(pool.blocks[i].ref_count + 1) for i in held}
            argument = [i for i in random.permutation(held).tolist() for _ in range(counts[i])]
        else:
            continue
        operations.append([name, argument])
        operate(pool, *operations[-1])
    return {"num_blocks": num_blocks, "operations": operations}


def operate(pool: Any, name: str, argument: Any) -> Any:
    """One operation of `pool_operations`; returns the ids that `new` handed out."""
    if name == "new":
        return block_ids(pool.get_new_blocks(argument))
    if name == "cache":
        return pool.cache_full_block(pool.blocks[argument[0]], hash_of(argument[1]))
    blocks = [pool.blocks[block_id] for block_id in argument]
    return pool.touch(blocks) if name == "touch" else pool.free_blocks(blocks)


def exchanges(random: np.random.Generator) -> dict[str, Any]:
    return pool_operations(random, ["new", "free"], 20)


@probe(
    title="The blocks handed out, and their order, after others were given back",
    exercise=BLOCK_POOL,
    trials=3,
    inputs=exchanges,
    message="Blocks are handed out as they stand in the free queue, front first.",
)
def handed_out(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(inputs["num_blocks"])
    return [operate(pool, *operation) for operation in inputs["operations"]]


def sharing(random: np.random.Generator) -> dict[str, Any]:
    held = int(random.integers(4, 8))
    operations: list[list[Any]] = [["new", held]]
    count = dict.fromkeys(range(1, held + 1), 1)
    for _ in range(14):
        name = "touch" if random.random() < 0.6 else "free"
        blocks = random.permutation([block_id for block_id, n in count.items() if n])[:3].tolist()
        for block_id in blocks:
            count[block_id] += 1 if name == "touch" else -1
        operations.append([name, blocks])
    return {"num_blocks": 10, "operations": operations}


@probe(
    title="Blocks that several requests hold",
    exercise=BLOCK_POOL,
    trials=3,
    inputs=sharing,
    message="A block stays out of the free queue as long as one of its holders has not given it "
    "back.",
)
def shared_blocks(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(inputs["num_blocks"])
    seen = []
    for operation in inputs["operations"]:
        operate(pool, *operation)
        references = [block.ref_count for block in pool.blocks]
        seen.append([references, sorted(links(pool.free_queue, pool.num_blocks)[0])])
    return seen


def revivals(random: np.random.Generator) -> dict[str, Any]:
    held = random.permutation(np.arange(1, 8)).tolist()
    return {"release": held, "revive": random.permutation(held)[:5].tolist(), "again": held[2:5]}


@probe(
    title="Cached blocks taken back out of the free queue",
    exercise=BLOCK_POOL,
    trials=3,
    inputs=revivals,
    message="A cached block can be revived from any place in the free queue, and taken again by a "
    "second request while the first holds it.",
)
def revived_blocks(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(10)
    for block in pool.get_new_blocks(7):
        pool.cache_full_block(block, hash_of(block.block_id))
    pool.free_blocks([pool.blocks[block_id] for block_id in inputs["release"]])
    seen = [pool_state(pool)]
    for block_id in [*inputs["revive"], *inputs["again"]]:
        pool.touch([pool.get_cached_block(hash_of(block_id))])
        seen.append(pool_state(pool))
    return seen


def releases(random: np.random.Generator) -> dict[str, Any]:
    blocks = random.permutation(np.arange(1, 11))
    return {
        "cached": np.sort(random.permutation(blocks)[:5]).tolist(),
        "shared": random.permutation(blocks)[:2].tolist(),
        "lists": [blocks[:4].tolist(), blocks[4:8].tolist(), blocks[8:].tolist()],
    }


@probe(
    title="The order in which blocks that were given back will be reused",
    exercise=BLOCK_POOL,
    trials=4,
    inputs=releases,
    message="Of the blocks given back, those with a hash and those without go to different ends of "
    "the free queue, each group in the order of the list.",
)
def order_of_release(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(13)
    blocks = pool.blocks
    pool.get_new_blocks(10)
    for block_id in inputs["cached"]:
        pool.cache_full_block(blocks[block_id], hash_of(block_id))
    pool.touch([blocks[block_id] for block_id in inputs["shared"]])
    seen = []
    for released in inputs["lists"]:
        pool.free_blocks([blocks[block_id] for block_id in released])
        seen.append(links(pool.free_queue, pool.num_blocks))
    return seen


def evictions(random: np.random.Generator) -> dict[str, Any]:
    return {"hashes": random.integers(0, 4, 8).tolist(), "steps": random.integers(1, 4, 4).tolist()}


@probe(
    title="What a block cached before it was handed out again",
    exercise=BLOCK_POOL,
    trials=3,
    inputs=evictions,
    message="A block that is handed out again must not be found under what it held before, and the "
    "blocks that were not must still be.",
)
def evicted_blocks(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(9)
    held = pool.get_new_blocks(8)
    for block, number in zip(held, inputs["hashes"]):
        pool.cache_full_block(block, hash_of(number))
    pool.free_blocks(held)
    seen: list[Any] = []
    for count in inputs["steps"]:
        new = pool.get_new_blocks(min(count, pool.num_free_blocks))
        found = [pool.get_cached_block(hash_of(number)) for number in range(4)]
        seen.append([[block and block.block_id for block in found], block_ids(new)])
        seen.append([block.block_hash is None for block in pool.blocks])
    return seen


def exhaustion(random: np.random.Generator) -> dict[str, Any]:
    return {
        "before": pool_operations(random, ["new", "touch", "cache", "free", "free"], 12, 6),
        "excess": int(random.integers(1, 4)),
    }


@probe(
    title="Asking for more blocks than are free, for none, and for all of them",
    exercise=BLOCK_POOL,
    trials=6,
    inputs=exhaustion,
    message="Every block in the free queue can be had, cached or not; one more is a ValueError "
    "that leaves the pool as it was.",
)
def exhausted_pool(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(inputs["before"]["num_blocks"])
    for operation in inputs["before"]["operations"]:
        operate(pool, *operation)
    free = len(links(pool.free_queue, pool.num_blocks)[0])
    refused = refusal(
        lambda: pool.get_new_blocks(free + inputs["excess"]), lambda: pool_state(pool)
    )
    none = block_ids(pool.get_new_blocks(0))
    return [refused, none, block_ids(pool.get_new_blocks(free)), pool_state(pool)]


def double_frees(random: np.random.Generator) -> dict[str, Any]:
    a, b, c, d = random.permutation(np.arange(1, 7))[:4].tolist()
    return {
        "shared": [a, b],
        "given_back": [c],
        # Twice held and freed three times; not held; right up to the last entry; all right.
        "lists": [[d, a, a, a], [c], [b, a, d, d], [b, b, a, a]],
    }


@probe(
    title="Giving back more references than a block has, and exactly as many",
    exercise=BLOCK_POOL,
    trials=3,
    inputs=double_frees,
    message="The list as a whole decides: one reference too many is a ValueError that changes "
    "nothing, not even for the entries before it, and as many as are held is no error.",
)
def freed_too_often(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(8)
    pool.get_new_blocks(6)
    blocks = pool.blocks
    pool.touch([blocks[block_id] for block_id in inputs["shared"]])
    pool.free_blocks([blocks[block_id] for block_id in inputs["given_back"]])

    def free(released: list[int]) -> Any:
        given = [blocks[block_id] for block_id in released]
        return refusal(lambda: pool.free_blocks(given), lambda: pool_state(pool))

    return [*(free(released) for released in inputs["lists"]), pool_state(pool)]


def pool_life(random: np.random.Generator) -> dict[str, Any]:
    return pool_operations(random, ["new", "new", "touch", "cache", "cache", "free"], 20, 6)


@probe(
    title="The whole pool after every operation of a long sequence",
    exercise=BLOCK_POOL,
    trials=2,
    inputs=pool_life,
    message="After some sequence of legal operations, the reference counts, the hashes and the "
    "free queue no longer agree with each other.",
)
def whole_pool(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(inputs["num_blocks"])
    seen = []
    for operation in inputs["operations"]:
        operate(pool, *operation)
        seen.append(pool_state(pool))
    return seen


# Slots for a request


def tokens(random: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in random.integers(0, 1000, count)]


def manager_state(manager: Any, *requests: Any) -> dict[str, Any]:
    tables = {request.request_id: manager.block_table(request.request_id) for request in requests}
    return {"tables": tables, "pool": pool_state(manager.block_pool)}


def admit(manager: Any, request: Any, **options: Any) -> list[int] | None:
    """Admit a request with what the cache has of it, and count all its tokens as computed."""
    hit = manager.get_computed_blocks(request)
    count = request.num_tokens - hit.num_tokens
    new = manager.allocate_slots(request, count, hit.blocks, **options)
    if new is None:
        return None
    request.num_computed_tokens = request.num_tokens
    return block_ids(new)


def growing_requests(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([2, 4, 5]))
    lengths = [2 * block_size, int(random.integers(1, 3 * block_size))]
    return {
        "block_size": block_size,
        "prompts": [tokens(random, length) for length in lengths],
        "turns": random.integers(0, 2, 24).tolist(),
    }


@probe(
    title="Two running requests that grow by a token at a time",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=growing_requests,
    message="A running request gets a new block exactly when its last one is full, and keeps those "
    "that it has.",
)
def growing_by_a_token(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(60, inputs["block_size"], enable_caching=False)
    requests = [Request(f"r{i}", prompt) for i, prompt in enumerate(inputs["prompts"])]
    seen: list[Any] = [admit(manager, request) for request in requests]
    for turn in inputs["turns"]:
        request = requests[turn]
        request.append_output_token(7)
        new = manager.allocate_slots(request, 1)
        request.num_computed_tokens += 1
        seen.append([block_ids(new), manager.block_table(request.request_id)])
    return [*seen, manager_state(manager, *requests)]


def growing_by_chunks(random: np.random.Generator) -> dict[str, Any]:
    chunks = random.integers(1, 9, 6)
    return {
        "block_size": 4,
        "chunks": chunks.tolist(),
        "prompt": tokens(random, int(chunks.sum()) + int(random.integers(1, 9))),
    }


@probe(
    title="A long prompt that is computed in chunks",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=growing_by_chunks,
    message="Each chunk takes the blocks for the tokens up to its end and for no more, and only "
    "blocks that it fills can be found by others.",
)
def prompt_in_chunks(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(20, inputs["block_size"])
    request = Request("long", inputs["prompt"])
    seen = []
    for chunk in inputs["chunks"]:
        new = manager.allocate_slots(request, chunk)
        request.num_computed_tokens += chunk
        findable = manager.get_computed_blocks(Request("same", inputs["prompt"])).num_tokens
        seen.append([block_ids(new), findable, manager_state(manager, request)])
    return seen


def tight_memory(random: np.random.Generator) -> dict[str, Any]:
    block_size = 4
    return {
        "block_size": block_size,
        "num_blocks": int(random.integers(8, 12)),
        "prompts": [tokens(random, int(n)) for n in random.integers(1, 4 * block_size, 8)],
    }


@probe(
    title="Requests that come until the memory is full, and then grow",
    exercise=ALLOCATE_SLOTS,
    trials=4,
    inputs=tight_memory,
    message="A request is refused exactly when its blocks are more than the free ones, and a "
    "refusal leaves tables, queue, counts and hashes as they were.",
)
def refusals(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(inputs["num_blocks"], inputs["block_size"])
    requests = [Request(f"r{i}", prompt) for i, prompt in enumerate(inputs["prompts"])]
    admitted = []
    seen: list[Any] = []
    for request in requests:
        before = manager_state(manager, *requests)
        new = admit(manager, request)
        if new is not None:
            admitted.append(request)
        seen.append([new, new is None and manager_state(manager, *requests) == before])
    for request in admitted * 4:
        before = manager_state(manager, *requests)
        request.append_output_token(7)
        new = manager.allocate_slots(request, request.num_tokens - request.num_computed_tokens)
        if new is not None:
            request.num_computed_tokens = request.num_tokens
        seen.append([new and block_ids(new), manager_state(manager, *requests) == before])
    return seen


def hits_among_the_free(random: np.random.Generator) -> dict[str, Any]:
    block_size = 4
    prompt = tokens(random, 6 * block_size)
    return {
        "block_size": block_size,
        "prompt": prompt,
        "longer": prompt + tokens(random, int(random.integers(1, 4 * block_size))),
        "held_blocks": int(random.integers(1, 4)),
        "pools": list(range(8, 15)),
    }


@probe(
    title="A prefix hit of which a part lies in the free queue, in pools of several sizes",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=hits_among_the_free,
    message="The room for new blocks was misjudged when a part of the hit is held by another "
    "request and the rest is free.",
)
def hit_is_no_room(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for num_blocks in inputs["pools"]:
        manager = code.KVCacheManager(num_blocks, inputs["block_size"])
        gone = Request("gone", inputs["prompt"])
        admit(manager, gone)
        start = inputs["prompt"][: inputs["held_blocks"] * inputs["block_size"] + 1]
        holder = Request("holder", start)
        held = admit(manager, holder)
        manager.free(gone)
        longer = Request("longer", inputs["longer"])
        seen.append([held, admit(manager, longer), manager_state(manager, holder, longer)])
    return seen


def shared_prefixes(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([2, 4]))
    prefix = tokens(random, int(random.integers(2, 5)) * block_size)
    tails = [tokens(random, int(n)) for n in random.integers(1, 3 * block_size, 4)]
    return {"block_size": block_size, "prompts": [prefix + tail for tail in tails]}


@probe(
    title="The tables of requests that share a prefix",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=shared_prefixes,
    message="A table lists the blocks in the order of the tokens, and a block counts a reference "
    "for every table in which it stands.",
)
def adopted_prefix(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(30, inputs["block_size"])
    requests = [Request(f"r{i}", prompt) for i, prompt in enumerate(inputs["prompts"])]
    seen: list[Any] = []
    for request in requests:
        seen.append([admit(manager, request), manager_state(manager, *requests)])
    for request in requests:
        manager.free(request)
        seen.append(links(manager.block_pool.free_queue, 30))
    return seen


def gated_prompts(random: np.random.Generator) -> dict[str, Any]:
    block_size = 4
    length = int(random.integers(20, 40))
    exact = 1 - (-length // block_size)
    return {
        "block_size": block_size,
        "prompt": tokens(random, length),
        "chunk": int(random.integers(1, 12)),
        "pools": [exact - 2, exact - 1, exact, exact + 3],
    }


@probe(
    title="The first chunk of a long prompt, with the gate and without, in pools of several sizes",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=gated_prompts,
    message="The gate refuses a request whose tokens would not all fit, but reserves nothing; "
    "without the gate only the chunk has to fit.",
)
def whole_sequence_gate(code: Any, inputs: Any) -> list[Any]:
    seen = []
    for num_blocks in inputs["pools"]:
        for gate in (True, False):
            manager = code.KVCacheManager(num_blocks, inputs["block_size"])
            request = Request("long", inputs["prompt"])
            first = manager.allocate_slots(request, inputs["chunk"], full_sequence_must_fit=gate)
            seen.append([first and block_ids(first), manager_state(manager, request)])
            if first is None:
                continue
            request.num_computed_tokens = inputs["chunk"]
            second = manager.allocate_slots(request, 3, full_sequence_must_fit=gate)
            seen.append([second and block_ids(second), manager_state(manager, request)])
    return seen


def slots_for_guesses(random: np.random.Generator) -> dict[str, Any]:
    length = int(random.integers(5, 20))
    return {"prompt": tokens(random, length), "guesses": random.integers(3, 9, 4).tolist()}


@probe(
    title="Slots for tokens that are only guessed yet",
    exercise=ALLOCATE_SLOTS,
    trials=3,
    inputs=slots_for_guesses,
    message="Slots may be asked for beyond the tokens that the request has; what these slots will "
    "hold is not known, so their blocks cannot be found by others.",
)
def guessed_tokens(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(20, 4)
    request = Request("guesses", inputs["prompt"])
    seen: list[Any] = [admit(manager, request)]
    for guesses in inputs["guesses"]:
        request.append_output_token(7)
        new = manager.allocate_slots(request, 1 + guesses)
        request.num_computed_tokens = request.num_tokens
        seen.append([block_ids(new), manager_state(manager, request)])
    return seen


# Attention through block tables


def paged_batch(
    random: np.random.Generator,
    lengths: list[int],
    *,
    block_size: int = 4,
    num_kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
) -> dict[str, Any]:
    """Sequences of `lengths`, scattered over a cache; `paged_arrays` fills it."""
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    ids = random.permutation(np.arange(1, num_blocks)).tolist()
    tables = np.zeros((len(lengths), max(counts) + 1), dtype=np.int32)
    for row, count in zip(tables, counts):
        row[:count] = [ids.pop() for _ in range(count)]
    # Rows are padded with the null block, and with blocks that nobody uses.
    for row, count in zip(tables, counts):
        row[count:] = random.choice([0, *ids], len(row) - count)
    return {
        "seed": int(random.integers(2**32)),
        "queries": [len(lengths), num_kv_heads * group, head_dim],
        "cache": [num_blocks, block_size, num_kv_heads, head_dim],
        "tables": tables,
        "lengths": np.array(lengths, dtype=np.int32),
        "query_scale": 1.0,
        "negative_scores": False,
        "poison": np.array([[50.0, 50.0]]),
    }


def noise(seed: int, shape: list[int]) -> np.ndarray:
    """Numbers between -2 and 2 that half precision holds exactly.

    NumPy promises the same bits from the same seed for its bit generators only, not for what it
    makes of them, and the expected values may be older than the NumPy that reads them.
    """
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape))) >> np.uint64(56)
    return (bits.astype(np.float32).reshape(shape) - 127.5) / 64


def paged_arrays(inputs: Any, poison: np.ndarray) -> list[np.ndarray]:
    """Queries, keys, values, tables and lengths; `poison` fills each slot that holds no token."""
    shapes = (inputs["queries"], inputs["cache"], inputs["cache"])
    queries, keys, values = (noise(inputs["seed"] + i, shape) for i, shape in enumerate(shapes))
    if inputs["negative_scores"]:
        queries, keys = -np.abs(queries), np.abs(keys)
    tables, lengths = inputs["tables"], inputs["lengths"]
    block_size = keys.shape[1]
    empty = np.ones(keys.shape[:2], dtype=bool)
    for row, length in zip(tables, lengths):
        for position in range(length):
            empty[row[position // block_size], position % block_size] = False
    keys[empty], values[empty] = poison
    return [queries * np.float32(inputs["query_scale"]), keys, values, tables, lengths]


def attend(code: Any, inputs: Any, **options: Any) -> list[np.ndarray]:
    """The output for each kind of poison."""
    return [
        np.asarray(
            code.paged_decode_attention(*paged_arrays(inputs, poison), **options), np.float32
        )
        for poison in inputs["poison"]
    ]


def softmax_states(random: np.random.Generator) -> dict[str, Any]:
    return {
        "maximum": random.integers(-3, 4, (3, 4, 1)).astype(np.float32),
        "total": random.integers(1, 9, (3, 4, 1)).astype(np.float32),
        "output": random.integers(-9, 10, (3, 4, 5)).astype(np.float32),
    }


def distant_states(random: np.random.Generator) -> dict[str, Any]:
    states = softmax_states(random)
    apart = np.array([-1e30, -2e4, 3e4])[:, None, None]
    rows = np.array([0.0, -9e4, 7e3, 200.0])[:, None]
    states["maximum"] = random.permuted(apart + rows, axis=0).astype(np.float32)
    return states


def merged(code: Any, inputs: Any) -> list[Any]:
    """Logarithm of the sum, and mean value, of three states merged in four orders.

    Maximum and total alone are free to differ: they mean the same at any common scale.
    """
    a, b, c = (
        code.SoftmaxState(*state)
        for state in zip(inputs["maximum"], inputs["total"], inputs["output"])
    )
    results = [a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b), c.merge(b).merge(a)]
    return [
        [
            (state.maximum + np.log(state.total)).astype(np.float32),
            (state.output / state.total).astype(np.float32),
        ]
        for state in results
    ]


@probe(
    title="Three states merged in every order and grouping",
    exercise=PAGED_ATTENTION,
    trials=2,
    tolerance=1e-4,
    inputs=softmax_states,
    message="However the tiles are grouped and whichever comes first, the merged state has to mean "
    "the same.",
)
def merge_in_any_order(code: Any, inputs: Any) -> list[Any]:
    return merged(code, inputs)


@probe(
    title="States whose largest scores are far apart",
    exercise=PAGED_ATTENTION,
    trials=2,
    tolerance=1e-2,
    inputs=distant_states,
    message="With scores that are far apart the merge overflows or loses everything; each row has "
    "a largest score of its own.",
)
def merge_far_apart(code: Any, inputs: Any) -> list[Any]:
    return merged(code, inputs)


def other_head_sizes(random: np.random.Generator) -> dict[str, Any]:
    head_dim = int(random.choice([8, 24]))
    return paged_batch(random, [3, 6], head_dim=head_dim)


@probe(
    title="Heads of another size than in the visible test",
    exercise=PAGED_ATTENTION,
    trials=2,
    tolerance=1e-4,
    inputs=other_head_sizes,
    message="The output depends on the size of a head in a way that the formula does not.",
)
def attention_head_sizes(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs)


def query_groups(random: np.random.Generator) -> dict[str, Any]:
    shapes = [(1, 3), (3, 1), (2, 3)]
    return {
        "batches": [
            paged_batch(random, [2, 7], num_kv_heads=kv_heads, group=group, head_dim=64)
            for kv_heads, group in shapes
        ]
    }


@probe(
    title="One, two and three KV heads, each read by one or three query heads",
    exercise=PAGED_ATTENTION,
    tolerance=1e-4,
    inputs=query_groups,
    message="A query head reads another KV head than its group's.",
)
def attention_groups(code: Any, inputs: Any) -> list[Any]:
    return [attend(code, batch) for batch in inputs["batches"]]


def mixed_lengths(random: np.random.Generator) -> dict[str, Any]:
    # One token, a whole number of blocks, one more and one less; the longest is not the last.
    lengths = random.permutation([1, 8, 9, 3]).tolist()
    return paged_batch(random, [13, *lengths])


@probe(
    title="Sequences of one token, of whole blocks, and with partial tails, in any order",
    exercise=PAGED_ATTENTION,
    trials=2,
    tolerance=1e-4,
    inputs=mixed_lengths,
    message="A sequence does not attend to exactly its own tokens when it stands beside shorter "
    "and longer ones.",
)
def attention_lengths(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=1)


def poisoned_batch(random: np.random.Generator) -> dict[str, Any]:
    poison = np.array([[np.nan, np.nan], [1e30, 1e30], [np.inf, -np.inf], [-1e30, np.nan]])
    return paged_batch(random, [1, 6, 12], head_dim=64, group=1) | {"poison": poison}


@probe(
    title="Slots past the end that hold NaN, infinities and huge numbers",
    exercise=PAGED_ATTENTION,
    tolerance=1e-4,
    inputs=poisoned_batch,
    message="What lies in slots that hold no token of the sequence reaches the output.",
)
def attention_poison(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=2)


def tiled_batch(random: np.random.Generator) -> dict[str, Any]:
    return paged_batch(random, [5, 27, 18], block_size=2)


@probe(
    title="Tiles of one block, of a number that does not divide the table, and larger than it",
    exercise=PAGED_ATTENTION,
    tolerance=1e-4,
    inputs=tiled_batch,
    message="The output depends on how many blocks are in a tile.",
)
def attention_tiles(code: Any, inputs: Any) -> list[Any]:
    return [attend(code, inputs, tile_blocks=tile_blocks) for tile_blocks in (1, 3, 4, 100)]


@probe(
    title="The number of blocks read at a time",
    exercise=PAGED_ATTENTION,
    tolerance=1e-4,
    inputs=tiled_batch,
    message="More than tile_blocks blocks of a sequence were copied out of the cache at once; with "
    "long sequences that is the memory which paging was to save.",
)
def attention_memory(code: Any, inputs: Any) -> list[Any]:
    largest = 0

    class Watched(np.ndarray):
        """Notes the largest copy that is taken out of it."""

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            if not np.may_share_memory(found, self):
                note(found.size)
            return found

        def take(self, *args: Any, **kwargs: Any) -> Any:
            found = super().take(*args, **kwargs)
            note(found.size)
            return found

    def note(size: int) -> None:
        nonlocal largest
        largest = max(largest, size)

    queries, keys, values, tables, lengths = paged_arrays(inputs, inputs["poison"][0])
    seen: list[Any] = []
    for tile_blocks in (1, 2, 5):
        largest = 0
        output = code.paged_decode_attention(
            queries, keys.view(Watched), values.view(Watched), tables, lengths, tile_blocks
        )
        # K and V may be copied for each query head of a group.
        allowed = tile_blocks * keys.shape[1] * queries.size
        seen.append([largest <= allowed, np.array(output, np.float32)])
    return seen


def towering_scores(random: np.random.Generator) -> dict[str, Any]:
    return paged_batch(random, [9, 14], head_dim=64, group=1) | {"query_scale": 1000.0}


@probe(
    title="Scores in the thousands",
    exercise=PAGED_ATTENTION,
    trials=2,
    tolerance=1e-2,
    inputs=towering_scores,
    message="The output overflows or vanishes when scores are large, although the softmax of large "
    "scores is as well defined as any.",
)
def attention_large_scores(code: Any, inputs: Any) -> list[Any]:
    return attend(code, inputs, tile_blocks=1)


# The kernel


def launch(
    code: Any, inputs: Any, scale: float | None = None, dtype: torch.dtype = torch.float32
) -> list[np.ndarray]:
    """The kernel's output for each kind of poison, launched over sequences and query heads."""
    seen = []
    for poison in inputs["poison"]:
        arrays = paged_arrays(inputs, poison)
        num_sequences, num_heads, head_dim = arrays[0].shape
        block_size, num_kv_heads = arrays[1].shape[1:3]
        tensors = [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]
        tensors[:3] = [tensor.to(dtype) for tensor in tensors[:3]]
        output = torch.full_like(tensors[0], 7.0)
        code.paged_decode_kernel[(num_sequences, num_heads)](
            *tensors,
            output,
            head_dim**-0.5 if scale is None else scale,
            arrays[3].shape[1],
            HEADS_PER_GROUP=num_heads // num_kv_heads,
            BLOCK_SIZE=block_size,
            HEAD_DIM=head_dim,
        )
        seen.append(output.float().cpu().numpy())
    return seen


def kernel_groups(random: np.random.Generator) -> dict[str, Any]:
    shapes = [(1, 3), (3, 1), (2, 3)]
    return {
        "batches": [
            paged_batch(
                random, [2, 5], block_size=16, num_kv_heads=kv_heads, group=group, head_dim=8
            )
            for kv_heads, group in shapes
        ]
    }


@probe(
    title="One, two and three KV heads, each read by one or three query heads",
    exercise=PAGED_KERNEL,
    tolerance=1e-3,
    inputs=kernel_groups,
    message="A program reads another KV head than the one of its query head's group.",
)
def kernel_heads(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, batch, scale=0.125) for batch in inputs["batches"]]


def kernel_scale_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [3, 18], block_size=16, num_kv_heads=1, group=1, head_dim=32)
    return {"batch": batch, "scales": [0.03125, 0.25]}


@probe(
    title="The scale and the size of a head",
    exercise=PAGED_KERNEL,
    tolerance=1e-3,
    inputs=kernel_scale_inputs,
    message="Scores are multiplied by something else than the scale that the caller gives.",
)
def kernel_scale(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, inputs["batch"], scale) for scale in inputs["scales"]]


def kernel_block_sizes_inputs(random: np.random.Generator) -> dict[str, Any]:
    return {
        "batches": [
            paged_batch(
                random,
                [1, block_size, block_size + 1],
                block_size=block_size,
                num_kv_heads=1,
                group=1,
            )
            for block_size in (2, 8, 32)
        ]
    }


@probe(
    title="Blocks of 2, 8 and 32 slots: one token, a full block, one token more",
    exercise=PAGED_KERNEL,
    tolerance=1e-3,
    inputs=kernel_block_sizes_inputs,
    message="With another block size, or at the edge of a block, a sequence attends to other "
    "tokens than its own.",
)
def kernel_block_sizes(code: Any, inputs: Any) -> list[Any]:
    return [launch(code, batch, scale=0.125) for batch in inputs["batches"]]


def kernel_poison_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [7, 1, 20], block_size=16, num_kv_heads=1, group=1)
    poison = np.array([[np.nan, np.nan], [np.inf, -np.inf], [1e30, 1e30]])
    return batch | {"poison": poison}


@probe(
    title="Slots past the end that hold NaN, infinities and huge numbers; the longest comes first",
    exercise=PAGED_KERNEL,
    tolerance=1e-3,
    inputs=kernel_poison_inputs,
    message="What lies in slots that hold no token of the sequence reaches the output.",
)
def kernel_poison(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_large_scores_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [40, 52, 75], block_size=16, num_kv_heads=1, group=1)
    return batch | {"query_scale": 100.0}


@probe(
    title="Scores in the hundreds that rise and fall from block to block",
    exercise=PAGED_KERNEL,
    tolerance=1e-2,
    inputs=kernel_large_scores_inputs,
    message="The running sums overflow when a block's largest score is far below an earlier one's.",
)
def kernel_large_scores(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_negative_scores_inputs(random: np.random.Generator) -> dict[str, Any]:
    batch = paged_batch(random, [5, 19], block_size=16, num_kv_heads=1, group=1)
    return batch | {"query_scale": 60.0, "negative_scores": True}


@probe(
    title="Scores that are all far below zero",
    exercise=PAGED_KERNEL,
    tolerance=1e-2,
    inputs=kernel_negative_scores_inputs,
    message="A number that was thought to be smaller than every score takes part in the softmax.",
)
def kernel_negative_scores(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125)


def kernel_half_inputs(random: np.random.Generator) -> dict[str, Any]:
    # Scores far from zero and near each other: rounded to half precision they are the same.
    batch = paged_batch(random, [12, 33, 50], block_size=16, num_kv_heads=1, group=1, head_dim=128)
    return batch | {"query_scale": 4.0, "negative_scores": True}


@probe(
    title="Inputs in half precision",
    exercise=PAGED_KERNEL,
    tolerance=5e-3,
    inputs=kernel_half_inputs,
    message="With inputs in half precision the scores are not kept in single precision.",
)
def kernel_half_precision(code: Any, inputs: Any) -> list[Any]:
    return launch(code, inputs, scale=0.125, dtype=torch.float16)
