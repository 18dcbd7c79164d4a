"""How far the simulator is from real vLLM, on runs that it was not fitted to."""

from collections.abc import Iterable
from typing import NamedTuple

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision
from inferlab.analysis.serving_metrics import summary
from inferlab.sim.devices import Device
from inferlab.sim.recorded_runs import RecordedRun
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


class Machine(NamedTuple):
    """What the recorded runs ran on, and what they served."""

    device: Device
    model: ModelShape
    precision: Precision


class Comparison(NamedTuple):
    """One metric of one run."""

    run: RecordedRun
    metric: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Simulated over measured, less one."""
        return self.simulated / self.measured - 1


def simulated(run: RecordedRun, machine: Machine, overheads: Overheads) -> dict[str, float]:
    """The metrics of a recorded run as the simulator has them."""
    step_time = RooflineStepTime(machine.model, machine.device, machine.precision, overheads)
    served = Simulation(
        run.scheduler(), step_time, run.clients(), frontend_s=overheads.frontend_s
    ).run()
    return summary([one.answer for one in served.served])


def compare(
    runs: Iterable[RecordedRun], machine: Machine, overheads: Overheads
) -> list[Comparison]:
    """Every metric of `BARS` of every run."""
    found = []
    for run in runs:
        metrics = simulated(run, machine, overheads)
        found += [Comparison(run, name, run.metrics[name], metrics[name]) for name in BARS]
    return found
