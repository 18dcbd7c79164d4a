"""The prompts of vLLM's own `prefix_repetition` dataset: runs in the engines' interpreter.

The load generator joins a prefix and a suffix of a given number of tokens and decodes them; the
server tokenises the text anew, and need not find the same tokens. For each case `[prefix tokens,
seed]` the answer holds, of each prompt in the order in which it is sent, its number of tokens and
how many it has in common, at its start, with the earlier one that is most like it.
"""

from transformers import AutoTokenizer
from vllm.benchmarks.datasets import PrefixRepetitionRandomDataset


def main(data):
    tokenizer = AutoTokenizer.from_pretrained(data["checkpoint"])
    return [lengths(prompts(tokenizer, data, *case)) for case in data["cases"]]


def prompts(tokenizer, data, prefix_tokens, seed):
    dataset = PrefixRepetitionRandomDataset(random_seed=seed, dataset_path=None)
    requests = dataset.sample(
        tokenizer,
        num_requests=data["num_prompts"],
        prefix_len=prefix_tokens,
        suffix_len=data["suffix_tokens"],
        num_prefixes=data["num_prefixes"],
        output_len=1,
    )
    return [tokenizer(request.prompt).input_ids for request in requests]


def lengths(sequences):
    shared = [
        max((in_common(sequence, earlier) for earlier in sequences[:i]), default=0)
        for i, sequence in enumerate(sequences)
    ]
    return [[len(sequence), count] for sequence, count in zip(sequences, shared)]


def in_common(first, second):
    differs = (i for i, (one, other) in enumerate(zip(first, second)) if one != other)
    return next(differs, min(len(first), len(second)))
