"""One repeat of a point: what it needs is started, loaded, read."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from inferlab.lab import kv_store, load_metrics, offline
from inferlab.lab.checkpoints import model_path
from inferlab.lab.deployment import Deployment, PeakReader
from inferlab.lab.disturbances import loaded, lost
from inferlab.lab.load_generator import LoadGenerator
from inferlab.lab.offline_results import Measured
from inferlab.lab.plan import Plan, as_neighbour
from inferlab.lab.point import Point
from inferlab.lab.server_metrics import estimated_rates, run_metrics

# Seeds no repeat uses: the warm-up must not leave a repeat's prompts in the prefix cache, and the
# neighbour has prompts of its own.
WARM_UP_SEED = 10_000
NEIGHBOUR_SEED = 20_000
WARM_UP_REQUESTS = 8


class Engines(AbstractContextManager["Engines"]):
    """The processes a plan needs, started when first asked for and shared between points."""

    def __init__(self, plan: Plan, log_folder: Path) -> None:
        self.plan = plan
        self.deployment: Deployment | None = None
        self.loading: LoadGenerator | None = None
        self.loads = ""
        self.second: LoadGenerator | None = None
        self.log_folder = log_folder

    def generator(self, engine: str) -> LoadGenerator:
        """The load generator for `engine`; another engine's is ended, to leave it the memory."""
        if self.loading is not None and (self.loads != engine or not self.loading.is_running()):
            self.stop_generator()
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
        # Its imports take as long as the server's start.
        self.generator("vllm")
        self.deployment = Deployment(self.plan, point, self.log_folder)
        self.warm_up(point)
        return self.deployment

    def load(self, arguments: list[str]) -> dict[str, Any]:
        """What `vllm bench serve` measures.

        Raises:
            EngineError: naming a server that has died, before what its clients say of that.
        """
        assert self.deployment is not None, "there is nothing to load"
        try:
            return self.generator("vllm").ask(arguments)
        finally:
            # Another process may answer in a dead server's place, or half of the workers be gone.
            self.deployment.require_running()

    def warm_up(self, point: Point) -> None:
        """Send a few requests that no repeat sends."""
        assert self.deployment is not None, "there is nothing to warm up"
        self.plan.write_prompts(point, WARM_UP_SEED)
        load = self.plan.bench_arguments(point, self.deployment.port, WARM_UP_SEED)[2:]
        # The load generator refuses more prefixes than prompts.
        few = ["--num-prompts", str(WARM_UP_REQUESTS), "--prefix-repetition-num-prefixes", "1"]
        self.load([*load, *few])

    def neighbour_loaded(self, point: Point, seed: int) -> AbstractContextManager[None]:
        """The neighbour, if there is one, under the same load for as long as the block runs."""
        if point.neighbour is None:
            return nullcontext()
        assert self.deployment is not None, "there is nothing beside which to load a neighbour"
        port = self.deployment.servers("neighbour")[0].port
        other = as_neighbour(point)
        if self.second is None:
            log = self.log_folder / "load-neighbour.log"
            self.second = LoadGenerator("vllm", self.plan.profile.environment, log)
        # Its own prompts: what it has in its prefix cache must not be what is measured.
        self.plan.write_prompts(other, NEIGHBOUR_SEED + seed)
        return loaded(
            self.second, self.plan.bench_arguments(other, port, NEIGHBOUR_SEED + seed)[2:]
        )

    def bring_about(self, point: Point) -> None:
        """Do what a point's requests are to be measured after."""
        assert self.deployment is not None, "there is nothing to do it to"
        if point.after == "engine-restart":
            self.deployment.restart("engine")
        elif point.after == "store-restart":
            self.deployment.restart("store", pause_s=kv_store.NOTICED_AFTER_S)
        if point.after != "reset":
            self.warm_up(point)
        self.deployment.forget_prefixes()

    def stop_servers(self) -> None:
        if self.deployment is not None:
            self.deployment.stop()
            self.deployment = None

    def stop_generator(self) -> None:
        for generator in (self.loading, self.second):
            if generator is not None:
                generator.stop()
        self.loading = self.second = None

    def __exit__(self, *_: object) -> None:
        self.stop_servers()
        self.stop_generator()


def measure(plan: Plan, point: Point, running: Engines, seed: int) -> Measured:
    """One repeat of a point: its metrics, and the samples that they summarise."""
    if point.program is None:
        return measure_servers(plan, point, running, seed)
    # A server would compete for the cores, an idle load generator for the memory.
    running.stop_servers()
    if point.program == "static-batches":
        return measure_static_batches(plan, point, running, seed)
    running.stop_generator()
    folder = running.log_folder / f"{point.name}-{seed}"
    return offline.measure(point, model_path(point.model), folder, seed)


def measure_servers(plan: Plan, point: Point, running: Engines, seed: int) -> Measured:
    """One repeat against the servers: the client's metrics and what they counted."""
    deployment = running.deployment_for(point)
    deployment.forget_everything()
    plan.write_prompts(point, seed)
    load = plan.bench_arguments(point, deployment.port, seed)[2:]
    if point.after != "nothing":
        running.load(load)
        running.bring_about(point)
    if point.lose_worker_after_s is not None:
        return measure_loss(point, running, deployment, load, seed)
    before, stored = deployment.snapshot(), deployment.stored()
    with PeakReader(deployment) as reader, running.neighbour_loaded(point, seed):
        answer = running.load(load)
    metrics = load_metrics.bench_metrics(answer, point.objective)
    metrics |= run_metrics(before, deployment.snapshot(), reader.peaks)
    metrics |= estimated_rates(metrics)
    metrics |= {name: now - stored[name] for name, now in deployment.stored().items()}
    metrics["startup_s"] = max(server.startup_s for server in deployment.engines)
    return metrics, load_metrics.samples(answer, with_intervals=seed == 0)


def measure_loss(
    point: Point, running: Engines, deployment: Deployment, load: list[str], seed: int
) -> Measured:
    """One repeat in which a worker is killed: what the client saw, of the requests answered."""
    with lost(deployment.engines[0], float(point.lose_worker_after_s or 0)):
        answer = running.generator("vllm").ask(load)
    # What is left is not what the next repeat needs.
    running.stop_servers()
    whole = load_metrics.completed(answer)
    metrics = load_metrics.bench_metrics({**whole, "failed": 0}, point.objective)
    metrics["failed_requests"] = answer["failed"]
    return metrics, load_metrics.samples(whole, with_intervals=seed == 0)


def measure_static_batches(plan: Plan, point: Point, running: Engines, seed: int) -> Measured:
    """One repeat of the static-batch baseline; the first is preceded by a warm-up batch."""
    task = {
        "name": model_path(point.model),
        # The checkpoint may be stored in another type; both engines compute in this one.
        "dtype": plan.profile.dtype,
        "batch_size": point.options["batch-size"],
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
