"""What is asked about a submission, and what is answered: all that passes into and out of a box."""

from pydantic import BaseModel, ConfigDict, Field

# One observation has at most 1,000,000 characters (`autograder.observation`).
MOST_ANSWER_BYTES = 64 * 2**20


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProbeTask(Model):
    """One probe: its function in `ExerciseTask.probes`, and what that is given."""

    name: str
    inputs: list[str]  # of each trial, encoded


class ExerciseTask(Model):
    """One exercise: what runs in its kernel, in this order."""

    name: str
    package: str  # folder with the course's package, in which only this exercise is unwritten
    cells: list[str]  # the setup, then the student's cell
    probes: str  # source that defines the probes' functions and `observations`
    tasks: list[ProbeTask]


class Task(Model):
    """One submission."""

    exercises: list[ExerciseTask]
    jobs: int = Field(ge=1)  # exercises at once
    seconds_per_cell: float
    seconds_per_probe: float
    seconds: float  # for the whole submission


class Seen(Model):
    """What was seen of one exercise. Whatever stands here may have been invented by the student."""

    error: str = ""  # class of the exception that the student's cell ended with
    line: int = 0
    observations: list[list[str | None]] = []  # by probe and trial, encoded; None for none


class Answer(Model):
    """What was seen of a submission."""

    exercises: dict[str, Seen]
