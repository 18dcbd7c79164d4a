"""Traces of requests that our scheduler and vLLM's both run without a model, and our side of it.

`experiments/upstream/vllm_scheduler.py` says what a trace holds, and what is seen of each step.
"""

import time
from typing import Any

import numpy as np

from inferlab.engine import KVCacheManager, Request, SamplingParams, Scheduler, SchedulerOutput

Trace = dict[str, Any]


def random_trace(seed: int) -> Trace:
    """A trace in which every kind of event is likely; half of the prompts share a beginning."""
    rng = np.random.default_rng(seed)
    block_size = int(rng.choice([4, 16]))
    shared = rng.integers(0, 500, size=80).tolist()
    arrivals = np.sort(rng.integers(0, 40, size=24)).tolist()
    requests = []
    for arrival in arrivals:
        own = rng.integers(0, 500, size=rng.integers(1, 90)).tolist()
        beginning = shared[: rng.integers(0, 81)] if rng.random() < 0.5 else []
        requests.append([arrival, [*beginning, *own], int(rng.integers(1, 40))])
    longest = max(len(prompt) + max_tokens for _, prompt, max_tokens in requests)
    needed = -(-longest // block_size) + 1
    return {
        "options": {
            "max_num_seqs": int(rng.choice([3, 8, 64])),
            "max_num_batched_tokens": int(rng.choice([64, 128, 512])),
        },
        "block_size": block_size,
        "num_blocks": needed + int(rng.choice([1, needed, 20 * needed])),
        "enable_caching": bool(rng.random() < 0.7),
        "requests": requests,
    }


def busy_trace(num_requests: int, num_waiting: int = 0, num_blocks: int = 16384) -> Trace:
    """`num_requests` that decode together, and `num_waiting` for which there is no place."""
    rng = np.random.default_rng(num_requests)
    requests = [
        [0, rng.integers(0, 500, size=rng.integers(16, 200)).tolist(), 64]
        for _ in range(num_requests + num_waiting)
    ]
    return {
        "options": {"max_num_seqs": num_requests, "max_num_batched_tokens": 8192},
        "block_size": 16,
        "num_blocks": num_blocks,
        "enable_caching": True,
        "requests": requests,
    }


def token_of(index: int, trace: Trace, num_tokens: int) -> int:
    """The made-up token of request `index` when it has `num_tokens`; the last one is its own."""
    _, prompt, max_tokens = trace["requests"][index]
    if num_tokens == len(prompt) + max_tokens - 1:
        return 600 + index
    return (31 * index + 7 * num_tokens) % 500


def sampled_tokens(trace: Trace, output: SchedulerOutput) -> dict[str, list[int]]:
    return {
        entry.request.request_id: [
            token_of(int(entry.request.request_id), trace, entry.request.num_tokens)
        ]
        for entry in output.scheduled
        if entry.samples
    }


def new_scheduler(
    trace: Trace,
    scheduler_class: type[Scheduler] = Scheduler,
    manager_class: type[KVCacheManager] = KVCacheManager,
) -> Scheduler:
    manager = manager_class(trace["num_blocks"], trace["block_size"], trace["enable_caching"])
    return scheduler_class(manager, **trace["options"], max_model_len=4096)


def requests_of(trace: Trace) -> list[Request]:
    return [
        Request(str(i), prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
        for i, (_, prompt, max_tokens) in enumerate(trace["requests"])
    ]


def run(trace: Trace, **classes: Any) -> list[dict[str, Any]]:
    """The observations of each step of our scheduler; `classes` as for `new_scheduler`."""
    scheduler = new_scheduler(trace, **classes)
    arrivals = requests_of(trace)
    steps: list[dict[str, Any]] = []
    while arrivals or scheduler.has_unfinished_requests():
        assert len(steps) < 5000, "The scheduler makes no progress."
        while arrivals and trace["requests"][-len(arrivals)][0] <= len(steps):
            scheduler.add_request(arrivals.pop(0))
        output = scheduler.schedule()
        finished = scheduler.update_from_output(output, sampled_tokens(trace, output))
        steps.append(
            {
                "scheduled": output.num_scheduled_tokens,
                "preempted": sorted(request.request_id for request in output.preempted),
                "finished": sorted(request.request_id for request in finished),
                "tables": {
                    request.request_id: scheduler.kv_cache_manager.block_table(request.request_id)
                    for request in scheduler.running
                },
                "free_blocks": scheduler.kv_cache_manager.num_free_blocks,
            }
        )
    return steps


def step_seconds(trace: Trace, num_steps: int) -> list[float]:
    """Seconds of `schedule` and `update_from_output` together, for each of the first steps."""
    scheduler = new_scheduler(trace)
    for request in requests_of(trace):
        scheduler.add_request(request)
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        output = scheduler.schedule()
        middle = time.perf_counter()
        sampled = sampled_tokens(trace, output)
        sampled_at = time.perf_counter()
        scheduler.update_from_output(output, sampled)
        seconds.append(middle - start + time.perf_counter() - sampled_at)
    return seconds
