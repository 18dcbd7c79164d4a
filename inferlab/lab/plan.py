"""Expands an experiment under a profile into points, each with the commands that measure it."""

import hashlib
import itertools
import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from inferlab import models
from inferlab.lab.paths import without_root
from inferlab.lab.specification import (
    Arm,
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
    server: Flags
    baseline: Flags
    client: Flags

    def key(self, context: dict[str, Any]) -> str:
        """Hash of everything that decides the measurement; `context` holds versions and machine."""
        text = json.dumps({"point": asdict(self), "context": context}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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

    def serve_arguments(self, point: Point, port: int) -> list[str]:
        """Arguments of `vllm` that start the server."""
        return [
            "serve",
            self.model,
            "--served-model-name",
            self.profile.model,
            "--port",
            str(port),
            *flag_arguments({**self.profile.server, **point.server}),
        ]

    def bench_arguments(self, point: Point, port: int, seed: int) -> list[str]:
        """Arguments of `vllm` that load the server; the seed decides the prompts."""
        return [
            *("bench", "serve", "--base-url", f"http://127.0.0.1:{port}"),
            *("--model", self.profile.model, "--tokenizer", self.model),
            *flag_arguments(point.client),
            *("--seed", str(seed), "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--metric-percentiles", ",".join(str(p) for p in PERCENTILES)),
            "--disable-tqdm",
        ]

    def commands(self, point: Point, port: int = 8000) -> list[str]:
        """What a reader would type to repeat the point's first repeat by hand."""
        if point.engine == "transformers":
            return [f"# transformers, static batches: {json.dumps(point.baseline)}"]
        variables = [f"{name}={shlex.quote(v)}" for name, v in self.profile.environment.items()]
        return [
            " ".join([*variables, "vllm", shlex.join(self.serve_arguments(point, port))]),
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
    points = [point for arm in experiment.arms for point in arm_points(arm, profile_name)]
    return Plan(identifier, profile_name, experiment, profile, points)


def arm_points(arm: Arm, profile_name: str) -> list[Point]:
    """The grid of one arm; the workload varies fastest, so that neighbours share a server."""
    override = arm.profiles.get(profile_name)
    server, baseline, workload = arm.server, arm.baseline, arm.workload
    if override is not None:
        server, baseline = {**server, **override.server}, {**baseline, **override.baseline}
        workload = override.workload or workload
    names = workload if isinstance(workload, list) else [workload]
    points = []
    for server_flags, baseline_flags, name in itertools.product(
        expand(server), expand(baseline), names
    ):
        varied = {
            **{key: server_flags[key] for key in axes(server)},
            **{key: baseline_flags[key] for key in axes(baseline)},
        }
        parameters: dict[str, Scalar] = {"engine": arm.engine}
        parameters |= {key.replace("-", "_"): value for key, value in varied.items()}
        parameters |= {"workload": name}
        client = load_workload(name).flags_for(profile_name)
        points.append(Point(arm.engine, parameters, server_flags, baseline_flags, client))
    return points


def axes(grid: Grid) -> list[str]:
    """Flags of `grid` that have more than one value."""
    return [flag for flag, value in grid.items() if isinstance(value, list)]


def expand(grid: Grid) -> list[Flags]:
    """Every combination of the values of `grid`, the first flag varying slowest."""
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [dict(zip(grid, values)) for values in itertools.product(*choices)]


def flag_arguments(flags: Flags) -> list[str]:
    """Flags as command-line arguments; a true or false flag takes no value."""
    arguments = []
    for name, value in flags.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", str(value)]
    return arguments
