"""`python -m inferlab.sim.calibrate`: fits the simulator to recorded runs, and writes the fit."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inferlab.analysis.model_shape import ModelShape
from inferlab.analysis.operators import Precision
from inferlab.sim.calibration import Fit, fit
from inferlab.sim.devices import Device
from inferlab.sim.fidelity import BARS, Comparison, Machine, compare, measured, simulated
from inferlab.sim.recorded_points import RecordedPoint, recorded_points
from inferlab.sim.step_time import Overheads

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "cpu"
TINY_CHAT = ROOT / "inferlab" / "models" / "checkpoints" / "tiny-chat" / "config.json"
FITTED_OVERHEADS = Path(__file__).parent / "fitted_overheads.json"
# What the parameters are fitted to; every other point is held out.
FIT_TO = {("week01/closed-loop", "short-long"), ("week01/request-rates", "long-short")}
HELD_OUT = (
    "week01/closed-loop",
    "week01/kv-memory",
    "week01/request-rates",
    "week04/batching-against-hf",
    "week04/block-size",
    "week04/kv-pool",
    "week07/batch-limit",
    "week08/budget",
    "week08/long-prefill-threshold",
)
# The shares of the bandwidth and in attention are left at 1: the tiny model's weights stay in the
# cache, so its runs do not tell reading them from computing with them, and attention is too small a
# part of its steps to be told from the rest.
START = {
    "arithmetic_share": 0.5,
    "step_s": 5e-3,
    "request_s": 2e-4,
    "frontend_s": 5e-3,
}


def this_machine() -> Machine:
    """The machine of the recorded results, with the ceilings that week 3 measured on it."""
    matmul = _best("week03/matmul-rate", "matmul_best_gflop_per_s")
    copy = _best("week03/copy-bandwidth", "copy_best_gb_per_s")
    device = Device(
        "this machine", {"fp32": 1e9 * matmul}, 1e9 * copy, 0.0, 0.0, "results/cpu/week03"
    )
    model = ModelShape.from_config(json.loads(TINY_CHAT.read_text(encoding="utf-8")))
    return Machine(device, model, Precision(4.0, 4.0, 4.0, "fp32"))


def fitted_machine() -> Machine:
    """`this_machine` as it was when the constants were fitted: needs no other week's results."""
    kept: dict[str, Any] = json.loads(FITTED_OVERHEADS.read_text(encoding="utf-8"))["machine"]
    return Machine(
        Device(**kept["device"]), ModelShape(**kept["model"]), Precision(**kept["precision"])
    )


def _best(experiment: str, metric: str) -> float:
    document = json.loads((RESULTS / f"{experiment}.json").read_text(encoding="utf-8"))
    repeats = (repeat for point in document["points"] for repeat in point["repeats"])
    best: float = max(repeat["metrics"][metric] for repeat in repeats)
    return best


def points(experiments: Iterable[str]) -> list[RecordedPoint]:
    """The recorded points of vLLM in these experiments."""
    return [point for name in experiments for point in recorded_points(RESULTS / f"{name}.json")]


def is_fitted_to(point: RecordedPoint) -> bool:
    return (point.experiment, point.parameters["workload"]) in FIT_TO


def calibrate(machine: Machine) -> Fit:
    """The overheads that fit the points in `FIT_TO` best."""
    fitted = [
        point for point in points(sorted({name for name, _ in FIT_TO})) if is_fitted_to(point)
    ]
    return fit(
        lambda values: [simulated(point, machine, Overheads(**values)) for point in fitted],
        [measured(point) for point in fitted],
        START,
    )


def held_out(machine: Machine, overheads: Overheads) -> list[Comparison]:
    """The simulator beside real vLLM on the points that it was not fitted to."""
    others = (point for point in points(HELD_OUT) if not is_fitted_to(point))
    return compare(others, machine, overheads)


def saturation(machine: Machine, overheads: Overheads) -> list[Comparison]:
    """Requests/s where all come at once; every point that was not fitted to."""
    full = (
        point
        for point in points(HELD_OUT)
        if point.client.get("request-rate") == "inf" and not is_fitted_to(point)
    )
    return compare(full, machine, overheads, ["requests_per_s"])


def fitted() -> Fit:
    """The committed fit."""
    kept: dict[str, Any] = json.loads(FITTED_OVERHEADS.read_text(encoding="utf-8"))["fit"]
    return Fit(**kept)


def fitted_errors() -> dict[str, dict[str, float]]:
    """The committed fit's errors on the points that it was not fitted to, by metric.

    `median` and `worst` are shares of what was measured; `within` of `num_points` keep to the bar.
    """
    kept: dict[str, dict[str, float]] = json.loads(FITTED_OVERHEADS.read_text(encoding="utf-8"))[
        "held_out"
    ]
    return kept


def errors(comparisons: list[Comparison]) -> dict[str, dict[str, float]]:
    """What `fitted_errors` keeps, of these comparisons."""
    found = {}
    for metric, bar in BARS.items():
        own = sorted(abs(one.error) for one in comparisons if one.metric == metric)
        found[metric] = {
            "median": own[len(own) // 2],
            "worst": own[-1],
            "within": sum(error <= bar for error in own),
            "num_points": len(own),
        }
    return found


def as_data(machine: Machine) -> dict[str, Any]:
    """The machine as `fitted_machine` reads it."""
    return {name: asdict(value) for name, value in machine._asdict().items()}


def main() -> None:
    machine = this_machine()
    found = calibrate(machine)
    overheads = Overheads(**found.values)
    off = errors(held_out(machine, overheads))
    kept = {
        "fit": found._asdict(),
        "to": sorted(FIT_TO),
        "machine": as_data(machine),
        "held_out": off,
    }
    FITTED_OVERHEADS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(found)
    for metric, one in off.items():
        print(
            f"{metric}: median error {one['median']:.1%}, {one['within']} of {one['num_points']} "
            f"points within {BARS[metric]:.0%}, the worst {one['worst']:.0%}"
        )
    for full in saturation(machine, overheads):
        print(f"{full.point}: {full.measured:.1f} requests/s, {full.error:+.1%}")


if __name__ == "__main__":
    main()
