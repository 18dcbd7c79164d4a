"""Runs operations on vLLM's own KVCacheManager, with no model: runs in the engines' interpreter.

| operation | does |
|---|---|
| `["admit", name, token_ids, salt]` | look the prompt up, give it blocks, and compute all of it |
| `["decode", name, token_ids]` | append these tokens one by one, and compute each |
| `["free", name]` | end the request |

After each the answer holds the tokens that the prompt hit, the request's blocks (none if it was
refused), and the free blocks in the order in which they will be used again, with those that hold
something in `cached`.
"""

import torch
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

init_none_hash(sha256)


def main(data):
    manager = new_manager(data["num_blocks"], data["block_size"])
    requests, trace = {}, []
    for operation in data["operations"]:
        trace.append(apply(manager, requests, data["block_size"], *operation) | seen(manager))
    return trace


def apply(manager, requests, block_size, operation, name, *arguments):
    if operation == "admit":
        request = new_request(name, *arguments, block_size)
        num_hit_tokens = admit(manager, request)
        if num_hit_tokens is None:
            return {"hit_tokens": None, "blocks": []}
        requests[name] = request
        return {"hit_tokens": num_hit_tokens, "blocks": table(manager, name)}
    if operation == "decode":
        for token_id in arguments[0]:
            decode(manager, requests[name], token_id)
        return {"blocks": table(manager, name)}
    manager.free(requests.pop(name))
    return {"blocks": []}


def seen(manager):
    free = manager.block_pool.free_block_queue.get_all_free_blocks()
    cached = [block.block_id for block in free if block.block_hash is not None]
    return {"free": [block.block_id for block in free], "cached": cached}


def new_manager(num_blocks, block_size):
    """One block of the pool, the null block, is never handed out."""
    spec = FullAttentionSpec(block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    return KVCacheManager(
        KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        max_model_len=8192,
        scheduler_block_size=block_size,
        hash_block_size=block_size,
        enable_caching=True,
        log_stats=False,
    )


def new_request(name, token_ids, salt, block_size):
    return Request(
        request_id=name,
        prompt_token_ids=token_ids,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        cache_salt=salt or None,
        block_hasher=get_request_block_hasher(block_size, sha256),
    )


def admit(manager, request):
    """Number of tokens that the prompt hits, or None if there are too few blocks for the rest."""
    hit, num_hit_tokens, _ = manager.get_computed_blocks(request)
    num_new_tokens = request.num_tokens - num_hit_tokens
    if manager.allocate_slots(request, num_new_tokens, num_hit_tokens, hit) is None:
        return None
    request.num_computed_tokens = request.num_tokens
    return num_hit_tokens


def decode(manager, request, token_id):
    request.append_output_token_ids(token_id)
    if manager.allocate_slots(request, 1) is None:
        raise ValueError(f"There is no block left for a token of {request.request_id!r}.")
    request.num_computed_tokens += 1


def table(manager, request_id):
    return manager.get_block_ids(request_id)[0]
