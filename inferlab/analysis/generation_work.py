"""How many positions a model computes to write an answer, with and without kept keys and values.

A position is computed when its key and value are. The convention of the whole course: the last
sampled token is returned and not fed back, so nothing is ever computed for it. Of a prompt of P
tokens and an answer of n tokens that makes P + n - 1 positions with a cache. Without one, each new
token has all positions before it computed anew: P, P + 1, …, P + n - 1 of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

Forward = Callable[[list[int], list[Any]], int]
"""`forward(token_ids, kv)` computes the tokens at the positions behind those that `kv` holds,
appends an entry to `kv` for each of them, and returns the token that comes next."""


def generate_without_cache(forward: Forward, prompt: Sequence[int], num_new: int) -> list[int]:
    """The `num_new` tokens that follow `prompt`, with nothing kept between two of them.

    Raises:
        ValueError: if the prompt is empty or no token is asked for; nothing is computed then.
    """
    _check(len(prompt), num_new)
    token_ids = list(prompt)
    for _ in range(num_new):
        token_ids.append(forward(list(token_ids), []))
    return token_ids[len(prompt) :]


def generate_with_cache(forward: Forward, prompt: Sequence[int], num_new: int) -> list[int]:
    """The same tokens, with keys and values kept: each position is computed once.

    Raises:
        ValueError: as `generate_without_cache`.
    """
    _check(len(prompt), num_new)
    kv: list[Any] = []
    output = [forward(list(prompt), kv)]
    while len(output) < num_new:
        output.append(forward(output[-1:], kv))
    return output


def positions_without_cache(num_prompt: int, num_new: int) -> int:
    """Positions that `generate_without_cache` computes: the sum of P + i over i below n.

    Raises:
        ValueError: if either count is below 1.
    """
    _check(num_prompt, num_new)
    return num_new * num_prompt + num_new * (num_new - 1) // 2


def positions_with_cache(num_prompt: int, num_new: int) -> int:
    """Positions that `generate_with_cache` computes: P + n - 1.

    Raises:
        ValueError: if either count is below 1.
    """
    _check(num_prompt, num_new)
    return num_prompt + num_new - 1


def _check(num_prompt: int, num_new: int) -> None:
    if num_prompt < 1 or num_new < 1:
        raise ValueError(
            f"A prompt of {num_prompt} tokens and {num_new} new ones were asked for; both have to "
            "be at least 1."
        )
