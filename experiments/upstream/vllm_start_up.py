"""Starts vLLM with pools of several sizes: runs in the engines' interpreter.

For each case the answer holds the engine's own line on its KV cache and the number of preemptions
that `num_requests` requests of full length cause, or the reason why it refuses to start.
"""

import gc
import logging
import os

# In one process: importing vLLM takes longer than this model takes to answer.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.inputs import TokensPrompt

make_record = logging.getLogRecordFactory()
lines = []


def make_and_keep_record(*arguments, **options):
    record = make_record(*arguments, **options)
    lines.append(record.getMessage())
    return record


# Not a handler: vLLM configures its loggers when it first starts, and drops the handlers of others.
logging.setLogRecordFactory(make_and_keep_record)


def main(data):
    return [start(data["checkpoint"], **case) for case in data["cases"]]


def start(checkpoint, max_model_len, num_requests, **options):
    lines.clear()
    try:
        llm = LLM(
            checkpoint,
            dtype="float32",
            enforce_eager=True,
            max_model_len=max_model_len,
            enable_prefix_caching=False,
            disable_log_stats=False,
            seed=0,
            **options,
        )
    except ValueError as error:
        return {"refused": str(error).partition(". Try")[0]}
    (report,) = (line for line in lines if "KV cache size" in line)
    half = max_model_len // 2
    params = SamplingParams(temperature=0, max_tokens=max_model_len - half, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=[9] * half) for _ in range(num_requests)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    (preemptions,) = (m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    assert lengths == [max_model_len - half] * num_requests
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return {"report": report, "preemptions": preemptions}
