"""Expands an experiment under a profile into points, each with the commands that measure it."""

import hashlib
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from inferlab.lab import launch, offline_commands, prompt_sets
from inferlab.lab.arrangement import Arrangement, Process, typed
from inferlab.lab.checkpoints import model_path
from inferlab.lab.paths import PROMPTS, without_root
from inferlab.lab.point import Point
from inferlab.lab.specification import (
    After,
    Arm,
    ArmOverride,
    Experiment,
    Flags,
    Grid,
    Profile,
    Scalar,
    Workload,
    load_experiment,
    load_profile,
    load_workload,
)
from inferlab.lab.yaml_file import SpecificationError

PERCENTILES = (50, 90, 99)
# Of the commands that are shown.
FIRST_PORT = 8000
# What a reader has to do before the requests that are measured.
BEFORE: dict[After, list[str]] = {
    "nothing": [],
    "reset": ["# Send the requests below once, then empty the engine's prefix cache."],
    "engine-restart": ["# Send the requests below once, then start the engine anew."],
    "store-restart": [
        "# Send the requests below once, stop the KV store, start it anew after twelve seconds,",
        "# wait as long again, and empty the engine's cache.",
    ],
}


@dataclass(frozen=True)
class Plan:
    """All points of one experiment on one profile, those that share a server side by side."""

    identifier: str
    profile_name: str
    experiment: Experiment
    profile: Profile
    points: list[Point]

    @property
    def models(self) -> list[str]:
        """Names of the models that the points use."""
        names = (name for point in self.points for name in (point.model, point.neighbour) if name)
        return list(dict.fromkeys(names))

    def bench_arguments(self, point: Point, port: int, seed: int) -> list[str]:
        """Arguments of `vllm` that load what serves at `port`; the seed decides the prompts."""
        flags = dict(point.client)
        if point.prompts:
            flags["dataset-path"] = without_root(str(self.prompt_file(point, seed)))
        return [
            *("bench", "serve", "--base-url", f"http://127.0.0.1:{port}"),
            *("--model", point.model, "--tokenizer", model_path(point.model)),
            *launch.flag_arguments(flags, "vllm"),
            *("--seed", str(seed), "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--metric-percentiles", ",".join(str(p) for p in PERCENTILES)),
            "--disable-tqdm",
        ]

    def prompt_file(self, point: Point, seed: int) -> Path:
        """Where the point's prompts are, if they are not the load generator's own."""
        kind = hashlib.sha256(json.dumps([point.prompts, point.model]).encode()).hexdigest()[:8]
        return PROMPTS / f"{point.prompts.get('kind')}-{kind}-{seed}.jsonl"

    def write_prompts(self, point: Point, seed: int) -> None:
        """Write the prompts of a repeat, unless they are the load generator's own."""
        if point.prompts:
            prompt_sets.write(
                point.prompts, model_path(point.model), seed, self.prompt_file(point, seed)
            )

    def processes(self, point: Point, take_port: Callable[[], int], folder: str) -> list[Process]:
        """What has to run before requests can be sent, to the last one's port."""
        hardware = self.profile.hardware
        return Arrangement(point, model_path, hardware, take_port, folder).processes()

    def commands(self, point: Point) -> list[str]:
        """What a reader would type to repeat the point's first repeat by hand."""
        if point.program == "static-batches":
            return [f"# transformers, static batches: {json.dumps(point.options)}"]
        if point.program is not None:
            folder = Path("build/offline")
            command = offline_commands.command(point, model_path(point.model), folder, seed=0)
            # Some look for the folder only when they have measured.
            return [f"mkdir -p {folder}", typed(point.environment, command)]
        needed = self.processes(point, itertools.count(FIRST_PORT).__next__, "build/kv")
        shown = [process.as_typed() for process in needed] + BEFORE[point.after]
        for process in needed:
            if process.role == "neighbour":
                shown.append(self.load_as_typed(as_neighbour(point), process.port) + " &")
        return [*shown, self.load_as_typed(point, needed[-1].port)]

    def load_as_typed(self, point: Point, port: int) -> str:
        return "vllm " + shlex.join(self.bench_arguments(point, port, seed=0))


def as_neighbour(point: Point) -> Point:
    """The point that the neighbour of `point` is loaded with."""
    assert point.neighbour is not None, "the point has no neighbour"
    return replace(point, model=point.neighbour)


