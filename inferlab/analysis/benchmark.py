"""What repeated measurements say: a median with an interval, or that there are too few of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000


class Summary(NamedTuple):
    """The median of some samples, and an interval for the median that they were drawn around."""

    num_samples: int
    median: float
    low: float
    high: float

    @property
    def half_width_share(self) -> float:
        """Half the interval's width as a share of the median: the precision of the result."""
        return (self.high - self.low) / 2 / self.median


def fewest_samples(confidence: float) -> int:
    """The fewest independent samples whose range covers their distribution's median that surely.

    Each sample is below the median with a probability of one half, so all n are on one side of it
    with 2 · (1/2)^n, and their range misses it exactly then. An interval inside the range cannot do
    better: with fewer samples there is none at this confidence, whatever formula is used.

    Args:
        confidence: between 0 and 1, both excluded; 0.95 needs 6 samples.

    Raises:
        ValueError: if `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"The confidence is {confidence}; it has to be between 0 and 1.")
    num_samples = 1
    while 1 - 2 * 0.5**num_samples < confidence:
        num_samples += 1
    return num_samples


def resample(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`NUM_RESAMPLES` draws with replacement, each as large as `samples` and one a row."""
    return rng.choice(samples, (NUM_RESAMPLES, len(samples)))


def checked(samples: Sequence[float], confidence: float) -> np.ndarray:
    """The samples as an array.

    Raises:
        ValueError: if one of them is not finite, or there are fewer than `fewest_samples`.
    """
    needed = fewest_samples(confidence)
    if len(samples) < needed:
        raise ValueError(
            f"{len(samples)} samples give no interval at a confidence of {confidence}: it takes "
            f"{needed} or more. Measure more often, or report the samples themselves."
        )
    values = np.asarray(samples, dtype=float)
    if not np.isfinite(values).all():
        wrong = next(value for value in samples if not math.isfinite(value))
        raise ValueError(f"One of the samples is {wrong}: leave no failed run among the others.")
    return values


def summarise(samples: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Summary:
    """The median and its percentile-bootstrap interval.

    The interval holds the middle `confidence` of the medians of the resamples of `samples`, drawn
    by one call of `resample` with a generator seeded with `seed`.

    Raises:
        ValueError: if a sample is not finite, or there are fewer than `fewest_samples`.
    """
    values = checked(samples, confidence)
    medians = np.median(resample(values, np.random.default_rng(seed)), axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Summary(len(values), float(np.median(values)), float(low), float(high))


def speedup(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Summary:
    """How many times as long `before` took as `after`: the ratio of medians, and its interval.

    The two are resampled independently, `before` first, with one generator. An interval that
    holds 1 shows no difference. `num_samples` is that of the smaller of the two.

    Raises:
        ValueError: as `summarise`, for either; or if a sample is not above 0.
    """
    values = [checked(before, confidence), checked(after, confidence)]
    if min(found.min() for found in values) <= 0:
        raise ValueError("A duration has to be above 0 to be compared by a ratio.")
    rng = np.random.default_rng(seed)
    slow, fast = (np.median(resample(found, rng), axis=1) for found in values)
    tail = (1 - confidence) / 2
    low, high = np.quantile(slow / fast, [tail, 1 - tail])
    ratio = np.median(values[0]) / np.median(values[1])
    return Summary(min(map(len, values)), float(ratio), float(low), float(high))
