"""Decides which probes a submission passes: asks a box what it sees, and compares outside it.

Only the text of the exercise cells is taken from a submission. Which exercises there are, what runs
before them and what they must answer comes from the instructor's notebook.
"""

import builtins
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter

from autograder.graded_exercises import GradedExercise, graded_exercises, source_notebook
from autograder.hidden_cell import run_cell
from autograder.observation import decode, equal
from autograder.probe import Probe
from autograder.probe_source import needed_of, observed, source_of
from autograder.sandbox.isolator import Isolator
from autograder.sandbox.task import Answer, ExerciseTask, ProbeTask, Seen, Task
from inferlab.lab.json_file import write_json


class Seconds(NamedTuple):
    """What a submission may take."""

    per_cell: float = 60.0
    per_probe: float = 30.0
    per_submission: float = 600.0


USUAL = Seconds()


class Verdict(BaseModel):
    """What an exercise cell is worth.

    Attributes:
        passed: whether each probe saw what it sees of the reference.
        error: one of Python's own exceptions, with which the cell ended, or empty.
        line: of the cell, where that was; 0 if it is unknown.
    """

    model_config = ConfigDict(extra="forbid")

    passed: list[bool]
    error: str = ""
    line: int = 0

    def points(self, most: float) -> float:
        """The share of `most` that the passed probes are worth."""
        return round(most * sum(self.passed) / len(self.passed), 2)


_VERDICTS = TypeAdapter(dict[str, Verdict])


class Examination:
    """What is asked about a submission, and what has to be answered.

    A verdict is remembered in the course directory: the same cells in the same release are not run
    again. All of this belongs into one thread: Triton's interpreter changes Triton while it runs,
    and in Python 3.11 `ast.parse` may fail in one thread while it runs in another. So submissions
    are in their boxes at the same time, and no more.
    """

    def __init__(
        self,
        course: Path,
        week: str,
        answers: Mapping[str, str],
        seconds: Seconds = USUAL,
        jobs: int = 1,
    ) -> None:
        """Ask about a student's cells, which `answers` holds by exercise, `jobs` at a time.

        Raises:
            FileNotFoundError: if the week has not been released.
        """
        self._exercises = graded_exercises(course, week)
        self._cells = {one.name: answers.get(one.name, "") for one in self._exercises}
        digest = hashlib.sha256(source_notebook(course, week).read_bytes())
        digest.update(repr(self._cells).encode())
        # From what was handed in: to hand in again and again says nothing about the expected
        # values, because every other cell is asked something else.
        self._seed = int.from_bytes(digest.digest()[:8])
        self._remembered = course / "examined" / week / f"{digest.hexdigest()}.json"
        self._seconds, self._jobs = seconds, jobs

    @cached_property
    def task(self) -> Task:
        """What an isolator has to do."""
        return Task(
            exercises=[
                _exercise_task(one, self._cells[one.name], self._seed) for one in self._exercises
            ],
            jobs=self._jobs,
            seconds_per_cell=self._seconds.per_cell,
            seconds_per_probe=self._seconds.per_probe,
            seconds=self._seconds.per_submission,
        )

    def remembered(self) -> dict[str, Verdict] | None:
        """The verdict on each exercise, if these cells were examined before."""
        if not self._remembered.exists():
            return None
        return _VERDICTS.validate_json(self._remembered.read_bytes())

    def conclude(self, answer: Future[Answer]) -> dict[str, Verdict]:
        """The verdict on each exercise; the reference is observed while `answer` comes.

        Raises:
            ExaminationError: if the examination failed, which is no verdict.
        """
        expected = [
            _expected(one, asked) for one, asked in zip(self._exercises, self.task.exercises)
        ]
        seen = answer.result().exercises
        found = {
            one.name: _verdict(one, wanted, seen[one.name])
            for one, wanted in zip(self._exercises, expected)
        }
        write_json(self._remembered, {name: one.model_dump() for name, one in found.items()})
        return found


def verdicts(examination: Examination, isolator: Isolator) -> dict[str, Verdict]:
    """The verdict on each exercise, from memory or from `isolator`.

    Raises:
        NoIsolationError: if something has to be run and nothing can be isolated here.
        ExaminationError: if the examination failed, which is no verdict.
    """
    if (found := examination.remembered()) is not None:
        return found
    isolator.require()
    with ThreadPoolExecutor(1) as box:
        return examination.conclude(box.submit(isolator.examine, examination.task))


def _exercise_task(exercise: GradedExercise, cell: str, seed: int) -> ExerciseTask:
    return ExerciseTask(
        name=exercise.name,
        package=str(exercise.package),
        cells=[*exercise.setup, cell],
        probes=source_of(exercise.probes, needed_of("autograder.probe_source", "observations")),
        tasks=[
            ProbeTask(name=probe.name, inputs=probe.encoded_inputs(seed))
            for probe in exercise.probes
        ],
    )


def _expected(exercise: GradedExercise, task: ExerciseTask) -> list[list[str]]:
    """What the probes see of the reference, by probe and trial."""
    reference = SimpleNamespace(**run_cell(exercise.solution, {}))
    return [
        [observed(probe.observe, reference, trial) for trial in asked.inputs]
        for probe, asked in zip(exercise.probes, task.tasks)
    ]


def _verdict(exercise: GradedExercise, expected: list[list[str]], seen: Seen) -> Verdict:
    observations = seen.observations or [[] for _ in exercise.probes]
    # A class of the student's own could be named after what it has read.
    is_python_s = isinstance(getattr(builtins, seen.error, None), type)
    return Verdict(
        passed=[
            _is_passed(probe, wanted, given)
            for probe, wanted, given in zip(exercise.probes, expected, observations, strict=True)
        ],
        error=seen.error if is_python_s else "Exception" if seen.error else "",
        line=min(max(seen.line, 0), 10_000),
    )


def _is_passed(probe: Probe, expected: Sequence[str], seen: Sequence[str | None]) -> bool:
    try:
        return len(seen) == len(expected) and all(
            text is not None and equal(decode(wanted), decode(text), probe.tolerance)
            for wanted, text in zip(expected, seen)
        )
    except ValueError:  # what was sent is no observation
        return False
