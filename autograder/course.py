"""nbgrader's course directory, and nbgrader run in it: as a command, or in this process."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config.loader import PyFileConfigLoader

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = "nbgrader_config.py"


def prepare_course(course: Path) -> Path:
    """Make the course directory, with the configuration that nbgrader's command line reads."""
    course.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "autograder" / CONFIGURATION, course)
    return course


@functools.cache
def nbgrader_of(course: Path) -> NbGraderAPI:
    """nbgrader with the configuration of the course directory, in this process.

    It grades what `make grade` has repaired.
    """
    config = PyFileConfigLoader(CONFIGURATION, path=str(course)).load_config()
    config.CourseDirectory.root = str(course.resolve())
    config.CourseDirectory.submitted_directory = "repaired"
    return NbGraderAPI(CourseDirectory(config=config), config=config)


def run_nbgrader(course: Path, *arguments: str, seconds: float | None = None) -> str:
    """Run nbgrader's command line in the course directory; returns what it logged.

    Raises RuntimeError with the end of the log when it fails or takes longer than `seconds`.
    """
    # nbgrader looks for `alembic` on PATH, where an environment that is not activated lacks it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=course,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"nbgrader {' '.join(arguments)} was stopped after {seconds:.0f} seconds."
        ) from error
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"nbgrader {' '.join(arguments)} ended with {done.returncode}:\n{tail}")
    return done.stdout
