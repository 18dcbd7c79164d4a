"""Where a result comes from: machine, versions, model, commit, workloads, seeds."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inferlab.lab import engines
from inferlab.lab.checkpoints import is_ours, revision, weights_hash
from inferlab.lab.paths import ROOT
from inferlab.lab.plan import Plan
from inferlab.lab.specification import load_model_facts, load_workload


def context(plan: Plan) -> dict[str, Any]:
    """What decides a measurement beside the point itself; a point measured under another context
    is measured again."""
    return {
        "versions": engines.versions(),
        "models": {name: model_facts(name) for name in plan.models},
        "hardware": hardware(),
        "environment": plan.profile.environment,
        "seeds": list(range(plan.experiment.repeats)),
    }


def model_facts(name: str) -> dict[str, Any]:
    """Which weights they are, and what the physics checks take the model for.

    A checkpoint of ours is known by its hash, a download by its `revision`.
    """
    facts = {"weights_sha256": weights_hash(name), **load_model_facts(name).model_dump()}
    return facts if is_ours(name) else {**facts, "revision": revision(name)}


def provenance(plan: Plan) -> dict[str, Any]:
    """Provenance of a result of `plan` that is measured from now on."""
    names = [str(p.parameters["workload"]) for p in plan.points if "workload" in p.parameters]
    return {
        **moment(),
        **context(plan),
        "workloads": {
            name: hash_of(
                load_workload(name).on(plan.profile.workloads or plan.profile_name).model_dump()
            )
            for name in dict.fromkeys(names)
        },
    }


def moment() -> dict[str, Any]:
    """When a measurement starts, and from which commit of the course."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD") or "none",
        # Neither the results being written nor the cluster's names change what measures them.
        "dirty": bool(git("status", "--porcelain", "--", ".", ":!results", ":!deploy/slurm")),
    }


def hash_of(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hardware() -> dict[str, Any]:
    """CPU, cores this process may use, memory, and the GPU and its driver where there is one."""
    gpu, driver = gpu_and_driver()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpu": gpu,
        "driver": driver,
    }


def cpu_name() -> str:
    """Name of the CPU as the kernel reports it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_and_driver() -> tuple[str, str]:
    """Name and driver version of the first GPU; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return "", ""
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0 or not answer.stdout.strip():
        return "", ""
    name, _, driver = answer.stdout.splitlines()[0].partition(", ")
    return name, driver


def git(*arguments: str) -> str:
    """Output of a git command in the repository; empty outside one."""
    if shutil.which("git") is None:
        return ""
    answer = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""
