"""Greedy tokens of real vLLM for several checkpoints in turn: runs in the engines' interpreter."""

import gc
import os

# In one process: importing vLLM takes longer than these models take to answer.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.inputs import TokensPrompt


def main(jobs):
    return {name: generate(**job) for name, job in jobs.items()}


def generate(checkpoint, dtype, prompts, max_tokens, ignore_eos):
    llm = LLM(
        checkpoint,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=2048,
        kv_cache_memory_bytes=256 * 2**20,
        block_size=32,
        seed=0,
    )
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=ignore_eos)
    inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return tokens
