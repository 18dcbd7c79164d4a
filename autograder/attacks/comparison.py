"""What each attack would gain from nbgrader as it comes: recorded, for the instructor guide.

`python -m autograder.attacks.comparison` tries them all, each in a box of its own, in which plain
nbgrader grades it beside an honest submission, and writes `plain_nbgrader.json`.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
from rich.progress import track

from autograder.attacks.attack import Attack
from autograder.attacks.suite import VICTIM, acts, all_attacks, secrets_of
from autograder.graded_exercises import graded_exercises
from autograder.practice_course import (
    EXERCISE,
    WEEK,
    answered,
    fresh_notebook,
    hand_in,
    practice_course,
)
from autograder.sandbox.bubblewrap import LIMITS, boxed
from autograder.sandbox.control_group import control_group
from inferlab.lab.json_file import write_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("plain_nbgrader.py")
RECORDED = Path(__file__).with_name("plain_nbgrader.json")
SECONDS = 400.0


class Effect(NamedTuple):
    """What an attack did to plain nbgrader."""

    marks: bool  # it got points that its answer does not deserve
    secrets: bool  # its outputs or its feedback show a hidden test, the reference or hidden inputs
    harm: bool  # grading failed, somebody else's points changed, or a page runs its script


def try_on_plain_nbgrader(attack: Attack, course: Path, folder: Path) -> Effect:
    """Grade the attack in a box; `folder` is empty."""
    (exercise,) = graded_exercises(course, WEEK)
    victim = answered(fresh_notebook(course), {EXERCISE: exercise.solution})
    hand_in(course, folder, VICTIM, victim)
    attack.add(hand_in(course, folder, "attack", attack.change(fresh_notebook(course))))
    limits = LIMITS._replace(scratch_bytes=2**30, cpu_s=1200)
    with control_group(limits._replace(memory_bytes=4 * 2**30, processes=256)) as entering:
        box = boxed(
            [sys.executable, str(SCRIPT), str(course), str(folder), WEEK],
            readable=[SCRIPT, course, folder, ROOT / "inferlab"],
            environment={"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
            limits=limits,
        )
        try:
            done = subprocess.run(
                [*entering, *box], capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return Effect(marks=False, secrets=False, harm=True)
    try:
        report = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return Effect(marks=False, secrets=False, harm=True)
    pieces = [
        piece for found in secrets_of(course, fresh_notebook(course)).values() for piece in found
    ]
    return Effect(
        marks=(report["points"]["attack"] or 0) > 0,
        secrets=any(piece in report["said"] for piece in pieces),
        harm=report["returned"] != 0
        or report["points"][VICTIM] != exercise.points
        or acts(report["feedback"]),
    )


@click.command()
@click.option("--kind", help="Only the attacks of one class; nothing is recorded then.")
def main(kind: str | None) -> None:
    """Try every attack on plain nbgrader."""
    attacks = [attack for attack in all_attacks() if kind in (None, attack.kind)]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as threads:
        course = practice_course(Path(name))

        def try_one(number: int) -> Effect:
            return try_on_plain_nbgrader(attacks[number], course, Path(name) / f"in-{number}")

        running = threads.map(try_one, range(len(attacks)))
        found = list(track(running, "Attacking plain nbgrader", len(attacks)))
    for attack, effect in zip(attacks, found):
        gained = [what for what, is_so in effect._asdict().items() if is_so]
        print(f"{attack.kind}: {attack.name}: {', '.join(gained) or 'nothing'}")
    if kind is None:
        record = {
            "nbgrader": importlib.metadata.version("nbgrader"),
            "python": sys.version.split()[0],
            "attacks": [
                {"kind": attack.kind, "name": attack.name, "aim": attack.aim, **effect._asdict()}
                for attack, effect in zip(attacks, found)
            ],
        }
        write_json(RECORDED, record)


if __name__ == "__main__":
    main()
