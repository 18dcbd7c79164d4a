"""A real JupyterHub for a small class, which leaves nothing behind on the machine it ran on.

The hub starts in namespaces of its own: of processes, so that every server and kernel of every
person ends with it, however it ends; and of mounts, where `/etc` is a copy, so that `useradd` makes
real Unix users whom the rest of the machine never sees.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import httpx

from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.server import free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "deploy" / "jupyterhub" / "jupyterhub_config.py"
COURSE = "inference-engineering"
INSTRUCTOR = "instructor"
STUDENTS = ("ada", "ben", "cleo")
PASSWORD = "a password for tests"
START_LIMIT_S = 180

# Another user must be able to reach the interpreter and the repository. Where one of them lies in a
# folder that is closed to others, such as the home of root, the hub sees that folder with nothing
# else in it.
OPEN = """\
mkdir -p {folder}/open/{number}
mount --bind {path} {folder}/open/{number}
"""
REPLACE = """\
mount -t tmpfs -o mode=0755 tmpfs {closed}
"""
PUT_BACK = """\
mkdir -p {path}
mount --bind {folder}/open/{number} {path}
"""
USER = "useradd --create-home --base-dir {folder}/home --key HOME_MODE=0700 {name}\n"


class Person(NamedTuple):
    """Someone with an account on the hub."""

    name: str
    uid: int
    gid: int
    home: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this person, with no rights of ours."""
        return subprocess.run(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.home)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


class Hub(NamedTuple):
    """A running hub.

    Attributes:
        folder: where it keeps its state, and the class its exchange.
        people: everyone with an account, by name.
    """

    address: str
    folder: Path
    people: dict[str, Person]

    @property
    def course(self) -> Path:
        """The instructor's course directory."""
        return self.people[INSTRUCTOR].home / COURSE

    @property
    def exchange(self) -> Path:
        """The course's part of the exchange."""
        return self.folder / "exchange" / COURSE

    def submission(self, student: str) -> Path:
        """The folder in the exchange that a student handed in."""
        (found,) = (self.exchange / "inbound").glob(f"{student}+*")
        return found


def closed_folder(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that other users cannot enter."""
    way = [*reversed(path.parents), path]
    return next((folder for folder in way if not folder.stat().st_mode & 0o001), None)


def start_script(folder: Path) -> str:
    """What runs in the namespaces before the hub: its own `/etc`, its users, a way to Python."""
    needed = [Path(sys.base_prefix).resolve(), ROOT]
    closed = {path: found for path in needed if (found := closed_folder(path))}
    numbered = list(enumerate(closed))
    lines = ["set -eu\n", f"mount --bind {folder}/etc /etc\n"]
    lines += [OPEN.format(folder=folder, number=n, path=path) for n, path in numbered]
    lines += [REPLACE.format(closed=one) for one in dict.fromkeys(closed.values())]
    lines += [PUT_BACK.format(folder=folder, number=n, path=path) for n, path in numbered]
    lines += [USER.format(folder=folder, name=name) for name in (INSTRUCTOR, *STUDENTS)]
    return "".join([*lines, f"{sys.executable} -m jupyterhub --config {CONFIGURATION}\n"])


@contextmanager
def running_hub(course: Path) -> Iterator[Hub]:
    """A hub with students, and an instructor who has a copy of the course directory."""
    assert find_spec("jupyterhub"), "JupyterHub is not installed: run `make hub` first."
    # Not pytest's own folder, which no other user can enter.
    with tempfile.TemporaryDirectory(prefix="hub-") as made:
        folder = Path(made)
        folder.chmod(0o711)
        shutil.copytree("/etc", folder / "etc", symlinks=True)
        (folder / "home").mkdir()
        address = f"http://127.0.0.1:{three_free_ports()}"
        environment = {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HUB_FOLDER": str(folder / "hub"),
            "HUB_ADDRESS": address,
            "HUB_INSTRUCTOR": INSTRUCTOR,
            "HUB_TEST_PASSWORD": PASSWORD,
        }
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["/bin/sh", "-c", start_script(folder)]
        with GuardedProcess(command, environment, ROOT / "build" / "hub.log") as process:
            wait_for(address, process)
            hub = Hub(address, folder / "hub", people(folder))
            give_course(hub.people[INSTRUCTOR], course)
            yield hub


def three_free_ports() -> int:
    """The first of three free ports in a row: the hub takes the two after the one it is given."""
    while True:
        first = free_port()
        with suppress(OSError, OverflowError):
            for port in (first + 1, first + 2):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
            return first


def wait_for(address: str, process: GuardedProcess) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.is_running(), f"The hub ended:\n{process.last_lines()}"
        with suppress(httpx.TransportError):
            if httpx.get(f"{address}/hub/api").status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"The hub did not start in {START_LIMIT_S} s:\n{process.last_lines()}")


def people(folder: Path) -> dict[str, Person]:
    """The users that the hub made, from its own list of them."""
    found = {}
    for line in (folder / "etc" / "passwd").read_text().splitlines():
        name, _, uid, gid, _, home, _ = line.split(":")
        if Path(home).is_relative_to(folder):
            found[name] = Person(name, int(uid), int(gid), Path(home))
    return found


def give_course(instructor: Person, course: Path) -> None:
    copy = instructor.home / COURSE
    shutil.copytree(course, copy)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, instructor.uid, instructor.gid)
