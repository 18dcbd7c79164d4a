"""What the points of a sweep come to: results, or the reason why there is none."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

Value = int | float | str
Point = dict[str, Value]


class Impossible(NamedTuple):
    """What a point has instead of a result: why there can be none."""

    reason: str


def outcome(compute: Callable[..., Any], point: Point) -> Any:
    """What `compute` returns at `point`, or `Impossible`, with what its ValueError says."""
    try:
        return compute(**point)
    except ValueError as error:
        return Impossible(str(error))


def outcomes(compute: Callable[..., Any], points: Sequence[Point]) -> list[Any]:
    """The outcome of each point, computed on all cores."""
    # By value, because a function of a notebook can be imported by nobody else.
    import cloudpickle  # type: ignore[import-untyped]

    pickled = cloudpickle.dumps(compute)
    # Spawned, because a notebook's kernel has threads, which a fork would cut off.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(_outcome_of_pickled, itertools.repeat(pickled), points, chunksize=4))


def _outcome_of_pickled(compute: bytes, point: Point) -> Any:
    import cloudpickle

    return outcome(cloudpickle.loads(compute), point)
