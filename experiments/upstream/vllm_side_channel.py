"""What a tenant learns of another by timing prompts: runs in the engines' interpreter.

In each attack a victim sends a text with its secret, and an attacker sends the same text with each
candidate, alone in the engine. The answer holds, for each arm, secret and candidate, the time until
the attacker's only token (ms) and the tokens of its prompt that the engine says were cached.
"""

import os
import time
from pathlib import Path

# In one process: what is left of the time is the engine's, not that of its sockets.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# With two threads on a machine that does anything else, one waits for the other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from vllm import LLM, SamplingParams

ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


def main(data):
    llm = LLM(
        data["checkpoint"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=data["max_model_len"],
        block_size=data["block_size"],
        kv_cache_memory_bytes=data["kv_cache_memory_bytes"],
        seed=0,
    )
    found = {name: [] for name in data["arms"]}
    for secret in data["secrets"]:  # the arms take turns, so that a disturbance falls on all
        for name, arm in data["arms"].items():
            found[name].append(attack(llm, secret, data["candidates"], **arm))
    return {
        "arms": found,
        "hardware": {"cpu": processor(), "cores": len(os.sched_getaffinity(0))},
    }


def attack(llm, secret, candidates, text, victim, attacker):
    assert llm.reset_prefix_cache()
    ask(llm, "warm up " * 20, "")
    ask(llm, text.format(secret), victim)
    return [ask(llm, text.format(candidate), attacker) for candidate in candidates]


def ask(llm, text, salt):
    prompt = {"prompt": text} | ({"cache_salt": salt} if salt else {})
    started = time.perf_counter()
    (output,) = llm.generate([prompt], ONE_TOKEN, use_tqdm=False)
    return [round(1e3 * (time.perf_counter() - started), 2), output.num_cached_tokens]


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
