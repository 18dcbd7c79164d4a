"""Probes of lookup and release: tokens hit, blocks shared, and the order of the free queue."""

from typing import Any

import numpy as np

from autograder.probe import probe
from inferlab.engine.request import Request

EXERCISE = "week05-prefix-lookup"


def tokens(random: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in random.integers(0, 1000, count)]


def admit(manager: Any, request: Any) -> int:
    """Admit a request with what the cache has of it, and compute the rest; returns the hit."""
    cached, num_cached = manager.get_computed_blocks(request)
    num_left = request.num_tokens - num_cached
    if manager.allocate_slots(request, num_left, cached) is not None:
        request.num_computed_tokens = num_cached + num_left
    return int(num_cached)


def found(manager: Any, token_ids: list[int], salt: str = "") -> list[Any]:
    """What a new request of these tokens would hit, with nothing changed."""
    hit = manager.get_computed_blocks(Request("looks", token_ids, cache_salt=salt))
    return [int(hit.num_tokens), [block.block_id for block in hit.blocks]]


def queue(manager: Any) -> list[int]:
    return [block.block_id for block in manager.block_pool.free_queue.blocks()]


def compute_answer(manager: Any, request: Any, token_ids: list[int]) -> None:
    """Append tokens one by one and compute each but the last, as a request that ends does."""
    for token_id in token_ids[:-1]:
        request.output_token_ids.append(token_id)
        manager.allocate_slots(request, 1)
        request.num_computed_tokens += 1
    request.output_token_ids.append(token_ids[-1])


def cached_prompts(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([3, 4, 8]))
    return {
        "block_size": block_size,
        "prompt": tokens(random, 5 * block_size),
        "lengths": [
            1,
            block_size,
            block_size + 1,
            3 * block_size,
            4 * block_size - 1,
            5 * block_size,
        ],
    }


