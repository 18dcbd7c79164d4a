"""The gradebook on a real PostgreSQL server, from Debian's package."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from autograder import graded_exercises
from autograder.course import run_nbgrader
from autograder.grade import Assignment, grade_week
from autograder.gradebook import open_gradebook
from autograder.sandbox.isolator import BubblewrapIsolator
from tests.small_course import NOTEBOOK, WEEK, make_course
from tests.small_probes import probes_of
from tests.test_grade import hand_in

pytestmark = pytest.mark.slow


def program(name: str) -> str:
    """Debian keeps the server's programs off the PATH, one folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    where = str(found[-1]) if found else shutil.which(name)
    assert where, f"{name} is not installed; `.ci/run` installs Debian's package postgresql"
    return where


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database of a server that listens on a socket only."""
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if os.getuid() == 0:
            shutil.chown(folder, user)

        def run(*command: str) -> None:
            subprocess.run(
                command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120
            )

        data = str(folder / "data")
        run(program("initdb"), "-D", data, "-A", "trust", "-N")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off"
        run(program("pg_ctl"), "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            run(program("createdb"), "-h", str(folder), "gradebook")
            yield f"postgresql://{user}@/gradebook?host={folder}"
        finally:
            run(program("pg_ctl"), "-D", data, "-m", "immediate", "stop")


def test_a_class_is_graded_into_it(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERLAB_GRADEBOOK", database)
    monkeypatch.setattr(graded_exercises, "probes_of", probes_of)
    course = make_course(tmp_path / "course")
    assert not (course / "gradebook.db").exists()
    submissions = tmp_path / "in"
    hand_in(submissions, "right")
    hand_in(submissions, "half", square="return 9")

    def grade() -> dict[str, float]:
        assignment = Assignment(course, WEEK, BubblewrapIsolator())
        rows = grade_week(assignment, submissions, lambda done, total: None, jobs=2)
        return {row.student: row.exercise_points for row in rows}

    assert grade() == {"right": 9, "half": 7}
    with open_gradebook(course) as gradebook:
        mark = gradebook.find_grade(f"{WEEK}-execution", Path(NOTEBOOK).stem, WEEK, "half")
        mark.manual_score = 7
        gradebook.db.commit()
    shutil.rmtree(submissions / "half")
    hand_in(submissions, "half")
    assert grade() == {"right": 9, "half": 9}
    with create_engine(database).connect() as connection:
        asked = text("select count(*) from submitted_assignment")
        assert connection.execute(asked).scalar() == 2
    run_nbgrader(course, "export", "--to", str(tmp_path / "export.csv"))
    exported = (tmp_path / "export.csv").read_text().splitlines()
    assert any(line.startswith(WEEK) and ",16.0," in line for line in exported)
