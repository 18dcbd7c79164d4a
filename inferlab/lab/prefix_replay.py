"""Requests on a KV cache manager with no model, seen as vLLM's own manager is seen.

The operations, and what the answer to each holds, are described in
`experiments/upstream/vllm_kv_cache_manager.py`, which does the same to vLLM's.
"""

from typing import Any

from inferlab.engine import KVCacheManager, Request

Operation = list[Any]
Observation = dict[str, Any]


def replay(manager: KVCacheManager, operations: list[Operation]) -> list[Observation]:
    """What can be seen of the manager after each operation."""
    requests: dict[str, Request] = {}
    return [_apply(manager, requests, *operation) | _seen(manager) for operation in operations]


def _apply(
    manager: KVCacheManager,
    requests: dict[str, Request],
    operation: str,
    name: str,
    *arguments: Any,
) -> Observation:
    if operation == "admit":
        request = Request(name, arguments[0], cache_salt=arguments[1])
        hit = manager.get_computed_blocks(request)
        num_new_tokens = request.num_tokens - hit.num_tokens
        if manager.allocate_slots(request, num_new_tokens, hit.blocks) is None:
            return {"hit_tokens": None, "blocks": []}
        request.num_computed_tokens = request.num_tokens
        requests[name] = request
        return {"hit_tokens": hit.num_tokens, "blocks": manager.block_table(name)}
    if operation == "decode":
        for token_id in arguments[0]:
            requests[name].append_output_token(token_id)
            manager.allocate_slots(requests[name], 1)
            requests[name].num_computed_tokens += 1
    else:
        manager.free(requests.pop(name))
    return {"blocks": manager.block_table(name)}


def _seen(manager: KVCacheManager) -> Observation:
    free = manager.block_pool.free_queue.blocks()
    cached = [block.block_id for block in free if block.block_hash is not None]
    return {"free": [block.block_id for block in free], "cached": cached}
