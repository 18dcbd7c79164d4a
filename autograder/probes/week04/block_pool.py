"""Probes of the block pool: operations are replayed, and its whole state noted after each."""

from typing import Any

import numpy as np

from autograder.observation import refusal
from autograder.probe import probe
from autograder.probes.week04.free_queue import links
from inferlab.engine.block_pool import BlockPool, hash_block_tokens

EXERCISE = "week04-block-pool"


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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
