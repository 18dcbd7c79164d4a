"""Requests on a KV cache manager with no model, seen as vLLM's own manager is seen.

The operations, and what the answer to each holds, are described in
`experiments/upstream/vllm_kv_cache_manager.py`, which does the same to vLLM's.
"""

import random
from typing import Any

from inferlab.engine import KVCacheManager, Request

Operation = list[Any]
Observation = dict[str, Any]


MOST_RUNNING = 4
MOST_BLOCKS = 8  # of four tokens, that a request of `random_operations` takes


def random_operations(seed: int, num_operations: int) -> list[Operation]:
    """Requests that grow out of three trunks, some with a salt, answer, and leave in any order.

    A pool of 40 blocks of four tokens always has room for those that run, and evicts all the time.
    """
    rng = random.Random(seed)
    trunks = [[100 * trunk + i for i in range(20)] for trunk in (1, 2, 3)]
    running: list[str] = []
    answered: set[str] = set()
    operations: list[Operation] = []
    for number in range(num_operations):
        name = rng.choice(running) if running else ""
        kind = rng.choice(["admit", "decode", "free"])
        if kind == "admit" and len(running) < MOST_RUNNING:
            own = [rng.randrange(1000, 1004) for _ in range(rng.randint(1, 4))]
            prompt = [*rng.choice(trunks)[: rng.choice([4, 8, 11, 16, 20])], *own]
            running.append(f"request {number}")
            operations.append(["admit", running[-1], prompt, rng.choice(["", "", "salt"])])
        elif kind == "decode" and name and name not in answered:
            answered.add(name)  # once, so that it stays below MOST_BLOCKS
            tokens = [rng.randrange(1000, 1004) for _ in range(rng.randint(1, 8))]
            operations.append(["decode", name, tokens])
        elif kind == "free" and name:
            running.remove(name)
            operations.append(["free", name])
    return operations


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
