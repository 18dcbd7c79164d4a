"""A runner killed at any moment: what was finished stays and is not repeated, nothing runs on."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import pytest

from inferlab.lab import engines
from inferlab.lab.paths import ROOT
from inferlab.lab.results import read_document
from tests.pretended_engines import PRETENDED, WORKLOADS, pretended_engines
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_processes import is_alive, wait_for

KILLS = 20
# Each point has outputs of a length of its own, by which its loads are known. Repeats on the
# pretended vLLM share a server; for each of ours one is started.
WEEK = """\
week: 99
experiments:
  kills:
    question: What does a kill cost?
    prediction: The point that was being measured?
    metrics: [output_tokens_per_s]
    repeats: 2
    profiles: [cpu]
    arms:
      - {engine: vllm, workload: two, client: {random-output-len: [4, 5]}}
      - {engine: inferlab, workload: two, client: {random-output-len: 6}}
      - {engine: vllm, workload: two, label: after ours, client: {random-output-len: 7}}
  real:
    question: And with the real load generator?
    prediction: The same?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms:
      # Of shorter outputs a busy client reads all tokens at once, which no machine makes so fast.
      - {engine: inferlab, workload: two, client: {random-output-len: [100, 120]}}
"""
LENGTHS = (4, 5, 6, 7)
PROGRAM = """
import sys
from pathlib import Path
from inferlab.lab import load_generator, runner, specification
name, folder, *script = sys.argv[1:]
specification.EXPERIMENTS = Path(folder)
runner.LIVE, runner.LOGS = Path(folder, "live"), Path(folder, "logs")
if script:
    load_generator.SCRIPTS["vllm"] = Path(*script)
runner.run_experiment(f"week99/{name}", "cpu", record=False)
"""


class Runs(AbstractContextManager["Runs"]):
    """Runs of one experiment, each a process of its own whose descendants carry its mark."""

    def __init__(self, name: str, folder: Path, pretended: bool) -> None:
        self.folder = folder
        self.result = folder / f"live/cpu/week99/{name}.json"
        self.command = [sys.executable, "-c", PROGRAM, name, str(folder)]
        self.environment = {**os.environ, "INFERLAB_TEST_LOADS": str(folder / "loads")}
        if pretended:
            self.command.append(str(PRETENDED / "bench_serve.py"))
            environment = pretended_engines(folder / "environment")
            self.environment[engines.ENGINES_VARIABLE] = str(environment)
        self.started = 0
        self.runner: subprocess.Popen[bytes] | None = None

    @property
    def mark(self) -> str:
        return f"{self.folder}/{self.started}"

    def start(self) -> None:
        self.started += 1
        environment = {**self.environment, "INFERLAB_TEST_RUN": self.mark}
        with (self.folder / "errors").open("w") as errors:
            self.runner = subprocess.Popen(self.command, cwd=ROOT, env=environment, stderr=errors)

    def finish(self, limit_s: float | None = None) -> None:
        """Wait until the runner has ended well."""
        assert self.runner is not None
        assert self.runner.wait(limit_s) == 0, (self.folder / "errors").read_text()

    def __exit__(self, *_: object) -> None:
        if self.runner is not None:
            self.runner.kill()
            self.runner.wait()

    def processes(self) -> list[psutil.Process]:
        """All processes of the last run, even those whose parents are gone."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("INFERLAB_TEST_RUN") == self.mark:
                    found.append(process)
        return found

    def points(self) -> dict[str, str]:
        """What is saved, as text: each point by its key."""
        if not self.result.exists():
            return {}
        points = read_document(self.result)["points"]
        assert [point.get("error") for point in points] == [None] * len(points)
        return {point["key"]: json.dumps(point) for point in points}

    def loads(self) -> Counter[str]:
        """How often each repeat of each point was measured: length of its outputs, and seed."""
        file = self.folder / "loads"
        return Counter(file.read_text().splitlines() if file.exists() else [])

    def loads_of(self, points: dict[str, str]) -> dict[str, int]:
        """As `loads`, of some points only."""
        repeats = [repeat for text in points.values() for repeat in json.loads(text)["repeats"]]
        lengths = {str(repeat["samples"]["output_tokens"][0]) for repeat in repeats}
        return {load: count for load, count in self.loads().items() if load.split()[0] in lengths}

    def forget(self) -> None:
        self.result.unlink()
        (self.folder / "loads").unlink()

    def kill(self) -> set[int] | None:
        """Kill the runner and see that nothing is left of it; the ports that its servers had.

        None if it had just ended by itself: then nothing was killed.
        """
        assert self.runner is not None
        processes = self.processes()
        ports = ports_of(processes)
        self.runner.kill()
        ended = self.runner.wait()
        assert ended in (0, -signal.SIGKILL)
        # One that is just ending has no environment, and no mark, any more.
        wait_for(lambda: not self.processes() and not any(is_alive(p.pid) for p in processes))
        assert all(can_be_bound(port) for port in ports)
        return ports if ended else None


