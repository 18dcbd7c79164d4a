"""A real SLURM of one node in a scratch folder, and what its tasks do in place of real engines.

It needs Debian's packages slurm-wlm and munge, which `.ci/run` installs, and neither systemd nor
root: munge, the controller and the node's daemon are processes of the user who runs the tests.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import submitit

from inferlab.lab import measurement, slurm_array, specification
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.plan import Plan
from inferlab.lab.point import Point
from inferlab.lab.server import free_port
from tests.test_lab_physics import POSSIBLE as POSSIBLE_ROW

# Where munge, slurmctld and slurmd are; not every user's PATH holds it.
SYSTEM_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"

# The node pretends to be larger than the machine, so that tasks run at once on any machine, and to
# have GPUs, so that what the course asks of a GPU cluster is accepted.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=500000 Gres=gpu:a100:4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {limit_s:.0f} s"
        time.sleep(0.02)


def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> GuardedProcess:
    """A daemon that ends with the tests, however they end."""
    program = shutil.which(command[0], path=SYSTEM_PATH)
    assert program, f"{command[0]} is not installed; `.ci/run` installs its Debian package"
    return GuardedProcess([program, *command[1:]], environment, folder / f"{command[0]}.out")


@contextmanager
def single_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """SLURM in `folder`, whose path must be short enough for a socket; yields its variables."""
    # munge refuses a socket that other users could not reach.
    folder.chmod(0o711)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o400)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    configuration.write_text(
        SLURM_CONF.format(folder=folder, host=host, user=getpass.getuser(), **ports)
    )
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/gpu[0-3]\n")
    variables = {"SLURM_CONF": str(configuration), "PATH": SYSTEM_PATH}
    environment = os.environ | variables
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with ExitStack() as running:
        start = ["munged", "--foreground", f"--socket={folder}/munge.socket", *munge]
        running.enter_context(daemon(start, folder, environment))
        wait_until((folder / "munge.socket").exists, "munge's start")
        running.enter_context(daemon(["slurmctld", "-D"], folder, environment))
        running.enter_context(daemon(["slurmd", "-D"], folder, environment))

        def state() -> str:
            command = ["sinfo", "--noheader", "--format", "%T"]
            asked = subprocess.run(command, env=environment, capture_output=True, text=True)
            return asked.stdout.strip()

        try:
            wait_until(lambda: state() == "idle", "the node's registration")
        except AssertionError as error:
            logs = "\n".join(log.read_text()[-2000:] for log in sorted(folder.glob("*.out")))
            raise AssertionError(f"{error}\n{logs}") from None
        yield variables


# What follows runs in the tasks. It is told by this variable where the test keeps its files.
FOLDER = "INFERLAB_TEST_FOLDER"
HOLD = "hold"

# Fewer requests in flight: any workload of the tests allows it.
POSSIBLE = {**POSSIBLE_ROW, "e2e_mean_ms": 2_000.0, "ttft_mean_ms": 1_000.0, "tpot_mean_ms": 10.0}


def measure_group_without_engines(*arguments: Any) -> None:
    """`measure_group`, with the files of the test and `measure_without_engines`."""
    folder = Path(os.environ[FOLDER])
    specification.EXPERIMENTS = folder
    slurm_array.LOGS = folder / "logs"
    measurement.measure_servers = measure_without_engines
    slurm_array.measure_group(*arguments)


def measure_without_engines(
    plan: Plan, point: Point, running: measurement.Engines, seed: int
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """A row that could have been measured, after the points that `hold` names are let go."""
    folder, job = Path(os.environ[FOLDER]), submitit.JobEnvironment().job_id
    name = "-".join(str(value) for value in point.parameters.values())
    if (folder / HOLD).exists() and name in (folder / HOLD).read_text().split():
        # In one piece, since the test looks for it all the time.
        (folder / f"holding-{name}").write_text(f"{job} {os.getpid()}")
        (folder / f"holding-{name}").replace(folder / f"held-{name}")
        wait_until(lambda: not (folder / HOLD).exists(), "letting go")
    with (folder / "measured").open("a") as file:
        file.write(f"{name} {seed} {job}\n")
    return {**POSSIBLE}, {"slurm_job": [job], "setup": [os.environ["INFERLAB_TEST_SETUP"]]}
