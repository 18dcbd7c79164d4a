"""Requests to simulate: when they come, how long they are, and what they share.

Everything is drawn from a seed: the same seed gives the same requests.
"""

import numpy as np

from inferlab.sim.clients import Prompt

# Mean tokens of prompts and answers, and how unequal they are: our choice of what chats are like,
# with long tails. ShareGPT itself was not measured.
CHAT_MEANS = (160, 340)
SPREAD = 0.9  # standard deviation of the logarithm


def poisson(rate_per_s: float, count: int, seed: int) -> np.ndarray:
    """Times in seconds at which requests come that know nothing of one another, `[count]`.

    The gaps are exponential with mean 1 / rate; an infinite rate sends all of them at once.
    """
    return bursts(rate_per_s, count, seed, burstiness=1.0)


def bursts(rate_per_s: float, count: int, seed: int, burstiness: float) -> np.ndarray:
    """As `poisson`, with gaps of a gamma distribution: the smaller `burstiness`, the less even.

    It is the distribution's shape, as in `vllm bench serve --burstiness`: 1 is Poisson, and a large
    number sends at equal intervals.
    """
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / burstiness, count)
    return np.cumsum(gaps) / rate_per_s


def chats(times_s: np.ndarray, seed: int, longest: int = 2048) -> list[Prompt]:
    """Prompts and answers of chats, at most `longest` tokens each: log-normal about their means."""
    random = np.random.default_rng(seed)
    lengths = [
        np.clip(random.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD, len(times_s)), 4, longest)
        for mean in CHAT_MEANS
    ]
    return [
        Prompt(float(due_s), int(prompt), int(output))
        for due_s, prompt, output in zip(times_s, *lengths)
    ]


def alike(times_s: np.ndarray, prompt_tokens: int, output_tokens: int) -> list[Prompt]:
    """Requests that differ only in when they come."""
    return [Prompt(float(due_s), prompt_tokens, output_tokens) for due_s in times_s]


def sharing(
    times_s: np.ndarray,
    seed: int,
    *,
    num_prefixes: int,
    prefix_tokens: int,
    suffix_tokens: int,
    output_tokens: int,
) -> list[Prompt]:
    """Requests that begin with one of `num_prefixes` prefixes, each with as many, in random order.

    That is what `vllm bench serve --dataset-name prefix_repetition` sends.
    """
    prefixes = np.arange(len(times_s)) % num_prefixes
    np.random.default_rng(seed).shuffle(prefixes)
    return [
        Prompt(
            float(due_s),
            prefix_tokens + suffix_tokens,
            output_tokens,
            prefix=int(prefix),
            prefix_tokens=prefix_tokens,
        )
        for due_s, prefix in zip(times_s, prefixes)
    ]
