"""Runs the points of a plan: server up, load, measure, check, save, next; never twice."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from inferlab.lab import engines, load_metrics, physics, provenance
from inferlab.lab.deployment import Deployment, PeakReader
from inferlab.lab.load_generator import LoadGenerator
from inferlab.lab.paths import LIVE, LOGS, RECORDED, result_path
from inferlab.lab.plan import Plan, Point, plan_experiment
from inferlab.lab.results import (
    SCHEMA,
    Document,
    read_document,
    write_document,
)
from inferlab.lab.server import EngineError
from inferlab.lab.server_metrics import run_metrics
from inferlab.lab.table import Table

# A seed no repeat uses: the warm-up must not leave a repeat's prompts in the prefix cache.
WARM_UP_SEED = 10_000
WARM_UP_REQUESTS = 8

Report = Callable[[str, int], None]


def run_experiment(
    identifier: str, profile_name: str, *, record: bool, report: Report = lambda message, done: None
) -> Table:
    """Measure every unfinished point and return the whole result.

    `report` is told what happens now and how many repeats have been finished.

    Raises:
        SpecificationError, EnginesMissingError, HardwareError: before anything is started.
        ResultError: if the file to resume from was cut short or edited.
    """
    plan = plan_experiment(identifier, profile_name)
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
    if path.exists():
        previous = read_document(path)
        finished = {p["key"]: p for p in previous["points"] if p["status"] == "ok"}
        if all(key in finished for key in keys):
            document["provenance"] = previous["provenance"]
    with Engines(plan, log_folder) as running:
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


class Engines(AbstractContextManager["Engines"]):
    """The processes a plan needs, started when first asked for and shared between points."""

    def __init__(self, plan: Plan, log_folder: Path) -> None:
        self.plan = plan
        self.deployment: Deployment | None = None
        self.loading: LoadGenerator | None = None
        self.loads = ""
        self.log_folder = log_folder

    def generator(self, engine: str) -> LoadGenerator:
        """The load generator for `engine`; another engine's is ended, to leave it the memory."""
        if self.loading is not None and (self.loads != engine or not self.loading.is_running()):
            self.loading.stop()
            self.loading = None
        if self.loading is None:
            log = self.log_folder / f"load-{engine}.log"
            self.loading = LoadGenerator(engine, self.plan.profile.environment, log)
            self.loads = engine
        return self.loading

    def deployment_for(self, point: Point) -> Deployment:
        """Servers with the point's flags, warm: those that run, if they have them."""
        if self.deployment is not None and self.deployment.can_serve(point):
            return self.deployment
        self.stop_servers()
        self.deployment = Deployment(self.plan, point, self.log_folder)
        warm_up = self.plan.bench_arguments(point, self.deployment.port, WARM_UP_SEED)
        self.generator("vllm").ask([*warm_up[2:], "--num-prompts", str(WARM_UP_REQUESTS)])
        return self.deployment

    def stop_servers(self) -> None:
        if self.deployment is not None:
            self.deployment.stop()
            self.deployment = None

    def __exit__(self, *_: object) -> None:
        self.stop_servers()
        if self.loading is not None:
            self.loading.stop()


def measure_point(
    plan: Plan, point: Point, key: str, running: Engines, report: Callable[[int], None]
) -> Document:
    """One point of the document; a failure becomes its error and log, and the sweep goes on."""
    measured = new_point(plan, point, key)
    measure = measure_transformers if point.engine == "transformers" else measure_servers
    ceilings = physics.ceilings_of(plan, point, provenance.hardware()["memory_bytes"])
    try:
        for seed in range(plan.experiment.repeats):
            report(seed)
            metrics, samples = measure(plan, point, running, seed)
            impossible = physics.violations(metrics, ceilings)
            if impossible:
                raise EngineError(" ".join(["Impossible result.", *impossible]), "")
            metrics = {name: significant(value) for name, value in metrics.items()}
            measured["repeats"].append({"metrics": metrics, "samples": samples})
    except (EngineError, ValueError) as error:
        failed = {"error": str(error), "log": ""}
        if isinstance(error, EngineError):
            failed = {"error": error.summary, "log": error.log_tail}
        measured |= {"status": "failed", "repeats": [], **failed}
        # Whatever made it fail must not reach the next point.
        running.stop_servers()
    return measured


def measure_servers(
    plan: Plan, point: Point, running: Engines, seed: int
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """One repeat against the servers: the client's metrics and what they counted."""
    generator = running.generator("vllm")
    deployment = running.deployment_for(point)
    deployment.forget_prefixes()
    before = deployment.snapshot()
    with PeakReader(deployment) as reader:
        answer = generator.ask(plan.bench_arguments(point, deployment.port, seed)[2:])
    # Another process may answer in a dead server's place, or half of the workers be gone.
    deployment.require_running()
    metrics = load_metrics.bench_metrics(answer)
    metrics |= run_metrics(before, deployment.snapshot(), reader.peaks)
    metrics["startup_s"] = max(server.startup_s for server in deployment.servers)
    return metrics, load_metrics.samples(answer, with_intervals=seed == 0)


def measure_transformers(
    plan: Plan, point: Point, running: Engines, seed: int
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """One repeat of the static-batch baseline; the first is preceded by a warm-up batch."""
    # A server would compete for the cores.
    running.stop_servers()
    task = {
        "name": plan.model,
        # The checkpoint may be stored in another type; both engines compute in this one.
        "dtype": plan.profile.dtype,
        "batch_size": point.baseline["batch-size"],
        "arguments": plan.bench_arguments(point, 0, seed),
        "warm_up": False,
    }
    generator = running.generator("transformers")
    if seed == 0:
        generator.ask({**task, "warm_up": True})
    answer = generator.ask(task)
    return load_metrics.static_batch_metrics(answer), load_metrics.samples(
        answer, with_intervals=False
    )


def significant(value: float) -> float:
    """Six significant digits: more would be noise, and would double the file."""
    return float(f"{value:.6g}")
