"""Grades every attack as a submission, beside an honest one, and looks for what it gained."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup
from nbformat import NotebookNode

from autograder.attacks.attack import Attack, attacks_of_one_cell
from autograder.attacks.notebooks import attacks_of_a_notebook
from autograder.course import run_nbgrader
from autograder.examination import Seconds
from autograder.grade import Assignment, grade_week
from autograder.grade_table import Row
from autograder.graded_exercises import graded_exercises
from autograder.observation import decode
from autograder.practice_course import (
    EXERCISE,
    WEEK,
    answered,
    fresh_notebook,
    hand_in,
    practice_course,
)
from autograder.sandbox.isolator import BubblewrapIsolator

SECONDS = Seconds(per_cell=5, per_probe=3, per_submission=30)
VICTIM = "victim"
ENVIRONMENT = "INFERLAB_SECRET_OF_THE_GRADER"
# What the attacks would leave where they can write.
TRACES = ("filler", "friend", "escaped", "results.json", "sitecustomize.py", "psm_left_behind")
TRACE_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp", str(Path.home()))


class Outcome(NamedTuple):
    """What an attack came to."""

    attack: Attack
    row: Row
    leaked: list[str]

    @property
    def gained(self) -> bool:
        """Whether it got a mark or learnt something."""
        return bool(self.leaked) or self.row.exercise_points > 0


class Report(NamedTuple):
    """What all attacks came to."""

    outcomes: list[Outcome]
    harm: list[str]  # in sentences; whatever was not as it had been before


def all_attacks() -> list[Attack]:
    """Every attack, by class."""
    found = [*attacks_of_one_cell(), *attacks_of_a_notebook()]
    return sorted(found, key=lambda attack: attack.kind)


def run_attacks(
    attacks: list[Attack], folder: Path, progress: Callable[[int, int], None], jobs: int = 1
) -> Report:
    """Grade `attacks` in a course made in `folder`, as a class would be graded."""
    course = practice_course(folder)
    (exercise,) = graded_exercises(course, WEEK)
    submissions = folder / "submissions"
    victim = answered(fresh_notebook(course), {EXERCISE: exercise.solution})
    hand_in(course, submissions, VICTIM, victim)
    names = {f"attack-{number:02d}": attack for number, attack in enumerate(attacks)}
    for name, attack in names.items():
        target = hand_in(course, submissions, name, attack.change(fresh_notebook(course)))
        attack.add(target)
    before = state_of_the_machine(course)
    with environment(ENVIRONMENT, "secret-of-the-environment"):
        rows = grade_week(
            Assignment(course, WEEK, BubblewrapIsolator(), SECONDS), submissions, progress, jobs
        )
    run_nbgrader(course, "generate_feedback", WEEK, "--force")
    harm = list(differences(before, state_of_the_machine(course)))
    by_student = {row.student: row for row in rows}
    if by_student[VICTIM].exercise_points != exercise.points:
        harm.append(f"The honest submission got {by_student[VICTIM].exercise_points} points.")
    secrets = secrets_of(course, answered(fresh_notebook(course), {}))
    return Report(
        [
            Outcome(attack, by_student[name], learnt(feedback(course, name), secrets))
            for name, attack in names.items()
        ],
        harm,
    )


def feedback(course: Path, student: str) -> str:
    """All that the student is shown."""
    pages = (course / "feedback" / student).rglob("*.html")
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def secrets_of(course: Path, released: NotebookNode) -> dict[str, list[str]]:
    """What a student is not to see, by what it is: pieces of text that stand nowhere else."""
    (exercise,) = graded_exercises(course, WEEK)
    known = "\n".join(cell.source for cell in released.cells)
    lines = [line.strip() for line in exercise.solution.splitlines()]
    asked = [
        str(value)
        for probe in exercise.probes
        for seed in range(3)
        for trial in probe.encoded_inputs(seed)
        for value in _lists(decode(trial))
    ]
    return {
        "the reference": [line for line in lines if len(line) > 30 and line not in known],
        "a probe": [f"def {probe.name}" for probe in exercise.probes],
        "inputs": [text for text in asked if len(text) > 30],
        "the grader's environment": [ENVIRONMENT, "secret-of-the-environment"],
    }


def _lists(data: object) -> Iterator[list[object]]:
    if isinstance(data, list):
        yield data
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else []:
        yield from _lists(item)


def learnt(page: str, secrets: dict[str, list[str]]) -> list[str]:
    """The names of the secrets of which some piece stands in `page`, and whether it acts."""
    found = [name for name, pieces in secrets.items() if any(piece in page for piece in pieces)]
    return [*found, *(["a script that runs"] if acts(page) else [])]


def acts(page: str) -> bool:
    """Whether a browser would run what `notebooks.SCRIPT` holds."""
    parsed = BeautifulSoup(page, "html.parser")
    scripts = "".join(script.get_text() for script in parsed.find_all("script"))
    return "/formgrader/api/marks" in scripts or bool(parsed.find_all(onerror=True))


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable of this process for a while."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def state_of_the_machine(course: Path) -> dict[str, str]:
    """What no submission may change, each thing with a text that says how it is."""
    kept = [course / name for name in ("source", "release", "packages", "nbgrader_config.py")]
    found = {str(path): digest(path) for path in files_below(kept)}
    for folder in TRACE_FOLDERS:
        for name in TRACES:
            found[f"{folder}/{name}"] = str((Path(folder) / name).exists())
    found["processes in boxes"] = ", ".join(boxed_processes())
    return found


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths`, and those in the folders among them."""
    for path in paths:
        yield from (one for one in [path, *path.rglob("*")] if one.is_file())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def boxed_processes() -> list[str]:
    """Processes that run and have a number of their own in a box."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue  # it has ended
        fields = dict(line.partition(":\t")[::2] for line in lines)
        numbers = fields.get("NSpid", "").split()
        if len(numbers) > 1 and not fields["State"].startswith("Z"):
            found.append(numbers[0])
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    """A sentence for each thing that is not as it was."""
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"{name} was {before.get(name)!r} and is {after.get(name)!r}."
