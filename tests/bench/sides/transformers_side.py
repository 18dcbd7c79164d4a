"""Hugging Face `generate` with static batches: a batch ends when its longest request does."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM


@cache
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def prepare(checkpoint, concurrency, requests):
    llm = model(checkpoint)

    def run():
        lengths = []
        for first in range(0, len(requests), concurrency):
            batch = requests[first : first + concurrency]
            longest = max(len(prompt) for prompt, _ in batch)
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
            mask = torch.tensor(
                [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch]
            )
            most = max(output for _, output in batch)
            generated = llm.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert generated.shape[1] == longest + most
            lengths += [output for _, output in batch]
        return lengths

    return run