@probe(
    title="Prompts that are cached completely, of whole blocks and others",
    exercise=EXERCISE,
    trials=3,
    inputs=cached_prompts,
    message="The last token of a prompt has to be computed, whatever is cached, and everything "
    "before its block need not be.",
)
def complete_hits(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(80, inputs["block_size"])
    admit(manager, Request("first", inputs["prompt"]))
    return [found(manager, inputs["prompt"][:length]) for length in inputs["lengths"]]


def branches(random: np.random.Generator) -> dict[str, Any]:
    trunk = tokens(random, 20)
    cuts = random.integers(0, 20, 8).tolist()
    return {"prompts": [trunk[:cut] + tokens(random, int(random.integers(1, 9))) for cut in cuts]}


@probe(
    title="Prompts that leave a common trunk at any place",
    exercise=EXERCISE,
    trials=3,
    inputs=branches,
    message="A prompt hits the full blocks that it has in common with an earlier one, and shares "
    "the very same blocks.",
)
def branching_prompts(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(80, 4)
    seen: list[Any] = []
    for number, prompt in enumerate(inputs["prompts"]):
        seen.append(admit(manager, Request(f"r{number}", prompt)))
        seen.append(manager.block_table(f"r{number}"))
    return seen


def gaps(random: np.random.Generator) -> dict[str, Any]:
    return {"prompt": tokens(random, 25), "gap": int(random.integers(0, 5))}


@probe(
    title="A block that was evicted from the middle of a cached prefix",
    exercise=EXERCISE,
    trials=4,
    inputs=gaps,
    message="A block behind a gap was taken, although what lies before it has to be computed.",
)
def gap_in_the_middle(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(20, 4)
    request = Request("first", inputs["prompt"])
    admit(manager, request)
    blocks = manager.block_pool.blocks
    table = manager.block_table("first")
    manager.block_pool.uncache_blocks([blocks[table[inputs["gap"]]]])
    return found(manager, inputs["prompt"])


def chunked(random: np.random.Generator) -> dict[str, Any]:
    chunks = random.integers(1, 9, 6).tolist()
    return {"chunks": chunks, "prompt": tokens(random, sum(chunks) + int(random.integers(1, 6)))}


@probe(
    title="What can be found after each chunk of a long prompt",
    exercise=EXERCISE,
    trials=4,
    inputs=chunked,
    message="After each chunk the blocks that it has filled can be found, and no others.",
)
def found_after_chunks(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(40, 4)
    request = Request("long", inputs["prompt"])
    seen = []
    for chunk in inputs["chunks"]:
        manager.allocate_slots(request, chunk)
        request.num_computed_tokens += chunk
        seen.append(found(manager, inputs["prompt"]))
    return seen


def agent(random: np.random.Generator) -> list[list[int]]:
    return [tokens(random, int(count)) for count in random.integers(3, 12, 8)]


@probe(
    title="A conversation whose answers are part of the next prompt",
    exercise=EXERCISE,
    trials=3,
    inputs=agent,
    message="Tokens that were generated and computed can be found like those of a prompt; the "
    "last one drawn was never computed.",
)
def turns_of_a_conversation(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(60, 4)
    transcript: list[int] = []
    seen: list[Any] = []
    for turn, (question, answer) in enumerate(zip(inputs[::2], inputs[1::2])):
        transcript = transcript + question
        request = Request(f"turn {turn}", transcript)
        seen.append(admit(manager, request))
        compute_answer(manager, request, answer)
        transcript = transcript + answer
        manager.free(request)
        seen.append(found(manager, [*transcript, 1]))
    return seen


def tenants(random: np.random.Generator) -> dict[str, Any]:
    return {
        "prompt": tokens(random, 13),
        "salts": random.permutation(["", "a", "ab", "b", "", "a", "ab", "b"]).tolist(),
    }


@probe(
    title="Tenants with salts, some of them the same",
    exercise=EXERCISE,
    trials=3,
    inputs=tenants,
    message="Requests share blocks exactly when they have the same salt.",
)
def salted_requests(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(60, 4)
    seen: list[Any] = []
    for number, salt in enumerate(inputs["salts"]):
        request = Request(f"r{number}", inputs["prompt"], cache_salt=salt)
        seen.append([admit(manager, request), manager.block_table(request.request_id)])
    return seen


def preempted(random: np.random.Generator) -> dict[str, Any]:
    return {
        "prompt": tokens(random, int(random.integers(5, 15))),
        "output": tokens(random, int(random.integers(6, 14))),
    }


@probe(
    title="A request that is preempted and comes back with its output",
    exercise=EXERCISE,
    trials=4,
    inputs=preempted,
    message="A preempted request finds all full blocks that it had computed, those of its output "
    "among them.",
)
def preempted_requests(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(30, 4)
    request = Request("victim", inputs["prompt"])
    admit(manager, request)
    compute_answer(manager, request, inputs["output"])
    manager.free(request)
    request.num_computed_tokens = 0
    seen: list[Any] = [queue(manager), manager.block_table("victim")]
    seen.append(admit(manager, request))
    return [*seen, manager.block_table("victim"), queue(manager)]


def releases(random: np.random.Generator) -> dict[str, Any]:
    trunk = tokens(random, 8)
    prompts = [trunk[: int(cut)] + tokens(random, 9) for cut in random.integers(0, 9, 4)]
    return {"prompts": prompts, "order": random.permutation(4).tolist()}


@probe(
    title="The order of the free queue after requests have ended",
    exercise=EXERCISE,
    trials=4,
    inputs=releases,
    message="The end of a sequence has to be evicted before its beginning, and what is freed later "
    "after what was freed before.",
)
def order_of_release(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(40, 4)
    requests = [Request(f"r{i}", prompt) for i, prompt in enumerate(inputs["prompts"])]
    for request in requests:
        admit(manager, request)
    seen = []
    for number in inputs["order"]:
        manager.free(requests[number])
        seen.append([manager.block_table(f"r{number}"), queue(manager)])
    return seen


def small_pools(random: np.random.Generator) -> dict[str, Any]:
    return {"prompt": tokens(random, 33), "takes": random.integers(1, 4, 3).tolist()}


@probe(
    title="What is left of a freed prompt while others take blocks",
    exercise=EXERCISE,
    trials=3,
    inputs=small_pools,
    message="When blocks are taken from a freed prompt, its beginning has to be what is left.",
)
def head_survives(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(10, 4)
    request = Request("gone", inputs["prompt"])
    admit(manager, request)
    manager.free(request)
    seen = [found(manager, inputs["prompt"])]
    for count in inputs["takes"]:
        manager.block_pool.get_new_blocks(count)
        seen.append(found(manager, inputs["prompt"]))
    return seen


def victims(random: np.random.Generator) -> dict[str, Any]:
    return {
        "prompt": tokens(random, 24),
        "computed": int(random.integers(0, 9)),
        "scheduled": int(random.integers(8, 16)),
    }


@probe(
    title="A request that is preempted in the step that would have computed it",
    exercise=EXERCISE,
    trials=4,
    inputs=victims,
    message="Blocks whose tokens were never computed are found by another request.",
)
def never_computed(code: Any, inputs: Any) -> list[Any]:
    manager = code.KVCacheManager(20, 4)
    request = Request("victim", inputs["prompt"])
    if inputs["computed"]:
        manager.allocate_slots(request, inputs["computed"])
        request.num_computed_tokens = inputs["computed"]
    manager.allocate_slots(request, inputs["scheduled"])
    manager.free(request)
    return [found(manager, inputs["prompt"]), queue(manager), manager.block_table("victim")]
