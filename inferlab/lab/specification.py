"""What an experiment, a workload and a profile are, as written in `experiments/*.yml`.

Flags are those of the engines' own commands, without the leading dashes. A list instead of one
value is an axis of the grid: `block-size: [32, 64, 128]` makes three points.
"""

from typing import Literal, TypeVar

from pydantic import Field, RootModel

from inferlab.lab.paths import EXPERIMENTS
from inferlab.lab.yaml_file import Section, SpecificationError, read_model

Scalar = bool | int | float | str
Flags = dict[str, Scalar]
Grid = dict[str, Scalar | list[Scalar]]
Engine = Literal["vllm", "sglang", "inferlab", "transformers"]


class Hardware(Section):
    """Ceilings that no measurement can pass; the physics checks use them."""

    name: str
    bandwidth_gb_per_s: float = Field(gt=0, description="fastest memory the weights can come from")
    gpu: str | None = Field(default=None, description="part of the name nvidia-smi reports")
    memory_bytes: int | None = Field(default=None, description="None: what this machine has")


class Profile(Section):
    """Hardware and model that an experiment runs on."""

    hardware: Hardware
    model: str = Field(description="a checkpoint of inferlab.models, or a Hugging Face name")
    decode_weight_bytes: int = Field(gt=0, description="bytes of weights one decode step reads")
    kv_bytes_per_token: int = Field(gt=0)
    dtype: str = Field(description="what every engine computes in, in the words of PyTorch")
    servers: dict[Engine, Flags] = Field(description="flags of every server of an engine")
    environment: dict[str, str] = Field(default_factory=dict)


class Workload(Section):
    """Requests to send: flags of `vllm bench serve` that say which and when."""

    description: str
    flags: Flags
    profiles: dict[str, Flags] = Field(default_factory=dict)

    def flags_for(self, profile: str) -> Flags:
        return {**self.flags, **self.profiles.get(profile, {})}


class ArmOverride(Section):
    """What differs in one profile."""

    server: Grid = Field(default_factory=dict)
    router: Grid = Field(default_factory=dict)
    baseline: Grid = Field(default_factory=dict)
    client: Grid = Field(default_factory=dict)
    workload: str | list[str] | None = None


class Arm(Section):
    """One engine and its grid.

    `server` holds flags of the engine's server. With `workers` above 1 there are that many, all
    alike, behind SGLang's router, whose flags are `router`. `baseline` is for transformers.
    `client` holds flags of `vllm bench serve` that differ from the workload's.
    """

    engine: Engine
    server: Grid = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1, le=8)
    router: Grid = Field(default_factory=dict)
    baseline: Grid = Field(default_factory=dict)
    client: Grid = Field(default_factory=dict)
    workload: str | list[str]
    profiles: dict[str, ArmOverride] = Field(default_factory=dict)
    only: list[str] = Field(default_factory=list, description="profiles; empty: all of them")


class Experiment(Section):
    """A question to a real engine, with the prediction to make before the answer."""

    question: str
    prediction: str
    metrics: list[str] = Field(min_length=1, description="columns of the table, in this order")
    repeats: int = Field(ge=1)
    profiles: list[str] = Field(min_length=1)
    arms: list[Arm] = Field(min_length=1)


class Week(Section):
    """One file `weekNN.yml`."""

    week: int
    experiments: dict[str, Experiment]


class Profiles(RootModel[dict[str, Profile]]):
    """The file `profiles.yml`."""


class Workloads(RootModel[dict[str, Workload]]):
    """The file `workloads.yml`."""


Found = TypeVar("Found")


def choose(known: dict[str, Found], name: str, kind: str, file: str) -> Found:
    """`known[name]`, or an error that lists what the file holds."""
    if name not in known:
        raise SpecificationError(
            f"There is no {kind} {name!r} in experiments/{file}; it holds {', '.join(known)}."
        )
    return known[name]


def load_profile(name: str) -> Profile:
    """The profile `name`.

    Raises:
        SpecificationError: if it does not exist or the file is malformed.
    """
    file = "profiles.yml"
    return choose(read_model(EXPERIMENTS / file, Profiles).root, name, "profile", file)


def load_workload(name: str) -> Workload:
    """The workload `name`.

    Raises:
        SpecificationError: if it does not exist or the file is malformed.
    """
    file = "workloads.yml"
    return choose(read_model(EXPERIMENTS / file, Workloads).root, name, "workload", file)


def load_experiment(identifier: str) -> Experiment:
    """The experiment `identifier`, for example `week04/block-size`.

    Raises:
        SpecificationError: if it does not exist or its file is malformed.
    """
    week, _, name = identifier.partition("/")
    file = f"{week}.yml"
    return choose(read_model(EXPERIMENTS / file, Week).experiments, name, "experiment", file)


def experiment_identifiers(prefix: str = "") -> list[str]:
    """Identifiers of all experiments, or of those of one week or one name.

    Raises:
        SpecificationError: if none begins with `prefix`.
    """
    found = [
        f"{path.stem}/{name}"
        for path in sorted(EXPERIMENTS.glob("week*.yml"))
        for name in read_model(path, Week).experiments
    ]
    chosen = [name for name in found if prefix in ("", name, name.partition("/")[0])]
    if not chosen:
        raise SpecificationError(
            f"There is no experiment {prefix!r}; there are {', '.join(found)}."
        )
    return chosen
