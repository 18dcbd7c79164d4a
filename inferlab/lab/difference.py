"""Which of two measurements is larger, where the repeats can tell. Standard library only.

The rule: with at least three repeats a side, one side is larger if every one of its repeats is
larger than every repeat of the other. It is the strictest case of the rank test of Wilcoxon, Mann
and Whitney. If the two sides do not differ, all n + m repeats are equally likely to come in any
order, and 2 of the (n + m choose n) ways to share the ranks separate the sides: 2 of 20, 10 %, for
three against three, 2.9 % for four against four. Ties make it rarer, and so do the seeds: repeat i
of both sides gets the same requests.

The interval of the ratio is what the same test does not rule out (Hodges and Lehmann): from the
lowest of the first over the highest of the second to the highest over the lowest. If the two sides
differ by a factor, it holds that factor with the rest of the probability, 90 % for three against
three.

What the rule cannot see: the repeats of one point run directly after each other. A machine that
becomes slower between two points looks like a difference between them, so measure on an idle one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from inferlab.lab.table import Table, number, with_range

ENOUGH_REPEATS = 3

Outcome = Literal["larger", "smaller", "not distinguishable", "not measured often enough"]


@dataclass(frozen=True)
class Verdict:
    """What the repeats say about the first side against the second.

    `ratio` is that of the medians (infinite over zero, not a number for zero over zero), and `low`
    to `high` is its interval. `error_rate` is the probability of "larger" or "smaller" if the two
    sides do not differ.
    """

    outcome: Outcome
    ratio: float
    low: float
    high: float
    error_rate: float

    def __str__(self) -> str:
        if not math.isfinite(self.ratio):
            return self.outcome
        return f"{self.outcome}, × {with_range(self.ratio, self.low, self.high)}"


class ClaimError(ValueError):
    """The repeats do not allow the claim; the message holds what was measured."""


def differs(first: Sequence[float], second: Sequence[float]) -> Verdict:
    """Compare the repeats of one metric, which are counts, times or rates.

    Raises:
        ValueError: if a value is negative, infinite or not a number.
    """
    for value in (*first, *second):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"A repeat is {value}, and a finite value of at least 0 is expected.")
    n, m = len(first), len(second)
    if min(n, m) < ENOUGH_REPEATS:
        return Verdict("not measured often enough", math.nan, 0, math.inf, 0)
    outcome: Outcome = "not distinguishable"
    if min(first) > max(second):
        outcome = "larger"
    elif max(first) < min(second):
        outcome = "smaller"
    return Verdict(
        outcome,
        ratio=quotient(median(first), median(second), math.nan),
        low=quotient(min(first), max(second), 0),
        high=quotient(max(first), min(second), math.inf),
        error_rate=2 / math.comb(n + m, n),
    )


def quotient(above: float, below: float, both_zero: float) -> float:
    """`above / below`, infinite over zero."""
    if below:
        return above / below
    return math.inf if above else both_zero


def claim(table: Table, metric: str, *, larger: dict[str, Any], smaller: dict[str, Any]) -> float:
    """How many times larger the median of `metric` is at the point `larger` than at `smaller`.

    A chapter that says "A is faster than B" calls it, so that the page does not build once the
    repeats no longer say so. Each side is given by parameters that one point has.

    Raises:
        ClaimError: if the ranges of the repeats overlap, or a side has too few repeats.
        KeyError: if not exactly one point has the parameters, or there is no such metric.
    """
    above, below = table.repeats(metric, **larger), table.repeats(metric, **smaller)
    verdict = differs(above, below)
    if verdict.outcome == "larger":
        return verdict.ratio
    measured = " and ".join(
        f"{metric} was {listed(values)} at {named(parameters)}"
        for values, parameters in ((above, larger), (below, smaller))
    )
    if verdict.outcome == "not measured often enough":
        raise ClaimError(
            f"{measured}: a claim needs {ENOUGH_REPEATS} repeats a side. Raise `repeats` in the "
            f"specification and run the experiment again."
        )
    raise ClaimError(
        f"{measured}: that does not show the first to be larger, because not all of its repeats "
        f"lie above all of the second's. Measure more repeats, or take the claim back."
    )


def listed(values: Sequence[float]) -> str:
    return ", ".join(number(value) for value in values) or "not measured"


def named(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())
