"""The rate at which a server is full, from runs at several rates: fitted, not read off a curve.

A run of N requests that are sent at rate λ lasts as long as sending them, N / λ, or as long as
serving them, N / C, whichever is longer, and then the time W that the last answer takes alone:

    duration = N · max(1 / λ, 1 / C) + W

The plain quotient N / duration stays below λ also where the server follows, because of W, and the
more so the shorter the run. The fit accounts for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARGIN = 1.01  # how far from the lowest and the highest rate C has to be to have been seen


class Saturation(NamedTuple):
    """What `locate_saturation` found."""

    requests_per_s: float  # C: what the server sustains
    tail_s: float  # W: what the last answer takes
    num_followed: int  # at how many of the rates the server kept up


def locate_saturation(
    rates_per_s: Sequence[float], num_requests: Sequence[int], durations_s: Sequence[float]
) -> Saturation:
    """The C and W for which the squared differences of the durations have the smallest sum.

    Args:
        rates_per_s: requests offered a second in each run of one workload, in any order; infinite
            if all came at once.
        num_requests: of each run.
        durations_s: from the first request to the last token.

    Raises:
        ValueError: if there are fewer than three runs, or if C is not at least 1 % away from the
            lowest and from the highest rate: it was then not seen, and may lie beyond.
    """
    if len(rates_per_s) < 3:
        raise ValueError(
            f"There are {len(rates_per_s)} runs; two unknowns and a check need at least three."
        )
    order = np.argsort(rates_per_s, kind="stable")
    counts, durations = np.array(num_requests, float)[order], np.array(durations_s, float)[order]
    gaps = 1 / np.array(rates_per_s, float)[order]
    found: list[tuple[float, float, float]] = []
    for split in range(1, len(gaps)):
        # Between two neighbouring rates it is known who is followed, and the model is linear.
        full = np.where(np.arange(len(gaps)) >= split, counts, 0.0)
        rest = durations - np.where(full, 0.0, counts * gaps)
        unknowns = np.stack([full, np.ones(len(gaps))], axis=1)
        gap = np.clip(np.linalg.lstsq(unknowns, rest, rcond=None)[0][0], *gaps[[split, split - 1]])
        tail_s = np.mean(rest - gap * full)
        squares = np.sum((rest - gap * full - tail_s) ** 2)
        found.append((float(squares), float(gap), float(tail_s)))
    _, gap, tail_s = min(found)
    if not MARGIN * gaps[-1] <= gap <= gaps[0] / MARGIN:
        raise ValueError(
            "The server was full at every rate, or at none: offer lower rates, or higher ones."
        )
    return Saturation(1 / gap, tail_s, int(np.sum(gaps >= gap)))
