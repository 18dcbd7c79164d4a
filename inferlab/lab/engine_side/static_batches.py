"""Hugging Face `generate` on static batches: the baseline that continuous batching is held against.

Each line of stdin is `{"name", "dtype", "batch_size", "arguments", "warm_up"}`, where `arguments`
are those of `vllm bench serve`: vLLM's own code makes the prompts and the output lengths, so both
engines get the same requests. Requests are taken in order of arrival; a batch is padded on the left
to its longest prompt and generates until its longest output is done. Only requested tokens count.
"""

import json
import os
import random
import sys
import time
import traceback

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from vllm.benchmarks.datasets import get_samples  # type: ignore[import-not-found]  # noqa: E402
from vllm.benchmarks.serve import add_cli_args  # type: ignore[import-not-found]  # noqa: E402
from vllm.utils.argparse_utils import (  # type: ignore[import-not-found]  # noqa: E402
    FlexibleArgumentParser,
)

loaded: dict[str, tuple[object, object]] = {}


def load(name: str, dtype: str):  # type: ignore[no-untyped-def]
    if name not in loaded:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = (
            AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
            .to(device)
            .eval()
        )
        # The model's own limits on length and its end-of-text token would cut outputs short.
        model.generation_config.eos_token_id = None
        loaded[name] = (tokenizer, model)
    return loaded[name]


def requests(arguments: list[str], tokenizer: object) -> list[tuple[str, int]]:
    """Prompt and output length of each request, as `vllm bench serve` would send them."""
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    parsed = parser.parse_args(arguments[2:])
    random.seed(parsed.seed)
    np.random.seed(parsed.seed)
    samples = get_samples(parsed, tokenizer)
    return [(sample.prompt, sample.expected_output_len) for sample in samples]


def measure(
    name: str, dtype: str, batch_size: int, arguments: list[str], warm_up: bool
) -> dict[str, object]:
    tokenizer, model = load(name, dtype)
    waiting = requests(arguments, tokenizer)[: batch_size if warm_up else None]
    input_lens, output_lens, latencies, padded_tokens = [], [], [], 0
    start = time.perf_counter()
    for first in range(0, len(waiting), batch_size):
        batch = waiting[first : first + batch_size]
        lengths = [length for _, length in batch]
        inputs = tokenizer([text for text, _ in batch], return_tensors="pt", padding=True)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=False,
                min_new_tokens=max(lengths),
                max_new_tokens=max(lengths),
                pad_token_id=tokenizer.pad_token_id,
            )
        generated = output.shape[1] - inputs["input_ids"].shape[1]
        if generated != max(lengths):
            raise RuntimeError(f"generate made {generated} tokens, {max(lengths)} were asked for.")
        finished = time.perf_counter() - start
        input_lens += inputs["attention_mask"].sum(dim=1).tolist()
        output_lens += lengths
        latencies += [finished] * len(batch)
        padded_tokens += output.numel()
    return {
        "duration": time.perf_counter() - start,
        "input_lens": input_lens,
        "output_lens": output_lens,
        "latencies": latencies,
        "padded_tokens": padded_tokens,
    }


for line in sys.stdin:
    try:
        task = json.loads(line)
        answer: dict[str, object] = {"result": measure(**task)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
