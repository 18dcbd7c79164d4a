"""What an experiment, a workload and a profile are, as written in `experiments/*.yml`.

Flags are those of the engines' own commands, without the leading dashes. A list instead of one
value is an axis of the grid: `block-size: [32, 64, 128]` makes three points.
"""

from typing import Literal, TypeVar

from pydantic import Field, RootModel, model_validator

from inferlab.lab.paths import EXPERIMENTS
from inferlab.lab.yaml_file import Section, SpecificationError, read_model

Scalar = bool | int | float | str
Flags = dict[str, Scalar]
Grid = dict[str, Scalar | list[Scalar]]
Engine = Literal["vllm", "sglang", "inferlab", "transformers", "machine"]
Program = Literal[
    "static-batches",  # transformers
    "throughput",  # vLLM
    "latency",  # vLLM
    "offline-throughput",  # SGLang
    "accuracy",  # lm_eval on vLLM
    "copy",  # the machine itself, from here on
    "matmul",
    "all-reduce",
]
# What was done before the measured requests. But for `nothing` they have been served once already;
# then the engines' prefix caches were emptied, or the engines or the KV store were started anew.
After = Literal["nothing", "reset", "engine-restart", "store-restart"]


class Hardware(Section):
    """Ceilings that no measurement can pass; the physics checks use them."""

    name: str
    bandwidth_gb_per_s: float = Field(gt=0, description="fastest memory the weights can come from")
    gpu: str | None = Field(default=None, description="part of the name nvidia-smi reports")
    devices: int = Field(default=1, ge=1, description="how many GPUs, or slices of one")
    slices: bool = Field(default=False, description="the GPU is partitioned by MIG")
    memory_bytes: int | None = Field(default=None, description="None: what this machine has")


class ModelFacts(Section):
    """What the physics checks need to know of a model."""

    decode_weight_bytes: int = Field(gt=0, description="read by a decode step of one sequence")
    kv_bytes_per_token: int = Field(gt=0)
    download_bytes: int | None = Field(default=None, description="None: a checkpoint of ours")


class Profile(Section):
    """Hardware and model that an experiment runs on."""

    hardware: Hardware
    model: str = Field(description="a name in models.yml")
    dtype: str = Field(description="what every engine computes in, in the words of PyTorch")
    servers: dict[Engine, Flags] = Field(description="flags of every server of an engine")
    environment: dict[str, str] = Field(default_factory=dict)
    workloads: str | None = Field(
        default=None, description="the profile whose workloads it has; None: its own"
    )


class Objective(Section):
    """What an answer has to keep to be a good one."""

    ttft_ms: float = Field(gt=0)
    tpot_ms: float = Field(gt=0)


class WorkloadOverride(Section):
    """What differs in one profile."""

    flags: Flags = Field(default_factory=dict)
    prompts: Flags = Field(default_factory=dict)
    objective: Objective | None = None


class Workload(Section):
    """Requests to send: flags of `vllm bench serve` that say which and when.

    `prompts` are for `inferlab.lab.prompt_sets`, which writes what the load generator cannot make.
    """

    description: str
    flags: Flags
    prompts: Flags = Field(default_factory=dict)
    objective: Objective | None = None
    profiles: dict[str, WorkloadOverride] = Field(default_factory=dict)

    def on(self, profile: str) -> "Workload":
        """The workload as it is on `profile`."""
        override = self.profiles.get(profile, WorkloadOverride())
        return Workload(
            description=self.description,
            flags={**self.flags, **override.flags},
            prompts={**self.prompts, **override.prompts},
            objective=override.objective or self.objective,
        )


class ArmOverride(Section):
    """What differs in one profile."""

    model: str | None = None
    server: Grid = Field(default_factory=dict)
    router: Grid = Field(default_factory=dict)
    kv_store: Grid = Field(default_factory=dict)
    options: Grid = Field(default_factory=dict)
    client: Grid = Field(default_factory=dict)
    workload: str | list[str] | None = None


class Arm(Section):
    """One engine and its grid.

    `server` holds flags of the engine. With `workers` above 1 there are that many servers, all
    alike, behind SGLang's router, whose flags are `router`; a `disaggregated` arm has one server
    for prefill and one for decode. `kv_store` holds flags of an LMCache server beside them.
    `client` holds flags of `vllm bench serve` that differ from the workload's. One of the workers
    can be killed so long after the load begins, and a `neighbour` be loaded all the while: a server
    of another model on the same machine.

    A `program` needs no server: it runs with `options`, and ends. `label` tells arms apart whose
    grids do not.
    """

    engine: Engine
    label: str | None = None
    model: str | None = Field(default=None, description="a name in models.yml; None: the profile's")
    server: Grid = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    workers: int = Field(default=1, ge=1, le=8)
    router: Grid = Field(default_factory=dict)
    lose_worker_after_s: float | None = Field(default=None, gt=0)
    neighbour: str | None = Field(default=None, description="a name in models.yml")
    disaggregated: bool = False
    kv_store: Grid | None = None
    after: list[After] = Field(default_factory=list)
    program: Program | None = None
    options: Grid = Field(default_factory=dict)
    client: Grid = Field(default_factory=dict)
    workload: str | list[str] = Field(default_factory=list)
    profiles: dict[str, ArmOverride] = Field(default_factory=dict)
    only: list[str] = Field(default_factory=list, description="profiles; empty: all of them")

    @model_validator(mode="after")
    def refuse_what_does_not_go_together(self) -> "Arm":
        for wrong, sentence in (
            (not self.workload and self.program is None, "an arm with servers needs a workload"),
            (self.engine == "machine" and self.program is None, "a machine serves nothing"),
            (
                self.program is not None
                and (self.workers > 1 or self.disaggregated or self.kv_store is not None),
                "a program runs without workers, disaggregation and KV store",
            ),
            (self.disaggregated and self.workers > 1, "a disaggregated arm has its two workers"),
            (self.disaggregated and self.engine != "vllm", "only vllm is disaggregated here"),
            (
                self.lose_worker_after_s is not None and self.workers == 1,
                "a worker can be lost only if there are several",
            ),
            ("store-restart" in self.after and self.kv_store is None, "there is no KV store"),
        ):
            if wrong:
                raise ValueError(sentence)
        return self


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


class Models(RootModel[dict[str, ModelFacts]]):
    """The file `models.yml`."""


class Workloads(RootModel[dict[str, Workload]]):
    """The file `workloads.yml`."""


MODELS = "models.yml"
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


def load_model_facts(name: str) -> ModelFacts:
    """What is known of the model `name`.

    Raises:
        SpecificationError: if nothing is, or the file is malformed.
    """
    return choose(load_models(), name, "model", MODELS)


def load_models() -> dict[str, ModelFacts]:
    """What is known of every model."""
    return read_model(EXPERIMENTS / MODELS, Models).root


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
