"""Probes of the fragmentation meter: how many requests memory admits, with and without paging."""

from typing import Any

import numpy as np

from autograder.observation import refuses
from autograder.probe import probe

EXERCISE = "week04-fragmentation"


def outcome(admission: Any) -> list[int]:
    return [
        admission.admitted,
        admission.rejected,
        admission.used_slots,
        admission.wasted_slots,
    ]


def crowded_reservations(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    return {
        "slots": reservation * int(random.integers(5, 20)) + int(random.integers(reservation)),
        "reservation": reservation,
        "lengths": random.integers(1, reservation + 1, 30),
    }


def ample_reservations(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    return {
        "slots": reservation * int(random.integers(31, 60)),
        "reservation": reservation,
        "lengths": random.integers(1, reservation + 1, 30),
    }


def observe_reservations(code: Any, inputs: Any) -> list[int]:
    return outcome(
        code.admit_contiguous(inputs["slots"], inputs["reservation"], inputs["lengths"].tolist())
    )


@probe(
    title="Reservations of requests of different lengths, more of them than fit",
    exercise=EXERCISE,
    trials=3,
    inputs=crowded_reservations,
    message="When the memory is full, the requests admitted are the first ones, and only their "
    "tokens and their empty slots are counted.",
)
def contiguous_when_full(code: Any, inputs: Any) -> list[int]:
    return observe_reservations(code, inputs)


@probe(
    title="Reservations in a memory with room to spare",
    exercise=EXERCISE,
    trials=3,
    inputs=ample_reservations,
    message="A memory with room for more admits exactly the requests that came.",
)
def contiguous_with_room(code: Any, inputs: Any) -> list[int]:
    return observe_reservations(code, inputs)


def reservations_too_small(random: np.random.Generator) -> dict[str, Any]:
    reservation = int(random.integers(8, 64))
    offers = random.integers(1, reservation, (4, 12))
    for offer, (place, excess) in zip(offers, ((0, 1), (5, 7), (11, 1), (3, 0))):
        offer[place] = reservation + excess
    return {"slots": 10 * reservation, "reservation": reservation, "offers": offers}


@probe(
    title="Requests longer than the reservation, and exactly as long",
    exercise=EXERCISE,
    trials=2,
    inputs=reservations_too_small,
    message="A request that is longer than its reservation is a ValueError wherever it stands in "
    "the list, and one that fills it exactly is not.",
)
def contiguous_too_long(code: Any, inputs: Any) -> list[bool]:
    def refused(lengths: list[int]) -> bool:
        return refuses(
            lambda: code.admit_contiguous(inputs["slots"], inputs["reservation"], lengths)
        )

    return [refused(lengths) for lengths in inputs["offers"].tolist()]


def small_memory(random: np.random.Generator) -> dict[str, Any]:
    return {"slots": int(random.integers(16, 64))}


@probe(
    title="No request at all, and a memory too small for any",
    exercise=EXERCISE,
    inputs=small_memory,
    message="Nothing offered and nothing admitted are ordinary cases: all four counts are defined.",
)
def nothing_admitted(code: Any, inputs: Any) -> list[list[int]]:
    slots = inputs["slots"]
    return [
        outcome(code.admit_contiguous(slots, 8, [])),
        outcome(code.admit_contiguous(slots, slots + 1, [3, slots])),
        outcome(code.admit_paged(slots, 8, [])),
        outcome(code.admit_paged(slots, slots + 1, [3, slots])),
    ]


def crowded_blocks(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([3, 8, 16]))
    return {
        "slots": block_size * int(random.integers(40, 60)),
        "block_size": block_size,
        "lengths": random.integers(1, 6 * block_size, 40),
    }


def blocks_with_remainder(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([5, 8, 16]))
    lengths = random.integers(1, 3 * block_size, 10)
    blocks = int(np.sum(-(-lengths // block_size)))
    # One block short, and the rest of a block besides: the last request does not get in whole.
    lengths[-1] = block_size
    slots = (blocks - 1) * block_size + block_size - 1
    return {"slots": slots, "block_size": block_size, "lengths": lengths}


def every_tail(random: np.random.Generator) -> dict[str, Any]:
    block_size = int(random.choice([4, 7, 16]))
    lengths = random.permutation(np.arange(1, 2 * block_size + 2))
    return {"slots": 1000 * block_size, "block_size": block_size, "lengths": lengths}


def observe_blocks(code: Any, inputs: Any) -> list[int]:
    return outcome(
        code.admit_paged(inputs["slots"], inputs["block_size"], inputs["lengths"].tolist())
    )


@probe(
    title="Paged requests of different lengths, more of them than fit",
    exercise=EXERCISE,
    trials=4,
    inputs=crowded_blocks,
    message="Each admitted request takes its blocks away from those that come later, and one that "
    "does not fit takes nothing.",
)
def paged_when_full(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)


@probe(
    title="A memory that is no whole number of blocks",
    exercise=EXERCISE,
    trials=4,
    inputs=blocks_with_remainder,
    message="What is left over after the last whole block holds nobody.",
)
def paged_remainder(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)


@probe(
    title="Paged requests with every possible tail",
    exercise=EXERCISE,
    trials=3,
    inputs=every_tail,
    message="Used slots hold a token and wasted slots do not; together they make whole blocks.",
)
def paged_tails(code: Any, inputs: Any) -> list[int]:
    return observe_blocks(code, inputs)
