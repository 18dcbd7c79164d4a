"""The tasks of a SLURM job array: submitting them, asking for them, and what each of them does."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from inferlab.lab.cluster import CLUSTER, SlurmError
from inferlab.lab.parts import points_by_name
from inferlab.lab.paths import LOGS, without_root
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.point import Point
from inferlab.lab.runner import measure_missing

Task = submitit.Job[None]


def array_name(plan: Plan) -> str:
    """What the tasks of a plan are called in the queue."""
    return f"inferlab/{plan.profile_name}/{plan.identifier}"


def submission_folder(plan: Plan) -> Path:
    """Where submitit keeps what it submitted, and the tasks their logs."""
    return LOGS / plan.profile_name / plan.identifier / "slurm"


def groups(points: Mapping[str, Point]) -> list[list[str]]:
    """Names of `points`, those together that stand side by side and share servers."""
    grouped: list[list[str]] = []
    for name, point in points.items():
        if grouped and points[grouped[-1][-1]].has_the_servers_of(point):
            grouped[-1].append(name)
        else:
            grouped.append([name])
    return grouped


def submit(
    plan: Plan, grouped: list[list[str]], parts: Path, options: dict[str, Any]
) -> list[Task]:
    """Submit an array with one task for each group of points.

    Raises:
        SlurmError: if SLURM refuses it.
    """
    executor = submitit.SlurmExecutor(submission_folder(plan))
    executor.update_parameters(job_name=array_name(plan), **options)
    same = (plan.identifier, plan.profile_name, parts)
    try:
        return executor.map_array(
            measure_group, grouped, *([value] * len(grouped) for value in same)
        )
    except FailedJobError as error:
        raise SlurmError(
            f"SLURM refused the array: {str(error).strip()}. What it asks for stands in "
            f"{without_root(str(CLUSTER))}."
        ) from None


def measure_group(names: list[str], identifier: str, profile_name: str, parts: Path) -> None:
    """The work of one task: measure the points called `names`, into the task's own part.

    Raises:
        SlurmError: if this node would not measure what was submitted.
        HardwareError, EnginesMissingError: as in a local run.
    """
    # submitit ignores this signal, which SLURM sends before it kills. Heeding it leaves the engines
    # time to end in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("SLURM told this task to end."))
    plan = plan_experiment(identifier, profile_name)
    points = points_by_name(plan)
    if not points.keys() >= set(names):
        raise SlurmError(
            "The specification, the model or the engines are not what they were where this task "
            "was submitted. Run the same command there again."
        )
    number = submitit.JobEnvironment().job_id
    group = replace(plan, points=[points[name] for name in names])
    measure_missing(group, parts / f"{number}.json", submission_folder(plan) / number, print)


def points_of(task: Task) -> list[str]:
    """Names of the points that `task` was submitted for."""
    names: list[str] = task.submission().args[0]
    return names


def queued_tasks(plan: Plan) -> dict[str, str]:
    """Numbers of the plan's tasks that wait or run → what they do, or what they wait for.

    Raises:
        SlurmError: if SLURM does not answer.
    """
    return queued(array_name(plan))


def queued(name: str) -> dict[str, str]:
    """Numbers of this user's tasks of this name → what they do, or what they wait for.

    Raises:
        SlurmError: if SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        raise SlurmError(
            "There is no squeue on this machine. Run this on a login node of the cluster, or "
            "without `--launcher slurm`."
        )
    command = ["squeue", "--me", "--array", "--noheader", "--format", "%i|%T|%r"]
    done = subprocess.run([*command, "--name", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SlurmError(f"SLURM does not answer: {done.stderr.strip()}.")
    tasks = (line.split("|", 2) for line in done.stdout.splitlines())
    return {
        number: f"waiting ({reason})" if state == "PENDING" else state.lower()
        for number, state, reason in tasks
    }


def tasks_on_their_way(plan: Plan) -> list[Task]:
    """Tasks of the plan that an earlier call submitted and that wait or run.

    Raises:
        SlurmError: if SLURM does not answer.
    """
    folder = submission_folder(plan)
    tasks: list[Task] = [submitit.SlurmJob(folder, number) for number in queued_tasks(plan)]
    # Another copy of the course calls its tasks the same, and keeps them in a folder of its own.
    return [task for task in tasks if task.paths.submitted_pickle.exists()]
