"""Runs vLLM's own Scheduler over traces, with no model: runs in the engines' interpreter.

A trace names the scheduler's `options`, the pool (`num_blocks` of `block_size` tokens, and
`enable_caching`), and its `requests` in order of arrival: the step before which a request arrives,
its prompt and its `max_tokens`. A request is named by its place in that list.

Each step is observed as the tokens scheduled by request, who was preempted, who finished, the block
table of each running request, and how many blocks are free after it.
"""

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
MAX_MODEL_LEN = 4096


def main(data):
    return [run(trace, data["checkpoint"]) for trace in data["traces"]]


def run(trace, checkpoint):
    scheduler = new_scheduler(trace, checkpoint)
    arrivals = [new_request(place, trace) for place in range(len(trace["requests"]))]
    steps = []
    while arrivals or scheduler.has_unfinished_requests():
        while arrivals and trace["requests"][-len(arrivals)][0] <= len(steps):
            scheduler.add_request(arrivals.pop(0))
        output = scheduler.schedule()
        result = model_output(trace, scheduler, output)
        scheduler.update_from_output(output, result)
        steps.append(observe(trace, scheduler, output, result))
    return steps


def observe(trace, scheduler, output, result):
    manager = scheduler.kv_cache_manager
    sampled = zip(result.req_ids, result.sampled_token_ids)
    return {
        "scheduled": {str(k): int(v) for k, v in output.num_scheduled_tokens.items()},
        "preempted": sorted(output.preempted_req_ids or ()),
        "finished": sorted(name for name, tokens in sampled if tokens == [last_token(name)]),
        "tables": {
            request.request_id: manager.get_block_ids(request.request_id)[0]
            for request in scheduler.running
        },
        "free_blocks": manager.block_pool.get_num_free_blocks(),
    }


def last_token(request_id):
    """The made-up token that tells that a request is done; no other token is as large."""
    return 600 + int(request_id)


def model_output(trace, scheduler, output):
    """What a model might sample: a token for every request whose tokens are all computed."""
    ids = list(output.num_scheduled_tokens)
    sampled = []
    for request_id in ids:
        request = scheduler.requests[request_id]
        _, prompt, max_tokens = trace["requests"][int(request_id)]
        if request.num_computed_tokens < request.num_tokens:
            sampled.append([])
        elif request.num_tokens == len(prompt) + max_tokens - 1:
            sampled.append([last_token(request_id)])
        else:
            sampled.append([(31 * int(request_id) + 7 * request.num_tokens) % 500])
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def new_scheduler(trace, checkpoint):
    block_size, num_blocks = trace["block_size"], trace["num_blocks"]
    config = VllmConfig(
        model_config=ModelConfig(
            model=checkpoint, skip_tokenizer_init=True, dtype="float32", max_model_len=MAX_MODEL_LEN
        ),
        scheduler_config=SchedulerConfig(
            **trace["options"],
            max_model_len=MAX_MODEL_LEN,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(
            block_size=block_size, enable_prefix_caching=trace["enable_caching"]
        ),
        device_config=DeviceConfig("cpu"),
    )
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    groups = [KVCacheGroupSpec(["layer"], spec)]
    cache = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    return Scheduler(config, cache, StructuredOutputManager(config), block_size=block_size)


def new_request(place, trace):
    _, prompt, max_tokens = trace["requests"][place]
    return Request(
        request_id=str(place),
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0),
        pooling_params=None,
        arrival_time=float(place),
        block_hasher=get_request_block_hasher(trace["block_size"], sha256),
    )
