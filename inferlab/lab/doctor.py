"""Checks, before anything runs, what the experiments need of this machine."""

import os
import re
import shutil
from dataclasses import dataclass

from inferlab import models
from inferlab.lab import engines
from inferlab.lab.paths import ROOT, without_root

NEEDED_DISK_BYTES = 2 * 10**9
NEEDED_MEMORY_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str


def findings() -> list[Finding]:
    """Engines, compiler, memory, disk and the tiny checkpoint."""
    free = shutil.disk_usage(ROOT).free
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    compiler = shutil.which("g++")
    weights = models.CHECKPOINTS / "tiny-chat" / "model.safetensors"
    return [
        engine_finding(),
        Finding("g++", compiler is not None, compiler or "vLLM compiles on a CPU: install g++"),
        Finding("memory", available > NEEDED_MEMORY_BYTES, f"{available / 1e9:.0f} GB free"),
        Finding("disk", free > NEEDED_DISK_BYTES, f"{free / 1e9:.0f} GB free"),
        Finding("tiny-chat", weights.exists(), without_root(str(weights))),
    ]


def engine_finding() -> Finding:
    """Installed versions against the lock."""
    try:
        installed = engines.versions()
    except engines.EnginesMissingError as error:
        return Finding("engines", False, str(error))
    lock = ROOT / "requirements/engines-cpu.txt"
    # A student's bundle holds no lock: there whatever is installed will do.
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.M)) if lock.exists() else {}
    # A build of torch for one kind of machine has a local version, which the lock leaves open.
    wrong = [
        f"{name} {version} (the lock has {locked[name]})"
        for name, version in installed.items()
        if name in locked and version.partition("+")[0] != locked[name]
    ]
    if wrong:
        return Finding("engines", False, f"{', '.join(wrong)}; run `make engines`")
    return Finding("engines", True, ", ".join(f"{n} {v}" for n, v in installed.items()))
