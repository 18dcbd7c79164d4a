"""Replays operations on vLLM's own BlockPool: runs in the engines' interpreter.

The operations and what is observed after each are described in `inferlab/lab/pool_replay.py`.
"""

from contextlib import suppress

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

BLOCK_SIZE = 16  # tokens; it reaches nothing that is observed


def main(data):
    pool = BlockPool(data["num_blocks"], enable_caching=True, hash_block_size=BLOCK_SIZE)
    held = []
    trace = []
    for operation in data["operations"]:
        apply(pool, held, *operation)
        found = [pool.get_cached_block(block_hash(n), [0]) for n in range(data["num_hashes"])]
        trace.append(
            {
                "free": [b.block_id for b in pool.free_block_queue.get_all_free_blocks()],
                "hits": [blocks[0].block_id if blocks else None for blocks in found],
                "references": [block.ref_cnt for block in pool.blocks[1:]],
            }
        )
    return trace


def apply(pool, held, name, *arguments):
    if name == "get":
        with suppress(ValueError):  # too few are free
            held += pool.get_new_blocks(arguments[0])
    elif name == "give back":
        places = arguments[0][: len(held)]
        pool.free_blocks([held.pop(place % len(held)) for place in places])
    elif name == "fill" and held:
        block = held[arguments[0] % len(held)]
        if block.block_hash is None:
            key = make_block_hash_with_group_id(block_hash(arguments[1]), 0)
            pool._insert_block_hash(key, block, num_tokens=BLOCK_SIZE)
    elif name == "hit":
        found = pool.get_cached_block(block_hash(arguments[0]), [0])
        if found:
            pool.touch(found)
            held.append(found[0])


def block_hash(number):
    return BlockHash(bytes([number] * 32))