def ports_of(processes: list[psutil.Process]) -> set[int]:
    """The ports that servers were told to listen on."""
    commands = []
    for process in processes:
        with suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()))
    return {int(port) for command in commands for port in re.findall(r"--port (\d+)", command)}


def can_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, which may have a port whose last connections are only being forgotten.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_a_port_that_is_listened_on_cannot_be_bound() -> None:
    """The control: otherwise the tests below could not fail."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not can_be_bound(port)
    assert can_be_bound(port)


@pytest.mark.slow
@pytest.mark.full
def test_twenty_kills_lose_nothing_repeat_nothing_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch_experiments(tmp_path, monkeypatch, workloads=WORKLOADS, week99=WEEK)
    with Runs("kills", tmp_path, pretended=True) as runs:
        started = time.monotonic()
        runs.start()
        runs.finish()
        whole_run_s = time.monotonic() - started
        every_load = {f"{length} {seed}": 1 for length in LENGTHS for seed in (0, 1)}
        assert runs.loads() == every_load, "the control: undisturbed, everything is measured once"
        assert len(runs.points()) == len(LENGTHS)
        runs.forget()

        delays = random.Random(5)
        kills = kills_with_a_server = points_to_lose = 0
        while kills < KILLS:
            saved = runs.points()
            loads = runs.loads_of(saved)
            runs.start()
            try:
                runs.finish(delays.uniform(0, whole_run_s))
            except subprocess.TimeoutExpired:
                ports = runs.kill()
                if ports is not None:
                    kills += 1
                    kills_with_a_server += bool(ports)
                    points_to_lose += len(saved)
            # Byte for byte what it was, and not measured a second time.
            assert runs.points().items() >= saved.items()
            assert runs.loads_of(saved) == loads
            if len(runs.points()) == len(LENGTHS):
                runs.forget()
        saved = runs.points()
        runs.start()
        runs.finish()
        assert runs.points().items() >= saved.items()
        assert len(runs.points()) == len(LENGTHS)
    # They came at any moment, not all of them before there was something to leave or to lose.
    assert kills_with_a_server > 0
    assert points_to_lose > 0


@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.full
def test_kills_while_the_real_load_generator_starts_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch_experiments(tmp_path, monkeypatch, workloads=WORKLOADS, week99=WEEK)
    with Runs("real", tmp_path, pretended=False) as runs:
        runs.start()
        wait_for(lambda: bool(ports_of(runs.processes())))
        assert runs.kill()
        runs.start()
        wait_for(lambda: bool(runs.points()), limit_s=180)
        assert runs.kill() is not None
        saved = runs.points()
        assert len(saved) == 1
        runs.start()
        runs.finish()
        assert runs.points().items() > saved.items(), "with the times of its first measurement"
        assert len(runs.points()) == 2
