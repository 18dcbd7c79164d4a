"""A meter for KV memory: what contiguous reservation and paging admit, and what they waste."""

from collections.abc import Sequence
from typing import NamedTuple


class Admission(NamedTuple):
    """The outcome of offering requests to a memory of fixed size, first come, first served."""

    admitted: int  # requests that got memory
    rejected: int  # requests that did not
    used_slots: int  # slots that hold a token
    wasted_slots: int  # slots that are taken by an admitted request and hold no token

    @property
    def waste_share(self) -> float:
        """Wasted share of the slots taken, 0 to 1; 0 if none is taken."""
        taken = self.used_slots + self.wasted_slots
        return self.wasted_slots / taken if taken else 0.0


def admit_contiguous(num_slots: int, max_length: int, lengths: Sequence[int]) -> Admission:
    """Admit requests that each reserve `max_length` adjacent slots, whatever they will use.

    Args:
        num_slots: token slots in the memory.
        max_length: slots that every request reserves.
        lengths: tokens that each request really has, at most `max_length` each.

    Raises:
        ValueError: if a request is longer than its reservation.
    """
    if lengths and max(lengths) > max_length:
        raise ValueError(
            f"A request of {max(lengths)} tokens does not fit its reservation of {max_length}."
        )
    admitted = min(len(lengths), num_slots // max_length)
    used = sum(lengths[:admitted])
    return Admission(admitted, len(lengths) - admitted, used, admitted * max_length - used)


def admit_paged(num_slots: int, block_size: int, lengths: Sequence[int]) -> Admission:
    """Admit requests that each take `ceil(length / block_size)` blocks, anywhere in memory.

    A request that does not fit is rejected, and a later, shorter one may still be admitted.

    Args:
        num_slots: token slots in the memory; a remainder too small for a block is not usable.
        block_size: slots in a block.
        lengths: tokens of each request.
    """
    free_blocks = num_slots // block_size
    admitted = used = wasted = 0
    for length in lengths:
        num_blocks = -(-length // block_size)
        if num_blocks > free_blocks:
            continue
        free_blocks -= num_blocks
        admitted += 1
        used += length
        wasted += num_blocks * block_size - length
    return Admission(admitted, len(lengths) - admitted, used, wasted)
