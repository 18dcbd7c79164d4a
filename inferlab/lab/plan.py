"""Expands an experiment under a profile into points, each with the commands that measure it."""

import hashlib
import itertools
import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from inferlab import models
from inferlab.lab import launch
from inferlab.lab.paths import without_root
from inferlab.lab.specification import (
    Arm,
    ArmOverride,
    Engine,
    Experiment,
    Flags,
    Grid,
    Profile,
    Scalar,
    load_experiment,
    load_profile,
    load_workload,
)
from inferlab.lab.yaml_file import SpecificationError

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Point:
    """One cell of the grid: what the reader varies, and the flags that follow from it."""

    engine: Engine
    parameters: dict[str, Scalar]
    server: Flags  # the profile's among them
    workers: int
    router: Flags
    baseline: Flags
    client: Flags

    def key(self, context: dict[str, Any]) -> str:
        """Hash of everything that decides the measurement; `context` holds versions and machine."""
        text = json.dumps({"point": asdict(self), "context": context}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has_the_servers_of(self, other: "Point") -> bool:
        """True if what serves `other` can serve this one."""
        mine, theirs = (
            (point.engine, point.server, point.workers, point.router) for point in (self, other)
        )
        return mine == theirs


@dataclass(frozen=True)
class Plan:
    """All points of one experiment on one profile, those that share a server side by side."""

    identifier: str
    profile_name: str
    experiment: Experiment
    profile: Profile
    points: list[Point]

    @property
    def model(self) -> str:
        """What `vllm serve` is given: a path, relative if it is below the root, or a Hugging Face
        name. In a student's bundle the checkpoints are an installed package elsewhere."""
        if self.profile.model in models.names():
            return without_root(str(models.path(self.profile.model)))
        return self.profile.model

    def server_command(self, point: Point, port: int) -> list[str]:
        """What starts one of the point's servers."""
        return launch.server_command(
            point.engine, self.model, self.profile.model, port, point.server
        )

    def bench_arguments(self, point: Point, port: int, seed: int) -> list[str]:
        """Arguments of `vllm` that load what serves at `port`; the seed decides the prompts."""
        return [
            *("bench", "serve", "--base-url", f"http://127.0.0.1:{port}"),
            *("--model", self.profile.model, "--tokenizer", self.model),
            *launch.flag_arguments(point.client, "vllm"),
            *("--seed", str(seed), "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--metric-percentiles", ",".join(str(p) for p in PERCENTILES)),
            "--disable-tqdm",
        ]

    def commands(self, point: Point, port: int = 8000) -> list[str]:
        """What a reader would type to repeat the point's first repeat by hand."""
        if point.engine == "transformers":
            return [f"# transformers, static batches: {json.dumps(point.baseline)}"]
        variables = [f"{name}={shlex.quote(v)}" for name, v in self.profile.environment.items()]
        ports = [port + number for number in range(point.workers)]
        commands = [self.server_command(point, worker) for worker in ports]
        if point.workers > 1:
            port += point.workers
            commands.append(launch.router_command(ports, port, port + 1, point.router))
        return [
            *(" ".join([*variables, shlex.join(command)]) for command in commands),
            "vllm " + shlex.join(self.bench_arguments(point, port, seed=0)),
        ]


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
        for point in arm_points(arm, profile_name, profile.servers.get(arm.engine, {}))
    ]
    return Plan(identifier, profile_name, experiment, profile, points)


def arm_points(arm: Arm, profile_name: str, common: Flags) -> list[Point]:
    """The grid of one arm, whose servers all have the flags `common`.

    Workload and client vary fastest, so that neighbours share a server.
    """
    override = arm.profiles.get(profile_name, ArmOverride())
    grids: list[Grid] = [
        {**arm.server, **override.server},
        {**arm.router, **override.router},
        {**arm.baseline, **override.baseline},
        {**arm.client, **override.client},
    ]
    workload = override.workload or arm.workload
    server, router, baseline, client = (expand(grid) for grid in grids)
    names = workload if isinstance(workload, list) else [workload]
    requests = {name: load_workload(name).flags_for(profile_name) for name in names}
    points = []
    for server_flags, router_flags, baseline_flags, name, client_flags in itertools.product(
        server, router, baseline, names, client
    ):
        chosen = [server_flags, router_flags, baseline_flags, client_flags]
        parameters: dict[str, Scalar] = {"engine": arm.engine}
        for grid, flags in zip(grids, chosen):
            parameters |= {key.replace("-", "_"): flags[key] for key in axes(grid)}
        parameters |= {"workload": name}
        points.append(
            Point(
                engine=arm.engine,
                parameters=parameters,
                server={**common, **server_flags},
                workers=arm.workers,
                router=router_flags,
                baseline=baseline_flags,
                client={**requests[name], **client_flags},
            )
        )
    return points


def axes(grid: Grid) -> list[str]:
    """Flags of `grid` that have more than one value."""
    return [flag for flag, value in grid.items() if isinstance(value, list)]


def expand(grid: Grid) -> list[Flags]:
    """Every combination of the values of `grid`, the first flag varying slowest."""
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, values)) for values in itertools.product(*choices)]
