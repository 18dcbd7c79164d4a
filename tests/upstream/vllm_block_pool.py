"""Replays operations on vLLM's own BlockPool: runs in the engines' interpreter.

An operation is `["get", n]`, `["free", [block ids]]`, `["touch", [block ids]]` or
`["cache", block id, hash number]`; after each, the free queue and the cached blocks are reported.
"""

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id


def main(data):
    return [replay(data["num_blocks"], run, data["hashes"]) for run in data["runs"]]


def replay(num_blocks, operations, hashes):
    pool = BlockPool(num_gpu_blocks=num_blocks, enable_caching=True, hash_block_size=16)
    trace = []
    for name, *arguments in operations:
        if name == "get":
            pool.get_new_blocks(arguments[0])
        elif name == "free":
            pool.free_blocks([pool.blocks[i] for i in arguments[0]])
        elif name == "touch":
            pool.touch([pool.blocks[i] for i in arguments[0]])
        else:
            key = make_block_hash_with_group_id(BlockHash(bytes([arguments[1]] * 32)), 0)
            pool._insert_block_hash(key, pool.blocks[arguments[0]], num_tokens=16)
        hits = {}
        for number in hashes:
            found = pool.get_cached_block(BlockHash(bytes([number] * 32)), [0])
            hits[str(number)] = found[0].block_id if found else None
        free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        trace.append({"free": free, "hits": hits})
    return trace
