"""What a prefix cache saves, counted on paper: from the tokens alone, with no hash and no table.

Holds while nothing is evicted, for requests that are admitted one after another. The same law is
kept by `engine.KVCacheManager`, by vLLM's `KVCacheManager` and by its server's counters.
"""

from collections.abc import Sequence


def hit_tokens(num_prompt_tokens: int, num_shared_tokens: int, block_size: int) -> int:
    """Tokens of a prompt that are found in a cache, where whole blocks of it are kept.

    Args:
        num_prompt_tokens: tokens of the prompt; the last is computed in any case, since its logits
            are needed and only a forward pass gives logits.
        num_shared_tokens: how many tokens at its start the prompt has in common with a sequence
            whose K and V are in the cache.
        block_size: tokens of a block.

    Raises:
        ValueError: if the prompt is empty, a block holds no token, or more is shared than there is.
    """
    if num_prompt_tokens < 1 or block_size < 1:
        raise ValueError(
            f"The prompt has {num_prompt_tokens} tokens and a block {block_size}; "
            "both have to be at least 1."
        )
    if not 0 <= num_shared_tokens <= num_prompt_tokens:
        raise ValueError(
            f"A prompt of {num_prompt_tokens} tokens cannot share {num_shared_tokens} of them."
        )
    return min(num_shared_tokens, num_prompt_tokens - 1) // block_size * block_size


def saved_tokens(
    num_requests: int, num_prompt_tokens: int, num_shared_tokens: int, block_size: int
) -> int:
    """Tokens not computed when requests of one length share their first tokens: all but one hit.

    Raises:
        ValueError: as `hit_tokens`.
    """
    hit = hit_tokens(num_prompt_tokens, num_shared_tokens, block_size)
    return max(0, num_requests - 1) * hit


def predicted_hits(
    prompts: Sequence[Sequence[int]],
    block_size: int,
    answers: Sequence[Sequence[int]] | None = None,
) -> list[int]:
    """Tokens that each prompt hits when they come in this order.

    Args:
        prompts: token ids of each.
        answers: token ids that were generated for each. Its last token has been sampled and never
            fed back, so there is no K and V of it. Without answers the prompts alone are cached.

    Raises:
        ValueError: as `hit_tokens`, or if there are not as many answers as prompts.
    """
    if answers is None:
        answers = [()] * len(prompts)
    if len(answers) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts and {len(answers)} answers; "
            "each prompt has one answer."
        )
    cached: list[list[int]] = []
    hits = []
    for prompt, answer in zip(prompts, answers):
        shared = max((common_prefix_length(prompt, sequence) for sequence in cached), default=0)
        hits.append(hit_tokens(len(prompt), shared, block_size))
        cached.append([*prompt, *answer[:-1]])
    return hits


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    for length, (one, other) in enumerate(zip(first, second)):
        if one != other:
            return length
    return min(len(first), len(second))
