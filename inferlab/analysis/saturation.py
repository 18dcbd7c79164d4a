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

MARGIN = 1.01  # how far apart two rates have to be to be told apart


class Saturation(NamedTuple):
    """What `locate_saturation` found."""

    requests_per_s: float  # C: what the server sustains
    tail_s: float  # W: what the last answer takes
    num_followed: int  # at how many of the rates, from the lowest, the server kept up


def locate_saturation(
    rates_per_s: Sequence[float], num_requests: Sequence[int], durations_s: Sequence[float]
) -> Saturation:
    """Fit C and W to runs of one workload by least squares of the durations.

    The runs are split into those that the server followed, at the lower rates, and those that it
    did not. For every place of the split C and W are found. A split is consistent if the highest
    rate that was followed lies below C and the lowest that was not above it, each by at least 1 %
    (of the shorter of the two gaps between requests). Of the consistent ones that with the smallest
    sum of squares is taken.

    Args:
        rates_per_s: requests offered a second in each run, in any order; infinite: all at once.
        num_requests: of each run.
        durations_s: from the first request to the last token.

    Raises:
        ValueError: if there are fewer than three runs, or no split is consistent.
    """
    if len(rates_per_s) < 3:
        raise ValueError(
            f"There are {len(rates_per_s)} runs; two unknowns and a check need at least three."
        )
    order = np.argsort(rates_per_s, kind="stable")
    counts, durations = np.array(num_requests, float)[order], np.array(durations_s, float)[order]
    gaps = 1 / np.array(rates_per_s, float)[order]
    found: list[tuple[float, Saturation]] = []
    for split in range(1, len(gaps)):
        is_full = np.arange(len(gaps)) >= split
        design = np.stack([np.where(is_full, counts, 0), np.ones(len(gaps))], axis=1)
        target = durations - np.where(is_full, 0, counts * gaps)
        solution = np.linalg.lstsq(design, target, rcond=None)[0]
        gap, tail_s = solution
        if gaps[split - 1] >= MARGIN * gap and gap >= MARGIN * gaps[split]:
            squares = float(((design @ solution - target) ** 2).sum())
            found.append((squares, Saturation(float(1 / gap), float(tail_s), split)))
    if not found:
        raise ValueError(
            "No rate separates runs that were followed from runs that were not: offer lower rates, "
            "higher rates, or more requests."
        )
    return min(found)[1]
