"""Probes of the block hashes: which of them are equal, never what they are."""

from typing import Any

import numpy as np

from autograder.probe import probe

EXERCISE = "week05-block-hashes"


def alike(hashes: list[Any]) -> list[Any]:
    """For each hash the place of the first that equals it, and whether it is bytes."""
    return [[hashes.index(one), isinstance(one, bytes)] for one in hashes]


def tokens(random: np.random.Generator, count: int) -> list[int]:
    return [int(token) for token in random.integers(1, 1000, count)]


def chain(code: Any, token_ids: list[int], block_size: int, salt: str = "") -> list[Any]:
    hashes: list[Any] = []
    code.extend_block_hashes(hashes, token_ids, block_size, salt)
    return hashes


def orders(random: np.random.Generator) -> list[list[int]]:
    block = tokens(random, 4)
    reordered = [random.permutation(block).tolist() for _ in range(5)]
    return [block, sorted(block), *reordered, block[::-1], block]


@probe(
    title="The same tokens in another order",
    exercise=EXERCISE,
    trials=3,
    inputs=orders,
    message="Blocks with the same tokens in another order are different blocks.",
)
def hashes_of_orders(code: Any, inputs: Any) -> list[Any]:
    return alike([code.hash_block_tokens(None, block) for block in inputs])


def lookalikes(random: np.random.Generator) -> list[list[int]]:
    a, b = (int(digit) for digit in random.integers(1, 10, 2))
    return [[10 * a + b, a, b], [a, 10 * b + a, b], [a, b, 10 * a + b], [a, 10 * b, b], [a, b, b]]


@probe(
    title="Tokens whose digits, written one after another, look alike",
    exercise=EXERCISE,
    trials=3,
    inputs=lookalikes,
    message="Different token ids have run together: one list of ids has been taken for another.",
)
def hashes_of_lookalikes(code: Any, inputs: Any) -> list[Any]:
    return alike([code.hash_block_tokens(None, block) for block in inputs])


def large_ids(random: np.random.Generator) -> list[list[int]]:
    block = tokens(random, 4)
    place = int(random.integers(4))
    steps = [0, 2**8, 2**15, 2**16, 2**17, 2**20]
    return [[token + step * (i == place) for i, token in enumerate(block)] for step in steps]


@probe(
    title="Token ids of a large vocabulary that agree in their last bits",
    exercise=EXERCISE,
    trials=2,
    inputs=large_ids,
    message="Token ids that differ by a power of two have the same hash.",
)
def hashes_of_large_ids(code: Any, inputs: Any) -> list[Any]:
    return alike([code.hash_block_tokens(None, block) for block in inputs])


def changed_places(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([2, 3, 5]))
    token_ids = tokens(random, 5 * block_size)
    variants = [token_ids]
    for place in random.choice(5 * block_size, 4, replace=False):
        variants.append([t + 1000 * (i == place) for i, t in enumerate(token_ids)])
    return {"block_size": block_size, "variants": variants}


@probe(
    title="One token changed, anywhere in a sequence of five blocks",
    exercise=EXERCISE,
    trials=3,
    inputs=changed_places,
    message="A changed token has to change the hash of its block and of every block after it, and "
    "of none before it.",
)
def hashes_behind_a_change(code: Any, inputs: Any) -> list[Any]:
    chains = (chain(code, variant, inputs["block_size"]) for variant in inputs["variants"])
    return alike([one for hashes in chains for one in hashes])


def growing(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([2, 4]))
    token_ids = tokens(random, 9 * block_size + 1)
    ends = np.unique(random.integers(1, len(token_ids), 4)).tolist()
    return {"block_size": block_size, "token_ids": token_ids, "ends": [*ends, len(token_ids)]}


def grown(code: Any, inputs: Any, salt: str) -> list[Any]:
    """The hashes of a sequence that was hashed in pieces, each from where the hashes ended."""
    hashes: list[Any] = []
    for end in inputs["ends"]:
        done = len(hashes) * inputs["block_size"]
        code.extend_block_hashes(hashes, inputs["token_ids"][done:end], inputs["block_size"], salt)
    return hashes


@probe(
    title="A sequence that grows, hashed piece by piece and at once",
    exercise=EXERCISE,
    trials=3,
    inputs=growing,
    message="The hashes of a sequence depend on the pieces in which it was hashed.",
)
def hashes_in_pieces(code: Any, inputs: Any) -> list[Any]:
    whole = chain(code, inputs["token_ids"], inputs["block_size"])
    return alike([*whole, *grown(code, inputs, "")])


@probe(
    title="A salted sequence that grows",
    exercise=EXERCISE,
    trials=3,
    inputs=growing,
    message="A salted sequence that is hashed in pieces has other hashes than at once.",
)
def salted_in_pieces(code: Any, inputs: Any) -> list[Any]:
    whole = chain(code, inputs["token_ids"], inputs["block_size"], "tenant")
    return alike([*whole, *grown(code, inputs, "tenant")])


def salts(random: np.random.Generator) -> dict[str, Any]:
    common = "".join(random.choice(list("abcdef"), 6))
    return {
        "token_ids": tokens(random, 6),
        "salts": ["", common, common + "1", common + "2", common[:1], common.upper(), "", common],
    }


@probe(
    title="Salts that begin alike",
    exercise=EXERCISE,
    trials=2,
    inputs=salts,
    message="Sequences with different salts share a hash, or with equal salts they do not.",
)
def hashes_by_salt(code: Any, inputs: Any) -> list[Any]:
    chains = (chain(code, inputs["token_ids"], 2, salt) for salt in inputs["salts"])
    return alike([one for hashes in chains for one in hashes])


@probe(
    title="The blocks into which the salt goes",
    exercise=EXERCISE,
    trials=2,
    inputs=lambda random: tokens(random, 6),
    message="The salt enters the hash of the first block of a sequence, and the others by their "
    "parents alone.",
)
def salt_of_the_first_block(code: Any, inputs: Any) -> list[Any]:
    first = code.hash_block_tokens(None, inputs[:2], "tenant")
    second = code.hash_block_tokens(first, inputs[2:4])
    third = code.hash_block_tokens(second, inputs[4:])
    return alike([first, second, third, *chain(code, inputs, 2, "tenant")])


def edges(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.integers(2, 6))
    lengths = [0, 1, block_size - 1, block_size, block_size + 1, 3 * block_size, 3 * block_size - 1]
    return {
        "block_size": block_size,
        "token_ids": tokens(random, 4 * block_size),
        "lengths": lengths,
    }


@probe(
    title="Sequences without a full block, and at the edges of one",
    exercise=EXERCISE,
    trials=2,
    inputs=edges,
    message="Each full block has a hash, and what fills no block has none.",
)
def number_of_hashes(code: Any, inputs: Any) -> list[Any]:
    chains = [
        chain(code, inputs["token_ids"][:length], inputs["block_size"])
        for length in inputs["lengths"]
    ]
    ones = chain(code, inputs["token_ids"], 1)
    return [[len(hashes) for hashes in chains], len(ones), alike(chains[-1] + chains[-2])]
