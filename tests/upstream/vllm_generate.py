"""Greedy tokens of real vLLM in float32: runs in the engines' interpreter."""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main(data):
    llm = LLM(
        data["checkpoint"],
        dtype=data.get("dtype", "float32"),
        enforce_eager=True,
        max_model_len=2048,
        kv_cache_memory_bytes=256 * 2**20,
        block_size=32,
        seed=0,
    )
    params = SamplingParams(
        temperature=0, max_tokens=data["max_tokens"], ignore_eos=data["ignore_eos"]
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in data["prompts"]]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