def plan_experiment(identifier: str, profile_name: str) -> Plan:
    """Every point of `identifier` on `profile_name`.

    Raises:
        SpecificationError: if either does not exist, is malformed, or they do not go together.
    """
    experiment, profile = load_experiment(identifier), load_profile(profile_name)
    if profile_name not in experiment.profiles:
        raise SpecificationError(
            f"{identifier} does not run on the profile {profile_name!r}; it runs on "
            f"{', '.join(experiment.profiles)}."
        )
    points = [
        point
        for arm in experiment.arms
        if profile_name in (arm.only or experiment.profiles)
        for point in arm_points(arm, profile_name, profile)
    ]
    counted = Counter(json.dumps(point.parameters) for point in points)
    twice = [parameters for parameters, count in counted.items() if count > 1]
    if twice:
        raise SpecificationError(
            f"{identifier} has more than one point with the parameters {twice[0]}: give the arms "
            f"labels that tell them apart."
        )
    return Plan(identifier, profile_name, experiment, profile, points)


def arm_points(arm: Arm, profile_name: str, profile: Profile) -> list[Point]:
    """The grid of one arm on a profile.

    Workload, client and history vary fastest, so that neighbours share a server.
    """
    override = arm.profiles.get(profile_name, ArmOverride())
    names = ("server", "router", "kv_store", "options", "client")
    grids: dict[str, Grid] = {
        name: {**(getattr(arm, name) or {}), **getattr(override, name)} for name in names
    }
    workloads: list[str | None] = [*as_list(override.workload or arm.workload)] or [None]
    histories: list[After] = arm.after or ["nothing"]
    model = override.model or arm.model or profile.model
    points = []
    for server, router, kv_store, options, workload, client, after in itertools.product(
        expand(grids["server"]),
        expand(grids["router"]),
        expand(grids["kv_store"]),
        expand(grids["options"]),
        workloads,
        expand(grids["client"]),
        histories,
    ):
        chosen = (server, router, kv_store, options, client)
        parameters: dict[str, Scalar] = {"engine": arm.engine}
        if arm.label is not None:
            parameters["arm"] = arm.label
        for name, flags in zip(names, chosen):
            parameters |= {parameter(flag): flags[flag] for flag in axes(grids[name])}
        if workload is not None:
            parameters["workload"] = workload
        if arm.after:
            parameters["after"] = after
        requests = (
            load_workload(workload).on(profile.workloads or profile_name) if workload else None
        )
        points.append(
            Point(
                engine=arm.engine,
                model="" if arm.engine == "machine" else model,
                parameters=parameters,
                server={**profile.servers.get(arm.engine, {}), **with_paths(server)},
                environment={**profile.environment, **arm.environment},
                workers=arm.workers,
                router=router,
                lose_worker_after_s=arm.lose_worker_after_s,
                neighbour=arm.neighbour,
                disaggregated=arm.disaggregated,
                kv_store=kv_store if arm.kv_store is not None else None,
                after=after,
                program=arm.program,
                options=options,
                client={**(flags_of(requests) if requests else {}), **client},
                prompts=requests.prompts if requests else {},
                objective=(
                    requests.objective.model_dump() if requests and requests.objective else {}
                ),
            )
        )
    return points


def flags_of(requests: Workload) -> Flags:
    """Flags of `vllm bench serve` that send a workload's requests."""
    return (prompt_sets.bench_flags(requests.prompts) if requests.prompts else {}) | requests.flags


def with_paths(flags: Flags) -> Flags:
    """`flags` with the path of a checkpoint of ours in place of its name, where a flag ends in
    `.model`, as a drafter's does."""
    return {
        flag: model_path(str(value)) if flag.endswith(".model") else value
        for flag, value in flags.items()
    }


def parameter(flag: str) -> str:
    """What an axis is called in the table: `speculative-config.method` is `method`."""
    return flag.rpartition(".")[2].replace("-", "_")


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def axes(grid: Grid) -> list[str]:
    """Flags of `grid` that have more than one value."""
    return [flag for flag, value in grid.items() if isinstance(value, list)]


def expand(grid: Grid) -> list[Flags]:
    """Every combination of the values of `grid`, the first flag varying slowest."""
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, values)) for values in itertools.product(*choices)]
