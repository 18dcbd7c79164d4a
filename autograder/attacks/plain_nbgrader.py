"""What an attack would gain where nbgrader grades as it comes; run in a box of its own.

`python plain_nbgrader.py COURSE SUBMISSIONS WEEK` copies both into the box, grades the students
`attack` and `victim` there with nothing but nbgrader, and prints what it found as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SECONDS_PER_CELL = 5
SECONDS_PER_COMMAND = 90


def main(course: Path, submissions: Path, week: str) -> None:
    here = Path("course").absolute()
    here.mkdir()
    shutil.copytree(course / "source", here / "source")
    shutil.copy(course / "gradebook.db", here)
    shutil.copytree(submissions, here / "submitted", symlinks=True)
    (here / "nbgrader_config.py").write_text(
        f"c = get_config()\nc.Execute.timeout = {SECONDS_PER_CELL}\n"
    )
    returned = nbgrader(here, "autograde", week, "--create")
    nbgrader(here, "generate_feedback", week)
    graded = {who: here / "autograded" / who / week for who in STUDENTS}
    report = {
        "returned": returned,
        "points": {who: points(here, week, who) for who in STUDENTS},
        "said": said(graded["attack"]),
        "feedback": text_below(here / "feedback" / "attack"),
    }
    print(json.dumps(report))


STUDENTS = ("attack", "victim")


def nbgrader(course: Path, *arguments: str) -> int:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        return subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=course,
            env=os.environ | {"PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=sys.stderr,
            timeout=SECONDS_PER_COMMAND,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


def points(course: Path, week: str, student: str) -> float | None:
    """Points of the exercise in the gradebook; None if there are none."""
    from nbgrader.api import Gradebook, MissingEntry

    try:
        with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
            (notebook,) = gradebook.find_submission(week, student).notebooks
            return sum(g.auto_score or 0 for g in notebook.grades if g.name.endswith("-probes"))
    except (MissingEntry, ValueError):
        return None


def said(folder: Path) -> str:
    """Everything that the graded notebook's cells put out."""
    found = []
    for path in folder.glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            found.append(json.dumps(cell.get("outputs", [])))
    return "\n".join(found)


def text_below(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.rglob("*.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
