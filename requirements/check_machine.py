"""Tell in one sentence why this machine cannot make an environment of the course.

Runs before anything is installed, so it uses the standard library only and the syntax of
Python 3.6: a Python that is too old must still be able to print the sentence that says so.
"""

import os
import shutil
import socket
import sys
import sysconfig

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)
# Free disk space an environment asks for. In use they take 2.9 and 4.5 GiB with the CPU build
# of PyTorch; the rest is room for pip's downloads while it works.
DISK_NEEDED_GIB = {"core": 4, "engines": 6}


def python_problem(version, others):
    """Return a sentence if `version` (major, minor) is outside the supported range, else "".

    `others` are the names of supported interpreters found on this machine.
    """
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return ""
    if others:
        advice = f"Run make again with PYTHON={others[0]}, which this machine seems to have."
    else:
        advice = "Install one of them and run make again with PYTHON=<its path>."
    found = f"{version[0]}.{version[1]}"
    return f"Python {found} was found, but the course needs Python 3.11, 3.12 or 3.13. {advice}"


def venv_problem(has_ensurepip):
    """Return a sentence if this Python cannot make a virtual environment with pip, else ""."""
    if has_ensurepip:
        return ""
    return (
        "This Python lacks the module ensurepip, so it cannot make a virtual environment. "
        "On Debian and Ubuntu install the package python3-venv, then run make again."
    )


def disk_problem(environment, free_gib):
    """Return a sentence if `free_gib` GiB are too few to install `environment`, else ""."""
    needed = DISK_NEEDED_GIB[environment]
    if free_gib >= needed:
        return ""
    return (
        f"The {environment} environment needs {needed} GiB of free disk space to install, but "
        f"only {free_gib:.1f} GiB are free here. Free some space, then run make again."
    )


def compiler_problem(platform, compiler, python_header):
    """Return a sentence if the engines cannot be compiled for or run on this machine, else "".

    vLLM compiles its model on CPU when a server starts: without a C++ compiler it dies there with
    `InvalidCxxCompiler`, and the generated code includes Python.h.
    """
    if not platform.startswith("linux"):
        return (
            f"The engines run on Linux (or WSL) only, but this machine is {platform}. "
            "The book and its recorded results need no engine: use make book and make lab."
        )
    if not compiler:
        return (
            "No g++ was found, and vLLM compiles its model with it when a server starts. "
            "On Debian and Ubuntu install the package g++, then run make again."
        )
    if not os.path.exists(python_header):
        return (
            f"The header {python_header} is missing, and vLLM compiles against it when a server "
            "starts. On Debian and Ubuntu install the package python3-dev, then run make again."
        )
    return ""


def port_problem(port):
    """Return a sentence if TCP port `port` of this machine is already in use, else ""."""
    with socket.socket() as probe:
        # Without this a port left a moment ago by another server would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return (
                f"Port {port} cannot be used ({error.strerror.lower()}). "
                f"Stop the program that holds it, or run make lab PORT={port + 1}."
            )
    return ""


def has_module(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def machine_problem(environment):
    """Return the first problem that keeps `environment` (core, engines) from being made, or ""."""
    names = ["python3.11", "python3.12", "python3.13"]
    problem = python_problem(sys.version_info[:2], [name for name in names if shutil.which(name)])
    if not problem and environment == "engines":
        header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
        problem = compiler_problem(sys.platform, shutil.which("g++"), header)
    return (
        problem
        or venv_problem(has_module("ensurepip"))
        or disk_problem(environment, shutil.disk_usage(".").free / 2**30)
    )


def main(arguments):
    if len(arguments) == 1 and arguments[0] in DISK_NEEDED_GIB:
        problem = machine_problem(arguments[0])
    elif len(arguments) == 2 and arguments[0] == "port" and arguments[1].isdigit():
        problem = port_problem(int(arguments[1]))
    else:
        problem = "Usage: check_machine.py core | engines | port NUMBER"
    if problem:
        sys.stderr.write(problem + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
