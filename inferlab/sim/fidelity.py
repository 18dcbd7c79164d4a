"""How far the simulator is from real vLLM, on points that it was not fitted to."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision
from inferlab.analysis.serving_metrics import summary
from inferlab.sim.devices import Device
from inferlab.sim.recorded_points import RecordedPoint
from inferlab.sim.simulator import Simulation
from inferlab.sim.step_time import Overheads, RooflineStepTime

# The bars of each metric, as a share of what was measured.
BARS = {
    "output_tokens_per_s": 0.05,
    "itl_p50_ms": 0.10,
    "ttft_p50_ms": 0.15,
    "itl_p99_ms": 0.25,
    "ttft_p99_ms": 0.25,
}


# Of the rate at which a server is full, in requests/s.
SATURATION_BAR = 0.10


class Machine(NamedTuple):
    """What the recorded points ran on, and what they served."""

    device: Device
    model: ModelShape
    precision: Precision


class Comparison(NamedTuple):
    """One metric of one point: the median of its repeats, measured and simulated."""

    point: str
    metric: str
    measured: float
    simulated: float
    lowest: float  # of the measured repeats
    highest: float

    @property
    def error(self) -> float:
        """Simulated over measured, less one."""
        return self.simulated / self.measured - 1

    @property
    def spread(self) -> float:
        """How far vLLM is from itself: half the range of its repeats, over their median."""
        return (self.highest - self.lowest) / 2 / self.measured


def medians(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric the median, so that one disturbed repeat does not count."""
    names = (*BARS, "requests_per_s")
    return {name: median(repeat[name] for repeat in repeats) for name in names}


def measured(point: RecordedPoint) -> dict[str, float]:
    """What real vLLM had."""
    return medians([run.metrics for run in point.repeats])


def simulated(point: RecordedPoint, machine: Machine, overheads: Overheads) -> dict[str, float]:
    """What the simulator has for the same settings and the same requests."""
    step_time = RooflineStepTime(machine.model, machine.device, machine.precision, overheads)
    found = []
    for run in point.repeats:
        simulation = Simulation(
            point.scheduler(),
            step_time,
            point.clients(run),
            frontend_s=overheads.frontend_s,
        ).run()
        found.append(summary([one.answer for one in simulation.served]))
    return medians(found)


def compare(
    points: Iterable[RecordedPoint],
    machine: Machine,
    overheads: Overheads,
    metrics: Iterable[str] = tuple(BARS),
) -> list[Comparison]:
    """Each of `metrics` of every point."""
    found = []
    for point in points:
        real, ours = measured(point), simulated(point, machine, overheads)
        for name in metrics:
            values = [run.metrics[name] for run in point.repeats]
            ends = min(values), max(values)
            found.append(Comparison(point.name, name, real[name], ours[name], *ends))
    return found


def alike(found: Iterable[Comparison], metric: str) -> list[list[Comparison]]:
    """Groups of points between which the simulator sees no difference, largest first.

    What they differ in, a larger cache than is needed for one, should change nothing, so that real
    results apart are the machine's doing.
    """
    groups: dict[float, list[Comparison]] = {}
    for one in found:
        if one.metric == metric:
            groups.setdefault(round(one.simulated, 6), []).append(one)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)
