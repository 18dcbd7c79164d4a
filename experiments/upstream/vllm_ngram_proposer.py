"""The drafts of vLLM's real `NgramProposer`: runs in the engines' interpreter.

`data` holds `cases`, each with `min_n`, `max_n`, `num_speculative_tokens` and `sequences`; the
answer holds the drafts for each sequence of each case. No model is loaded: the proposer reads six
numbers of its configuration, and these are given to it directly.
"""

from types import SimpleNamespace

import numpy as np
from vllm.v1.spec_decode.ngram_proposer import NgramProposer

MAX_MODEL_LEN = 256


def main(data):
    return [drafts(**case) for case in data["cases"]]


def drafts(min_n, max_n, num_speculative_tokens, sequences):
    proposer = NgramProposer(
        SimpleNamespace(
            speculative_config=SimpleNamespace(
                prompt_lookup_min=min_n,
                prompt_lookup_max=max_n,
                num_speculative_tokens=num_speculative_tokens,
            ),
            model_config=SimpleNamespace(max_model_len=MAX_MODEL_LEN),
            scheduler_config=SimpleNamespace(max_num_seqs=1024),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
        )
    )
    tokens = np.zeros((len(sequences), MAX_MODEL_LEN), np.int32)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = sequence
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    sampled = [sequence[-1:] for sequence in sequences]
    return proposer.propose(num_speculative_tokens, sampled, lengths, tokens)
