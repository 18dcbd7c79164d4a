"""A control group for a box, where this machine lets us make one: memory and processes, together.

Resource limits hold for each process alone, and the one on the number of processes does not bind
root.
"""

import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from autograder.sandbox.bubblewrap import LIMITS, Limits

ROOT = Path("/sys/fs/cgroup")
NAME = "inferlab-box-"
REMOVE_S = 2.0
POLL_S = 0.01


@contextmanager
def control_group(limits: Limits) -> Iterator[list[str]]:
    """Words to put before a command so that it starts in a group with `limits`; none where no
    group can be made. At the end everything left in the group is killed.
    """
    folders = []
    try:
        for folder, settings in _groups(limits).items():
            with suppress(OSError):
                _remove_abandoned(folder.parent)
                folder.mkdir()
                folders.append(folder)
                for name, value in settings.items():
                    (folder / name).write_text(str(value))
        yield _entering(folders)
    finally:
        for folder in folders:
            _remove(folder)


def can_be_made() -> bool:
    """Whether this user may make control groups on this machine."""
    with control_group(LIMITS) as entering:
        return bool(entering)


def _groups(limits: Limits) -> dict[Path, dict[str, int]]:
    """Folders of the groups to make, each with what to write into its files."""
    name = f"{NAME}{os.getpid()}-{secrets.token_hex(4)}"
    if (ROOT / "cgroup.controllers").exists():  # version 2: one tree
        settings = {"memory.max": limits.memory_bytes, "pids.max": limits.processes}
        return {ROOT / name: settings | {"memory.swap.max": 0}}
    return {
        ROOT / "pids" / name: {"pids.max": limits.processes},
        ROOT / "memory" / name: {"memory.limit_in_bytes": limits.memory_bytes},
    }


def _entering(folders: Sequence[Path]) -> list[str]:
    if not folders:
        return []
    # A box must not start without the limits that it was promised.
    joins = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in folders)
    return ["/bin/sh", "-c", f'{joins} && exec "$@"', "sh"]


def _remove(folder: Path) -> None:
    end = time.monotonic() + REMOVE_S
    while time.monotonic() < end:
        for process in (folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        try:
            folder.rmdir()
        except OSError:
            time.sleep(POLL_S)
        else:
            return


def _remove_abandoned(parent: Path) -> None:
    """Remove the groups of graders that were killed, and what is left in them: a box whose starter
    is killed in the first milliseconds does not notice it."""
    for folder in parent.glob(f"{NAME}*"):
        owner = folder.name.removeprefix(NAME).partition("-")[0]
        if not Path(f"/proc/{owner}").exists():
            with suppress(OSError):
                _remove(folder)
