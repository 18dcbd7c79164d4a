"""Probes of `allocate_slots`: the blocks that requests get, and the state of tables and pool."""

from typing import Any

import numpy as np

from autograder.probe import probe
from autograder.probes.week04.block_pool import block_ids, pool_state
from autograder.probes.week04.free_queue import links
from inferlab.engine.request import Request

EXERCISE = "week04-allocate-slots"


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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
    exercise=EXERCISE,
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
