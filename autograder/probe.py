"""A probe: an observation of a student's code on inputs that the student has not seen.

A probe never asserts, because what runs beside a student's code can be made to say anything. It
returns what it saw; whoever started it compares that with what the reference makes of the same
inputs.
"""

import importlib
import pkgutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograder.observation import encode

MakeInputs = Callable[[np.random.Generator], Any]
Observe = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Probe:
    """`title` and `message` are shown to students, so they never give the answer away.

    `observe(code, inputs)` gets a namespace with the names that the exercise cell defines.
    """

    title: str
    exercise: str
    message: str  # one full sentence: what the code got wrong
    trials: int
    tolerance: float
    inputs: MakeInputs
    observe: Observe

    @property
    def name(self) -> str:
        """Name of the function that observes."""
        return self.observe.__name__

    def encoded_inputs(self, seed: int) -> list[str]:
        """Inputs of every trial, as text. The same seed gives every probe streams of its own."""
        own = zlib.crc32(self.name.encode())
        generators = (np.random.default_rng([seed, own, trial]) for trial in range(self.trials))
        return [encode(self.inputs(random)) for random in generators]


def probe(
    *,
    title: str,
    exercise: str,
    message: str,
    inputs: MakeInputs,
    trials: int = 1,
    tolerance: float = 0.0,
) -> Callable[[Observe], Probe]:
    """Make the decorated function `observe(code, inputs)` a probe of `exercise`."""

    def decorate(observe: Observe) -> Probe:
        return Probe(title, exercise, message, trials, tolerance, inputs, observe)

    return decorate


def load(week: str) -> list[Probe]:
    """All probes of a week, for example `week04`.

    Raises ModuleNotFoundError when the week has none.
    """
    folder = importlib.import_module(f"autograder.probes.{week}").__path__
    return [
        probe for module in pkgutil.iter_modules(folder) for probe in _probes_in(week, module.name)
    ]


def probes_of(exercise: str) -> list[Probe]:
    """The probes of one exercise, for example `week04-block-pool`, in the order of their module.

    Raises ValueError when there is none: a cell without probes would give away its marks.
    """
    week, _, name = exercise.partition("-")
    module = name.replace("-", "_")
    try:
        found = _probes_in(week, module)
    except ModuleNotFoundError:
        found = []
    if not found:
        raise ValueError(
            f"There is no probe of {exercise}: write at least one in "
            f"autograder/probes/{week}/{module}.py."
        )
    return found


def _probes_in(week: str, module: str) -> list[Probe]:
    found = importlib.import_module(f"autograder.probes.{week}.{module}")
    return [value for value in vars(found).values() if isinstance(value, Probe)]
