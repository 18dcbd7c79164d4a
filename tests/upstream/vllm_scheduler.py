"""Runs vLLM's own Scheduler without a model over traces: runs in the engines' interpreter.

Traces and what is observed of each step are described in `tests/scheduler_traces.py`.
"""

import contextlib
import gc
import time

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

init_none_hash(sha256)


def main(data):
    return [run(trace, data["checkpoint"], data.get("timed", False)) for trace in data["traces"]]


def run(trace, checkpoint, timed):
    """The observations of each step or, if timed, the seconds of each schedule and update."""
    scheduler = new_scheduler(trace, checkpoint)
    pool = scheduler.kv_cache_manager.block_pool
    arrivals = [make_request(i, trace, *entry) for i, entry in enumerate(trace["requests"])]
    steps = []
    while arrivals or scheduler.has_unfinished_requests():
        now = len(steps)
        while arrivals and trace["requests"][-len(arrivals)][0] <= now:
            scheduler.add_request(arrivals.pop(0))
        with no_garbage_collection() if timed else contextlib.nullcontext():
            start = time.perf_counter()
            output = scheduler.schedule()
            middle = time.perf_counter()
            result = model_output(scheduler, output)
            sampled = time.perf_counter()
            scheduler.update_from_output(output, result)
            end = time.perf_counter()
        if timed:
            steps.append((middle - start) + (end - sampled))
            continue
        steps.append(
            {
                "scheduled": {str(k): int(v) for k, v in output.num_scheduled_tokens.items()},
                "preempted": sorted(output.preempted_req_ids or ()),
                "finished": sorted(r for r, t in by_id(result).items() if is_last(trace, r, t)),
                "tables": {
                    request.request_id: scheduler.kv_cache_manager.get_block_ids(
                        request.request_id
                    )[0]
                    for request in scheduler.running
                },
                "free_blocks": pool.get_num_free_blocks(),
            }
        )
    return steps


@contextlib.contextmanager
def no_garbage_collection():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def by_id(result):
    return dict(zip(result.req_ids, result.sampled_token_ids))


def is_last(trace, request_id, tokens):
    return bool(tokens) and tokens[0] == token_of(int(request_id), trace, last=True)


def token_of(index, trace, num_tokens=0, last=False):
    """The made-up token of a request: its last one tells that it is the last."""
    _, prompt, max_tokens = trace["requests"][index]
    if last or num_tokens == len(prompt) + max_tokens - 1:
        return 600 + index
    return (31 * index + 7 * num_tokens) % 500


def model_output(scheduler, output):
    ids = list(output.num_scheduled_tokens)
    tokens = []
    for request_id in ids:
        request = scheduler.requests[request_id]
        caught_up = request.num_computed_tokens >= request.num_tokens
        index = int(request_id)
        tokens.append([token_of(index, scheduler.trace, request.num_tokens)] if caught_up else [])
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
        sampled_token_ids=tokens,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def new_scheduler(trace, checkpoint):
    options, block_size = trace["options"], trace["block_size"]
    config = VllmConfig(
        model_config=ModelConfig(
            model=checkpoint, skip_tokenizer_init=True, dtype="float32", max_model_len=4096
        ),
        scheduler_config=SchedulerConfig(
            **options, max_model_len=4096, is_encoder_decoder=False, async_scheduling=False
        ),
        cache_config=CacheConfig(
            block_size=block_size, enable_prefix_caching=trace["enable_caching"]
        ),
        device_config=DeviceConfig("cpu"),
    )
    config.cache_config.num_gpu_blocks = trace["num_blocks"]
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    cache = KVCacheConfig(
        num_blocks=trace["num_blocks"],
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    scheduler = Scheduler(config, cache, StructuredOutputManager(config), block_size=block_size)
    scheduler.trace = trace
    return scheduler


def make_request(index, trace, _, prompt, max_tokens):
    return Request(
        request_id=str(index),
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0),
        pooling_params=None,
        arrival_time=float(index),
        block_hasher=get_request_block_hasher(trace["block_size"], sha256),
    )
