"""A box around a process: no network, little to read, little to use up, nothing to leave behind."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The dynamic loader's cache, and where Debian keeps which compiler and which BLAS is meant.
ETC = ("/etc/ld.so.cache", "/etc/alternatives")
NOBODY = "65534"
SCRATCH = "/scratch"  # the working directory, empty and writable
SOCKETS = "/run/kernel"  # where a kernel makes the sockets that it is talked to through
WRITABLE = ("/tmp", "/dev/shm", SCRATCH, SOCKETS)


class Limits(NamedTuple):
    """What a box may use up.

    The first group holds for each process; the second needs a control group (`control_group`).
    """

    address_bytes: int = 8 * 2**30  # torch maps far more than it touches
    cpu_s: int = 300
    open_files: int = 512
    scratch_bytes: int = 64 * 2**20  # of each writable folder; it counts as memory

    memory_bytes: int = 2 * 2**30
    processes: int = 64


LIMITS = Limits()


class NoIsolationError(RuntimeError):
    """This machine cannot isolate a process, so nothing of a student's may run on it."""


def require_isolation() -> None:
    """Start something harmless in a box.

    Raises:
        NoIsolationError: if that fails; the message says what to do about it.
    """
    try:
        tried = subprocess.run(
            boxed(["/usr/bin/true"]), capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError as error:
        raise NoIsolationError(
            f"Nothing was graded: {error.filename} is not installed, and a student's code runs in "
            "nothing but a box. On Debian: apt-get install bubblewrap util-linux."
        ) from error
    if tried.returncode:
        raise NoIsolationError(
            f"Nothing was graded: bubblewrap could not make a box ({tried.stderr.strip()}). User "
            "namespaces are probably switched off. Allow them (sysctl "
            "kernel.unprivileged_userns_clone=1, or on Ubuntu 24.04 sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0), or grade in a container that may "
            "make them: the instructor guide has both commands."
        )


def boxed(
    command: Sequence[str],
    *,
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
) -> list[str]:
    """`command` in a box that holds the system, Python, and what is `readable`, at its own path.

    Nothing that is written reaches this machine's disk. The box ends with the thread that started
    it, and everything in it ends with its first process.
    """
    return [
        "bwrap",
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
        *("--new-session", "--uid", NOBODY, "--gid", NOBODY, "--cap-drop", "ALL"),
        *("--hostname", "box", "--clearenv"),
        *_variables(environment or {}),
        *_system(),
        *("--proc", "/proc", "--dev", "/dev"),
        *(part for folder in WRITABLE for part in _scratch(folder, limits)),
        *(part for path in _python() for part in ("--ro-bind", path, path)),
        *(part for path in _to_hide() for part in ("--tmpfs", path, "--remount-ro", path)),
        *(part for path in readable for part in ("--ro-bind", str(path), str(path))),
        *("--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", SCRATCH, "--"),
        *_prlimit(limits),
        *command,
    ]


def _prlimit(limits: Limits) -> list[str]:
    return [
        "/usr/bin/prlimit",
        f"--as={limits.address_bytes}",
        f"--cpu={limits.cpu_s}",
        f"--nofile={limits.open_files}",
        # In the box only its own processes count. For root no such limit holds anywhere.
        f"--nproc={limits.processes}",
        "--core=0",
        "--",
    ]


def _variables(environment: Mapping[str, str]) -> list[str]:
    given = {
        "PATH": "/usr/bin:/bin",
        "HOME": SCRATCH,
        "USER": "student",
        "LANG": "C.UTF-8",
        # Each thread of OpenBLAS reserves memory for itself.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    return [part for name, value in given.items() for part in ("--setenv", name, value)]


def _system() -> list[str]:
    parts: list[str] = []
    for folder in SYSTEM:
        if Path(folder).is_symlink():
            parts += ["--symlink", os.readlink(folder), folder]
        elif Path(folder).exists():
            parts += ["--ro-bind", folder, folder]
    for path in ETC:
        if Path(path).exists():
            parts += ["--ro-bind", path, path]
    return parts


def _scratch(folder: str, limits: Limits) -> list[str]:
    return ["--size", str(limits.scratch_bytes), "--tmpfs", folder]


def _python() -> list[str]:
    """The environment that this process runs in, and the Python it was made from."""
    return list(dict.fromkeys([sys.base_prefix, sys.prefix]))


def _to_hide() -> list[str]:
    """Solutions, probes and marks, as far as they lie in a folder that the box shows."""
    shown = [Path(path) for path in (*SYSTEM, *_python())]
    found = [find_spec(name) for name in ("inferlab", "autograder")]
    packages = [Path(one.origin).parent for one in found if one and one.origin]
    secret = [*packages, *(package.parent / "build" for package in packages)]
    return [
        str(path)
        for path in dict.fromkeys(secret)
        if path.exists() and any(path.is_relative_to(folder) for folder in shown)
    ]
