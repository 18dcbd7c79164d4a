"""Examines the submissions of a large class on a SLURM cluster, several at a time on each node.

The tasks of the array leave their verdicts in the course directory, which the nodes share, where
grading finds them. So nothing else is remembered: whoever waits may end at any time, and what a
task did not get to is examined where grading goes on.
"""

import time
from collections.abc import Callable
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from autograder.examination import verdicts
from autograder.grade import Assignment, begin
from autograder.grade_table import Row
from autograder.submissions import Submission, find_submissions
from inferlab.lab.cluster import CLUSTER, SlurmError, sbatch_options
from inferlab.lab.paths import without_root
from inferlab.lab.slurm_array import queued

PROFILE = "grading"
MOST_PER_TASK = 20  # submissions; a task of some minutes is worth its place in the queue
POLL_S = 5.0


def examine_on_slurm(
    assignment: Assignment, folder: Path, report: Callable[[str], None], poll_s: float = POLL_S
) -> None:
    """Have SLURM examine everything in `folder`, and wait until no task is queued any more.

    Raises:
        Refused: when the week has not been released or there is nothing to grade.
        SlurmError: if SLURM is missing or refuses the array.
    """
    assignment.refuse_unreleased()
    found = find_submissions(folder, assignment.week)
    chunks = [found[at : at + MOST_PER_TASK] for at in range(0, len(found), MOST_PER_TASK)]
    name = f"inferlab/grading/{assignment.week}"
    executor = submitit.SlurmExecutor(assignment.course.resolve() / "slurm")
    executor.update_parameters(job_name=name, **sbatch_options(PROFILE))
    try:
        executor.map_array(examine_all, [assignment] * len(chunks), chunks)
    except FailedJobError as error:
        raise SlurmError(
            f"SLURM refused the array: {str(error).strip()}. What it asks for stands in "
            f"{without_root(str(CLUSTER))}."
        ) from None
    while tasks := queued(name):
        report(f"{len(tasks)} of {len(chunks)} tasks are waiting or running")
        time.sleep(poll_s)


def examine_all(assignment: Assignment, submissions: list[Submission]) -> None:
    """The work of one task. What fails here says so when it is marked."""
    assignment.isolator.require()
    for submission in submissions:
        begun = begin(assignment, submission)
        if isinstance(begun, Row):
            print(*begun.notes)
            continue
        try:
            verdicts(begun.examination, assignment.isolator)
        except (RuntimeError, OSError) as error:
            print(f"{submission.student}: {error}")
