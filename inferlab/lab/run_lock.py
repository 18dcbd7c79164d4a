"""One run at a time in a folder of logs: two would overwrite each other's logs and results.

The kernel holds the locks and releases them when a process ends, however it ends, so that a run
that was killed blocks nobody.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inferlab.lab.results import ResultError

# A guard ends what a killed run left within 20 s.
PATIENCE_S = 60.0


@contextmanager
def run_lock(log_folder: Path) -> Iterator[None]:
    """Hold the lock on `log_folder`, once everything that an earlier run started has ended.

    Raises:
        ResultError: if another run holds it, or processes of an earlier run do not end.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    # Opened so that neither creating nor reading it changes what its holder wrote.
    with (log_folder / "run.lock").open("a+") as file:
        if not is_free(file):
            file.seek(0)
            raise ResultError(
                f"Another run measures this already: {file.read()}. Wait for its end, or stop it "
                f"with Ctrl-C; what it has finished is not measured again."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        # A program's log lies in a folder of its own; those further down are of SLURM's tasks.
        for log in (*log_folder.glob("*.log"), *log_folder.glob("*/*.log")):
            wait_for_writers(log)
        yield


def wait_for_writers(log: Path) -> None:
    """Engines of a run that was killed hold memory until their guards have ended them."""
    deadline = time.monotonic() + PATIENCE_S
    with log.open() as file:
        while not is_free(file):
            if time.monotonic() > deadline:
                raise ResultError(
                    f"Processes of an earlier run still write to {log}. `python -m inferlab.lab "
                    f"doctor` names them: end them, and run the same command again."
                )
            time.sleep(0.1)


def is_free(file: IO[str]) -> bool:
    """Take the lock on an open file, unless a process has it or the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
