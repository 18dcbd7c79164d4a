"""Prompts and the rule by which greedy tokens of two implementations count as equal."""

from pathlib import Path

import numpy as np

from inferlab.engine import LLM, SamplingParams
from inferlab.models import corpus

MARGIN = 1e-4
"""Two float32 implementations may break a tie of the logits differently (design, section 5)."""

MAX_NEW_TOKENS = 24


def prompts(llm: LLM) -> list[list[int]]:
    """Sixty prompts: every task, random ids, one token, long ones, and repeats of each other."""
    chats = [
        llm.tokenizer.encode(f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>").ids
        for task in corpus.TASKS
        for example in corpus.held_out_examples(task, 7)
    ]
    rng = np.random.default_rng(0)
    random = [
        rng.integers(6, llm.model.config.vocab_size, size=n).tolist()
        for n in (1, 1, 2, 15, 16, 17, 257, 700, 1500)
    ]
    return chats + random + [chats[0], chats[0], random[7], random[0], chats[3] * 4] * 2


def expected_tokens(checkpoint: Path, asked: list[list[int]]) -> list[list[int]]:
    """What transformers generates greedily for each prompt alone, in float32.

    Its `generate` would take minutes. Instead it scores the engine's tokens, all positions in one
    pass: up to the first difference, and no further, that is what it would have generated.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    llm = LLM(checkpoint, max_num_seqs=1, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
    tokens = []
    for prompt, completion in zip(asked, llm.generate(asked, params)):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + completion.token_ids])).logits
        tokens.append(logits[0, -1 - MAX_NEW_TOKENS : -1].argmax(-1).tolist())
    return tokens


def disagreements(llm: LLM, asked: list[list[int]], expected: list[list[int]]) -> int:
    """Prompts whose tokens differ at a near-tie; fails on any other difference.

    After a near-tie the two sequences are different texts, so only the first difference is judged.
    """
    params = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0, ignore_eos=True)
    near_ties = 0
    for prompt, mine, theirs in zip(asked, llm.generate(asked, params), expected):
        assert len(mine.token_ids) == len(theirs)
        differing = [i for i, pair in enumerate(zip(mine.token_ids, theirs)) if pair[0] != pair[1]]
        if differing:
            context = prompt + theirs[: differing[0]]
            margin = decision_margin(llm, context)
            assert margin < MARGIN, (
                f"After {len(context)} tokens the engine chose {mine.token_ids[differing[0]]} and "
                f"the oracle {theirs[differing[0]]}, with a margin of {margin:.2g} between the "
                f"two best logits; below {MARGIN} a difference would be a tie."
            )
            near_ties += 1
    return near_ties


def decision_margin(llm: LLM, context: list[int]) -> float:
    """Gap between the two best logits after `context`, on a cache of its own."""
    from inferlab.engine import SequenceChunk, make_batch

    num_blocks = -(-len(context) // 16) + 1
    chunk = SequenceChunk(context, 0, range(1, num_blocks))
    batch = make_batch([chunk], 16)
    hidden = llm.model.forward(batch, llm.model.new_kv_cache(num_blocks, 16))
    second, best = np.sort(llm.model.logits(hidden[-1:])[0])[-2:]
    return float(best - second)
