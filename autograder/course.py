"""nbgrader's course directory, and nbgrader run in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare_course(course: Path) -> Path:
    """Make the course directory, with the configuration that nbgrader's command line reads."""
    course.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "autograder" / "nbgrader_config.py", course)
    return course


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
