"""How far the simulator is from real vLLM, on points that it was not fitted to."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision
from inferlab.analysis.serving_metrics import summary
from inferlab.sim.devices import Device
from inferlab.sim.recorded_points import RecordedPoint
from inferlab.sim.simulator import Simulation, StepTime
from inferlab.sim.step_time import Overheads, RooflineStepTime

# The bars of each metric, as a share of what was measured.
BARS = {
    "output_tokens_per_s": 0.05,
    "itl_p50_ms": 0.10,
    "ttft_p50_ms": 0.15,
    "itl_p99_ms": 0.25,
    "ttft_p99_ms": 0.25,
}


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

    @property
    def error(self) -> float:
        """Simulated over measured, less one."""
        return self.simulated / self.measured - 1


def medians(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric of `BARS` the median, so that one disturbed repeat does not count."""
    return {name: median(repeat[name] for repeat in repeats) for name in BARS}


def measured(point: RecordedPoint) -> dict[str, float]:
    """What real vLLM had."""
    return medians([run.metrics for run in point.repeats])


def simulated(point: RecordedPoint, machine: Machine, overheads: Overheads) -> dict[str, float]:
    """What the simulator has for the same settings and requests, on a machine as slow as it was."""
    step_time = RooflineStepTime(machine.model, machine.device, machine.precision, overheads)
    found = []
    for run in point.repeats:
        simulation = Simulation(
            point.scheduler(),
            slowed(step_time, run.slowness),
            point.clients(run),
            frontend_s=run.slowness * overheads.frontend_s,
        ).run()
        found.append(summary([one.answer for one in simulation.served]))
    return medians(found)


def slowed(step_time: StepTime, slowness: float) -> StepTime:
    """The same steps, each so many times as long."""
    return lambda step: slowness * step_time(step)


def compare(
    points: Iterable[RecordedPoint], machine: Machine, overheads: Overheads
) -> list[Comparison]:
    """Every metric of `BARS` of every point."""
    found = []
    for point in points:
        real, ours = measured(point), simulated(point, machine, overheads)
        found += [Comparison(point.name, name, real[name], ours[name]) for name in BARS]
    return found
