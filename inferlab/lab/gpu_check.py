"""Checks the NVIDIA GPUs of a machine against a profile, as `nvidia-smi` describes them."""

import csv
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from string import Template

from inferlab.lab.finding import Finding
from inferlab.lab.specification import Profile

# The pinned vLLM and SGLang are built for CUDA 13, which needs this driver (NVIDIA, "CUDA
# Compatibility", minor version compatibility: CUDA 13.x, driver 580 or later).
OLDEST_DRIVER = 580
# The driver keeps a part of the memory: an 80 GB H100 reports 81,559 MiB and not 81,920.
REPORTED_SHARE = 0.97
ANSWER_WITHIN_S = 60.0
GPU_FIELDS = ("index", "uuid", "name", "memory.total", "driver_version", "mig.mode.current")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")


class NvidiaError(RuntimeError):
    """`nvidia-smi` is missing, fails, or says what cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Gpu:
    """One line of `nvidia-smi`."""

    index: str
    uuid: str
    name: str
    memory_bytes: int
    driver: str
    mig: bool


def gpu_findings(profile: Profile) -> list[Finding]:
    """Driver, number, kind, memory, partitions and use of the GPUs."""
    try:
        gpus = visible([as_gpu(line) for line in query("gpu", GPU_FIELDS)])
        users = query("compute-apps", PROCESS_FIELDS)
    except NvidiaError as error:
        return [Finding("nvidia-smi", False, str(error))]
    needed = 1 if profile.hardware.slices else profile.hardware.devices
    if len(gpus) < needed:
        hidden = (
            " (CUDA_VISIBLE_DEVICES hides others)" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        )
        detail = f"{len(gpus)} found{hidden}, and the profile needs {needed}: use a larger machine"
        return [Finding("GPUs", False, detail)]
    used = gpus[:needed]
    spare = f", of which the first {needed} are used" if len(gpus) > needed else ""
    return [
        Finding("GPUs", True, f"{len(gpus)} found{spare}"),
        driver_finding(used[0]),
        *(finding for gpu in used for finding in one_gpu(gpu, profile)),
        users_finding([user for user in users if user[0] in {gpu.uuid for gpu in used}]),
    ]


def query(kind: str, fields: tuple[str, ...]) -> list[list[str]]:
    """What `nvidia-smi` says about all GPUs or their processes, a list of fields each.

    Raises:
        NvidiaError: as the class says.
    """
    command = [
        "nvidia-smi", f"--query-{kind}={','.join(fields)}", "--format=csv,noheader,nounits",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_WITHIN_S
        )
    except OSError:
        raise NvidiaError(
            "it cannot be started: install NVIDIA's driver, or take the profile cpu"
        ) from None
    except subprocess.TimeoutExpired:
        raise NvidiaError(
            f"it did not answer within {ANSWER_WITHIN_S:.0f} s: restart the machine"
        ) from None
    said = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise NvidiaError(
            f"it failed with {said!r}: restart the machine if the driver was updated, otherwise "
            f"install the driver again"
        )
    lines = list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
    if any(len(line) != len(fields) for line in lines):
        raise unreadable(said, fields)
    return lines


def unreadable(said: str, fields: tuple[str, ...]) -> NvidiaError:
    return NvidiaError(
        f"it said {said[:200]!r}, and lines of {', '.join(fields)} were expected: see what "
        f"`nvidia-smi` prints by hand"
    )


def as_gpu(line: list[str]) -> Gpu:
    """One line of the answer about the GPUs."""
    index, uuid, name, memory, driver, mig = line
    if not (memory.isdigit() and driver.partition(".")[0].isdigit()):
        raise unreadable(", ".join(line), GPU_FIELDS)
    return Gpu(index, uuid, name, int(memory) * 2**20, driver, mig == "Enabled")


def visible(gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that an engine will see, in its order."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    names = [name.strip() for name in chosen.split(",")]
    return [gpu for name in names for gpu in gpus if name in (gpu.index, gpu.uuid)]


def driver_finding(gpu: Gpu) -> Finding:
    if int(gpu.driver.partition(".")[0]) >= OLDEST_DRIVER:
        return Finding("driver", True, gpu.driver)
    advice = (
        f"{gpu.driver}, and the engines' CUDA 13 needs {OLDEST_DRIVER} or later: update the "
        f"driver, or on a data-centre GPU install NVIDIA's package cuda-compat-13-0 beside it"
    )
    return Finding("driver", False, advice)


def one_gpu(gpu: Gpu, profile: Profile) -> Iterator[Finding]:
    """Kind, memory and partitions of one GPU."""
    what, hardware = f"GPU {gpu.index}", profile.hardware
    right = hardware.gpu is not None and hardware.gpu in gpu.name
    advice = "" if right else f", and the profile needs {hardware.gpu}: take another profile"
    yield Finding(what, right, gpu.name + advice)
    wanted = hardware.memory_bytes or 0
    enough = gpu.memory_bytes >= REPORTED_SHARE * wanted
    advice = "" if enough else f", and the profile needs {gib(wanted)}: take a larger GPU"
    yield Finding(f"{what} memory", enough, gib(gpu.memory_bytes) + advice)
    partitioned = hardware.slices
    mode = "on" if gpu.mig else "off"
    advice = ""
    if gpu.mig != partitioned:
        switch = f"sudo nvidia-smi -i {gpu.index} -mig {int(partitioned)}"
        wants = "partitions" if partitioned else "the whole GPU"
        advice = f", and the profile measures {wants}: `{switch}`"
    yield Finding(f"{what} MIG", gpu.mig == partitioned, mode + advice)


def users_finding(users: list[list[str]]) -> Finding:
    if not users:
        return Finding("other processes on the GPU", True, "none")
    listed = ", ".join(f"{name} (process {pid}, {used} MiB)" for _, pid, name, used in users)
    detail = f"{listed}: they take memory and time from a measurement; wait for them or end them"
    return Finding("other processes on the GPU", False, detail)


def gib(memory: int) -> str:
    return f"{memory / 2**30:.0f} GiB"


def with_slices(environment: dict[str, str]) -> dict[str, str]:
    """`environment` with the slices' identifiers in place of $SLICE_0, $SLICE_1 and so on.

    Raises:
        NvidiaError: if there are fewer slices than are named.
    """
    if not any("$SLICE_" in value for value in environment.values()):
        return environment
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    slices = re.findall(r"\bUUID: (MIG-[\w/-]+)\)", listed.stdout)
    known = {f"SLICE_{number}": identifier for number, identifier in enumerate(slices)}
    try:
        return {name: Template(value).substitute(known) for name, value in environment.items()}
    except KeyError as error:
        raise NvidiaError(
            f"`nvidia-smi -L` lists {len(slices)} MIG slices, and {error.args[0]} is needed: make "
            f"them with `sudo nvidia-smi mig -cgi 3g.40gb,3g.40gb -C`"
        ) from None
