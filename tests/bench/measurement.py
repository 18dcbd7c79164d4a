"""A timing with all its samples, and the one line that shows it."""

from statistics import median
from typing import NamedTuple


class Measurement(NamedTuple):
    """Repeated timings of one thing; the two sides of a comparison alternate within one run."""

    name: str
    unit: str  # of the samples, for example "tokens/s" or "µs"
    samples: list[float]

    def __str__(self) -> str:
        low, middle, high = map(shown, (min(self.samples), median(self.samples), max(self.samples)))
        return (
            f"{self.name:<58} {middle:>8} {self.unit:<9} ({low} to {high}, n={len(self.samples)})"
        )


def shown(value: float) -> str:
    """Three significant digits, and every digit before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
