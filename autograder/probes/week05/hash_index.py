"""Probes of the index: which block a hash finds, through reuse and among equals."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week05-hash-index"
NAMES = [bytes([number]) * 4 for number in range(6)]


def found(pool: Any, names: list[bytes] = NAMES) -> list[int | None]:
    blocks = [pool.get_cached_block(name) for name in names]
    return [block.block_id if block is not None else None for block in blocks]


def hashes(pool: Any) -> list[str | None]:
    return [block.block_hash.hex() if block.block_hash else None for block in pool.blocks]


def index_size(pool: Any) -> list[int]:
    return sorted(len(holders) for holders in pool._cached.values())


def numbers(random: np.random.Generator) -> list[int]:
    return [int(number) for number in random.permutation(5)]


@probe(
    title="Blocks with one hash, of which the oldest is evicted first",
    exercise=EXERCISE,
    trials=2,
    inputs=numbers,
    message="Of several blocks with one hash the oldest is found, and when it is gone the next.",
)
def equals_found_in_order(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(8)
    held = pool.get_new_blocks(5)
    for number in inputs:
        pool.cache_full_block(held[number], NAMES[0])
    seen = [found(pool)[0]]
    for number in inputs:
        pool.uncache_blocks([held[number]])
        seen.append(found(pool)[0])
    return [*seen, index_size(pool)]


@probe(
    title="Blocks with one hash, of which any is evicted",
    exercise=EXERCISE,
    trials=3,
    inputs=lambda random: [numbers(random), numbers(random)],
    message="When one of several blocks with one hash is evicted, it and no other is forgotten.",
)
def equals_in_any_order(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(8)
    held = pool.get_new_blocks(5)
    for number in inputs[0]:
        pool.cache_full_block(held[number], NAMES[0])
    seen: list[Any] = []
    for number in inputs[1]:
        pool.uncache_blocks([held[number]])
        seen.append([found(pool)[0], hashes(pool), index_size(pool)])
    return seen


def reuses(random: np.random.Generator) -> list[list[int]]:
    return [random.permutation(6).tolist()[:3] for _ in range(4)]


@probe(
    title="Blocks that are filled, freed, handed out and filled with something else",
    exercise=EXERCISE,
    trials=3,
    inputs=reuses,
    message="A block that was handed out again is found under what it held before, or not under "
    "what it holds now.",
)
def no_stale_hash(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(4)
    seen: list[Any] = []
    for round_of_names in inputs:
        held = pool.get_new_blocks(3)
        seen.append(found(pool))
        for block, name in zip(held, round_of_names):
            pool.cache_full_block(block, NAMES[name])
        seen.append([found(pool), hashes(pool)])
        pool.free_blocks(held)
        seen.append(found(pool))
    return seen


@probe(
    title="The size of the index after many blocks have come and gone",
    exercise=EXERCISE,
    inputs=lambda random: random.integers(0, 200, 60).tolist(),
    message="The index keeps something for hashes that no block has, and grows without end.",
)
def index_does_not_grow(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(5)
    for number in inputs:
        (block,) = pool.get_new_blocks(1)
        pool.cache_full_block(block, bytes([number]) * 8)
        pool.free_blocks([block])
    size = index_size(pool)
    pool.get_new_blocks(4)
    return [size, index_size(pool)]


@probe(
    title="A block that has a hash already",
    exercise=EXERCISE,
    trials=2,
    inputs=numbers,
    message="A block was given a second hash, and is now found under one that is not its own.",
)
def second_hash(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(7)
    held = pool.get_new_blocks(5)
    for number in inputs:
        pool.cache_full_block(held[number], NAMES[number])
        pool.cache_full_block(held[number], NAMES[5])
        pool.cache_full_block(held[number], NAMES[number])
    return [found(pool), hashes(pool), index_size(pool)]


@probe(
    title="The null block",
    exercise=EXERCISE,
    inputs=numbers,
    message="The null block, which pads every table, can be found in the cache.",
)
def name_of_the_null_block(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(7)
    pool.cache_full_block(pool.null_block, NAMES[inputs[0]])
    return [found(pool), hashes(pool), index_size(pool)]


@probe(
    title="A pool without caching",
    exercise=EXERCISE,
    inputs=numbers,
    message="With caching off a block is found, or keeps a hash.",
)
def caching_off(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(7, enable_caching=False)
    held = pool.get_new_blocks(5)
    for number in inputs:
        pool.cache_full_block(held[number], NAMES[number])
    pool.free_blocks([held[number] for number in inputs])
    queue = [block.block_id for block in pool.free_queue.blocks()]
    return [found(pool), hashes(pool), queue]


def crowded(random: np.random.Generator) -> list[list[int]]:
    """Operations as numbers: what to do, and with which block and hash."""
    kinds = random.choice([0, 1, 1, 2, 3], 50)
    return [[int(kind), *(int(n) for n in random.integers(0, 60, 2))] for kind in kinds]


@probe(
    title="Random operations on a small pool: hits, hashes and the free queue after each",
    exercise=EXERCISE,
    trials=3,
    inputs=crowded,
    message="After some sequence of operations a lookup finds another block than it should.",
)
def crowded_pool(code: Any, inputs: Any) -> list[Any]:
    pool = code.BlockPool(9)
    held: list[Any] = []
    seen: list[Any] = []
    for kind, number, name in inputs:
        if kind == 0 and pool.num_free_blocks:
            held += pool.get_new_blocks(min(1 + number % 2, pool.num_free_blocks))
        elif kind == 1 and held:
            pool.cache_full_block(held[number % len(held)], NAMES[name % 6])
        elif kind == 2 and held:
            pool.free_blocks([held.pop(number % len(held))])
        elif kind == 3:
            block = pool.get_cached_block(NAMES[name % 6])
            if block is not None:
                pool.touch([block])
                held.append(block)
        seen.append([found(pool), [block.block_id for block in pool.free_queue.blocks()]])
    return seen
