"""Fits what an engine reaches of a device's ceilings to recorded runs, by least squares.

Each parameter is fitted as a logarithm, because all are positive and their errors are factors. What
is minimised is the squared logarithm of simulated over measured, of a few metrics of each run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Metrics = Mapping[str, float]
# Of the parameters, by name: the metrics of every run, in the order of the runs.
Simulate = Callable[[dict[str, float]], Sequence[Metrics]]

FITTED = ("output_tokens_per_s", "ttft_p50_ms", "itl_p50_ms")
STEP = 0.05  # of a logarithm, to see what a parameter does
MAX_ITERATIONS = 12


class Fit(NamedTuple):
    """Parameters with the factors of their 95 % intervals: each lies in value /× factor."""

    values: dict[str, float]
    factors: dict[str, float]
    residual: float  # root mean square of the logarithms, about the relative error


def fit(simulate: Simulate, measured: Sequence[Metrics], start: Mapping[str, float]) -> Fit:
    """Gauss-Newton with halved steps, from `start`.

    Raises:
        ValueError: if there are fewer figures than parameters.
    """
    names, targets = list(start), np.log(_figures(measured))
    if len(targets) <= len(names):
        raise ValueError(
            f"{len(targets)} measured figures cannot fix {len(names)} parameters; add runs."
        )

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(logarithms).tolist()))
        difference: np.ndarray = np.log(_figures(simulate(values))) - targets
        return difference

    point = np.log([start[name] for name in names])
    error = residuals(point)
    for _ in range(MAX_ITERATIONS):
        slopes = np.stack(
            [(residuals(point + STEP * unit) - error) / STEP for unit in np.eye(len(names))], axis=1
        )
        step = -np.linalg.lstsq(slopes, error, rcond=None)[0]
        point, better = _descend(residuals, point, step, error)
        if error @ error - better @ better < 1e-4 * (error @ error):
            error = better
            break
        error = better
    freedom = len(error) - len(names)
    covariance = np.linalg.pinv(slopes.T @ slopes) * (error @ error) / freedom
    factors = np.exp(1.96 * np.sqrt(np.diag(covariance)))
    return Fit(
        dict(zip(names, np.exp(point).tolist())),
        dict(zip(names, factors.tolist())),
        float(np.sqrt(error @ error / len(error))),
    )


def _descend(
    residuals: Callable[[np.ndarray], np.ndarray],
    point: np.ndarray,
    step: np.ndarray,
    error: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The first of step, half of it, a quarter … after which the error is smaller."""
    for halvings in range(5):
        tried = point + step / 2**halvings
        found = residuals(tried)
        if found @ found < error @ error:
            return tried, found
    return point, error


def _figures(runs: Sequence[Metrics]) -> np.ndarray:
    return np.array([run[name] for run in runs for name in FITTED])
