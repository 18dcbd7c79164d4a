"""The locks, and what `make env` and `make engines` say and leave behind when they cannot work."""

import ast
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LOCKS = [ROOT / "requirements" / "core.txt", ROOT / "requirements" / "engines-cpu.txt"]
PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+(; sys_platform == \"linux\")?")


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_machine = load_script("check_machine")
install = load_script("install")


def lock_lines(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_lock_pins_every_package_once_and_to_no_local_version(lock):
    lines = lock_lines(lock)
    assert len(lines) > 100
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert sorted(set(names)) == sorted(names)


def test_conda_environment_installs_the_core_lock_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == [
        "python=3.11",
        "pip",
        {"pip": ["-r requirements/core.txt", "./requirements/checkpoints", "-e ."]},
    ]


def test_both_environments_hold_the_same_torch():
    pins = [[line for line in lock_lines(lock) if line.startswith("torch==")] for lock in LOCKS]
    assert pins == [["torch==2.13.0"], ["torch==2.13.0"]]


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14), (2, 7)])
def test_unsupported_python_is_named_with_the_supported_ones(version):
    problem = check_machine.python_problem(version, [])
    assert f"Python {version[0]}.{version[1]} was found" in problem
    assert "3.11, 3.12 or 3.13" in problem
    assert "PYTHON=" in problem


def test_unsupported_python_points_at_a_supported_one_on_this_machine():
    assert "PYTHON=python3.12" in check_machine.python_problem((3, 9), ["python3.12"])


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_python_is_no_problem(version):
    assert check_machine.python_problem(version, []) == ""


def test_missing_compiler_header_and_platform_are_each_named(tmp_path):
    header = tmp_path / "Python.h"
    assert "g++" in check_machine.compiler_problem("linux", None, header)
    assert "python3-dev" in check_machine.compiler_problem("linux", "g++", header)
    assert "this machine is darwin" in check_machine.compiler_problem("darwin", "g++", header)
    header.touch()
    assert check_machine.compiler_problem("linux", "g++", header) == ""


@pytest.mark.parametrize("environment", ["core", "engines"])
def test_a_full_disk_is_reported_with_what_is_needed_and_what_is_free(environment):
    needed = check_machine.DISK_NEEDED_GIB[environment]
    problem = check_machine.disk_problem(environment, 1.25)
    assert f"needs {needed} GiB" in problem
    assert "1.2 GiB are free" in problem
    assert check_machine.disk_problem(environment, needed) == ""


def test_python_without_ensurepip_is_told_which_package_to_install():
    assert "python3-venv" in check_machine.venv_problem(False)
    assert check_machine.venv_problem(True) == ""


def test_taken_port_is_one_sentence_and_a_free_port_none():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        problem = check_machine.port_problem(port)
        assert f"Port {port} cannot be used" in problem
        assert f"PORT={port + 1}" in problem
    assert check_machine.port_problem(port) == ""


def test_check_machine_reads_on_the_oldest_python_it_speaks_to():
    """A syntax error would hide the sentence from exactly the reader who needs it."""
    source = (ROOT / "requirements" / "check_machine.py").read_text()
    ast.parse(source, feature_version=(3, 6))


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("WARNING: Retrying … NewConnectionError(…)", "could not reach its package index"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for nothing==1", "reason it gives above"),
    ],
)
def test_pip_failure_becomes_one_sentence(log, sentence):
    assert sentence in install.failure_sentence(log)


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and its scripts, and a lock that a test fills."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("check_machine.py", "install.py"):
        shutil.copy(ROOT / "requirements" / name, tmp_path / "requirements")
    return tmp_path


def make_env(folder, **options):
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    return subprocess.Popen(
        ["make", "env", f"PYTHON={sys.executable}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.slow
def test_failed_installation_says_so_and_leaves_no_stamp(clone):
    (clone / "requirements" / "core.txt").write_text("a-package-that-is-nowhere==1.0\n")
    process = make_env(clone)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "a-package-that-is-nowhere" in output
    assert "nothing was marked as installed" in output
    assert (clone / ".venv").is_dir()
    assert not list((clone / ".venv").glob(".*-installed"))


SLEEPING_BUILD = """
import pathlib, time
def build_wheel(folder, config_settings=None, metadata_directory=None):
    pathlib.Path(__file__).with_name("started").touch()
    time.sleep(120)
"""


@pytest.mark.slow
def test_interrupted_installation_leaves_no_stamp(clone):
    package = clone / "sleeper"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "sleeper"\nversion = "1"\n'
    )
    (package / "backend.py").write_text(SLEEPING_BUILD)
    (clone / "requirements" / "core.txt").write_text("./sleeper\n")
    process = make_env(clone)
    deadline = time.monotonic() + 120
    while not (package / "started").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    assert (package / "started").exists()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Interrupted" in output
    assert not list((clone / ".venv").glob(".*-installed"))
