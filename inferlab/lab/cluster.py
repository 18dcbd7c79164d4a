"""What the tasks of an experiment ask a cluster for, as written in `deploy/slurm/cluster.yml`."""

from typing import Any

from pydantic import Field

from inferlab.lab.paths import ROOT, without_root
from inferlab.lab.yaml_file import Section, SpecificationError, read_model

CLUSTER = ROOT / "deploy" / "slurm" / "cluster.yml"


class SlurmError(RuntimeError):
    """SLURM is not there or refuses the array, or waiting for it was stopped."""


class Request(Section):
    """What one task asks for on one profile; the names are those of sbatch's options."""

    partition: str | None = None
    constraint: str | None = None
    gres: str | None = None
    cpus_per_task: int = Field(ge=1)
    mem: str
    time: int = Field(ge=1, description="minutes, for all points that share servers")


class Cluster(Section):
    """The file `cluster.yml`."""

    account: str | None = None
    qos: str | None = None
    array_parallelism: int = Field(ge=1, description="tasks that may run at once")
    setup: list[str] = Field(default_factory=list, description="shell lines before each task")
    profiles: dict[str, Request]


def sbatch_options(profile_name: str) -> dict[str, Any]:
    """What the tasks of an array on this profile ask for, in submitit's words.

    Raises:
        SpecificationError: if the file is missing or malformed, or lacks the profile.
    """
    cluster = read_model(CLUSTER, Cluster)
    if profile_name not in cluster.profiles:
        raise SpecificationError(
            f"{without_root(str(CLUSTER))} does not say what to ask for on the profile "
            f"{profile_name!r}; it knows {', '.join(cluster.profiles)}."
        )
    request = cluster.profiles[profile_name]
    return {
        **cluster.model_dump(exclude={"profiles"}),
        **request.model_dump(),
        # srun takes this over from sbatch in some versions of SLURM only, and gives one core else.
        "srun_args": [f"--cpus-per-task={request.cpus_per_task}"],
    }
