"""Measures an experiment on a SLURM cluster: points that share servers are a task of a job array.

A task measures with the code of a local run and saves its points in a part of its own. Nothing else
is remembered of a submission: the queue says what is on its way, the parts say what is finished.
So the process that waits may end at any time, and the next one goes on from there. (submitit could
wait as well, but it asks sacct, which a cluster without accounting does not have.)
"""

import time
from collections import Counter

from inferlab.lab.cluster import CLUSTER, SlurmError, sbatch_options
from inferlab.lab.guarded_process import TAIL_LINES
from inferlab.lab.parts import PartedResult, kind_of_machine
from inferlab.lab.paths import LIVE, RECORDED, result_path, without_root
from inferlab.lab.plan import plan_experiment
from inferlab.lab.results import Document, read_document
from inferlab.lab.runner import Report, new_point, refuse_other_versions
from inferlab.lab.slurm_array import (
    Task,
    array_name,
    groups,
    points_of,
    queued_tasks,
    submit,
    tasks_on_their_way,
)
from inferlab.lab.table import Table

# The controller answers a whole cluster, and a point takes minutes.
POLL_S = 30.0


def run_on_slurm(
    identifier: str, profile_name: str, *, record: bool, report: Report = lambda message, done: None
) -> Table:
    """Have SLURM measure every unfinished point, wait, and return the whole result.

    Points that an earlier call submitted and that are still on their way are waited for.

    Raises:
        SpecificationError, EnginesMissingError: before anything is submitted.
        SlurmError: if SLURM is missing or refuses the array, or Ctrl-C ended the wait.
        ResultError: if the file to resume from was cut short or edited.
    """
    plan = plan_experiment(identifier, profile_name)
    if record:
        refuse_other_versions()
    options = sbatch_options(profile_name)
    path = result_path(RECORDED if record else LIVE, profile_name, identifier)
    parts = result_path(LIVE, profile_name, identifier).with_suffix(".parts")
    result = PartedResult(plan, path, parts)
    result.collect()
    tasks = tasks_on_their_way(plan)
    covered = {*result.finished, *(name for task in tasks for name in points_of(task))}
    missing = {name: point for name, point in result.points.items() if name not in covered}
    if missing:
        tasks += submit(plan, groups(missing), parts, options)
    try:
        wait(tasks, result, report)
    except KeyboardInterrupt:
        raise SlurmError(
            f"Stopped waiting; the tasks go on in SLURM. The same command collects what they "
            f"measure, and `scancel --name {array_name(plan)}` ends them."
        ) from None
    result.save(failures(tasks, result))
    report("finished", len(plan.points) * plan.experiment.repeats)
    return Table(read_document(path), live=not record)


def wait(tasks: list[Task], result: PartedResult, report: Report) -> None:
    """Return once none of `tasks` is queued; until then save and report what they finish."""
    saved = 0
    while True:
        try:
            queued = queued_tasks(result.plan)
        except SlurmError as error:
            # A controller that restarts has not lost its tasks.
            message, over = str(error), False
        else:
            states = Counter(queued[task.job_id] for task in tasks if task.job_id in queued)
            message = ", ".join(f"{count} {state}" for state, count in states.items())
            over = not states
        # Only now: what had left the queue has saved its part.
        result.collect()
        if len(result.finished) > saved:
            saved = len(result.finished)
            result.save({})
        report(message, saved * result.plan.experiment.repeats)
        if over:
            return
        time.sleep(POLL_S)


def failures(tasks: list[Task], result: PartedResult) -> dict[str, Document]:
    """What to save for the points that `tasks` were to measure and that are not finished."""
    unfinished = result.points.keys() - result.finished.keys()
    return {
        name: failure(task, name, result)
        for task in tasks
        for name in points_of(task)
        if name in unfinished
    }


def failure(task: Task, name: str, result: PartedResult) -> Document:
    """A failed point in place of one that `task` was to measure."""
    part = result.part(task.job_id)
    tried = result.points_of(part) if part else {}
    if name in tried and tried[name]["status"] == "failed":
        return tried[name]
    error = f"The SLURM task {task.job_id} ended before it had measured this point."
    if part and name in tried:
        error = (
            f"The SLURM task {task.job_id} measured this point on another kind of machine "
            f"({kind_of_machine(part['provenance'])}) than the other points. Ask for one kind of "
            f"node in {CLUSTER} (`constraint`), or remove {result.path} and {result.folder} to "
            f"measure every point again."
        )
    log = "\n".join((task.stderr() or "").splitlines()[-TAIL_LINES:])
    point = new_point(result.plan, result.points[name], name)
    return {
        **point,
        "status": "failed",
        "error": without_root(error),
        "log": without_root(log),
    }
