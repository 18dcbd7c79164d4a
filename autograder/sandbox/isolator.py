"""Where submissions are run: an isolator takes a task and gives back what was seen."""

import subprocess
import sys
from abc import ABC, abstractmethod

from pydantic import ValidationError

from autograder.sandbox import control_group
from autograder.sandbox.bubblewrap import require_isolation
from autograder.sandbox.task import MOST_ANSWER_BYTES, Answer, Task

START_AND_END_S = 120.0  # that an examination may take beside the submission's own time


class ExaminationError(RuntimeError):
    """A submission could not be examined, which is no verdict on it."""


class Isolator(ABC):
    """Runs submissions where they can do no harm.

    Contract: of what `examine` returns every part may have been invented by the student; nothing
    else that the student's code does has any effect once `examine` is over.
    """

    @abstractmethod
    def require(self) -> None:
        """Make sure that isolation works here.

        Raises:
            NoIsolationError: if it does not; the message says what to do about it.
        """

    def shortfall(self) -> str:
        """What cannot be limited here, in a sentence; empty if all can."""
        return ""

    @abstractmethod
    def examine(self, task: Task) -> Answer:
        """What is seen of a submission.

        Raises:
            ExaminationError: if nothing was seen, for a reason that is no fault of the student's.
        """


class BubblewrapIsolator(Isolator):
    """A process for each submission, and in it a box for each exercise."""

    def require(self) -> None:
        """Try a box."""
        require_isolation()

    def shortfall(self) -> str:
        """Without control groups limits hold for each process by itself."""
        if control_group.can_be_made():
            return ""
        return (
            "No control group can be made here, so the memory of a box is limited for each of its "
            "processes and not for all together. Grade as root, or where groups are delegated to "
            "you, to limit both."
        )

    def examine(self, task: Task) -> Answer:
        """Run `autograder.sandbox.examine`."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "autograder.sandbox.examine"],
                input=task.model_dump_json().encode(),
                capture_output=True,
                timeout=task.seconds + START_AND_END_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ExaminationError(
                f"The examination did not end within {error.timeout:g} seconds."
            ) from error
        if done.returncode or len(done.stdout) > MOST_ANSWER_BYTES:
            tail = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ExaminationError(f"The examination ended with {done.returncode}: {tail}")
        return read_answer(done.stdout, task)


def read_answer(text: bytes, task: Task) -> Answer:
    """The answer to `task` in `text`.

    Raises:
        ExaminationError: if it is none.
    """
    try:
        answer = Answer.model_validate_json(text)
    except ValidationError as error:
        raise ExaminationError(f"The examination sent no answer: {error}") from error
    if answer.exercises.keys() != {exercise.name for exercise in task.exercises}:
        raise ExaminationError("The examination answered for other exercises than were asked.")
    return answer
