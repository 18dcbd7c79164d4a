"""Processes: none outlives its starter, however that ends; one that dies at start is explained."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.paths import ROOT
from inferlab.lab.server import EngineError, Server, free_port
from inferlab.lab.server_metrics import parse_metrics, run_metrics

# A parent that starts a child, as vLLM's server does; both ignore the polite signal.
TREE = (
    "trap '' TERM; (trap '' TERM; echo child $BASHPID; sleep 600; sleep 600) & echo $$; wait; wait"
)


def is_alive(process: int) -> bool:
    """False for a process that has ended and only waits to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, limit_s: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def started_processes(log: Path) -> list[int]:
    words = log.read_text().split() if log.exists() else []
    return [int(word) for word in words if word.isdigit()]


@pytest.fixture
def quick_guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The guard with a short patience for processes that ignore the polite signal."""
    from inferlab.lab import guarded_process

    text = guarded_process.GUARD.read_text()
    assert "GRACE_S = 10.0" in text
    guard = tmp_path / "guard.py"
    guard.write_text(text.replace("GRACE_S = 10.0", "GRACE_S = 0.5"))
    monkeypatch.setattr(guarded_process, "GUARD", guard)
    return guard


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_starter(quick_guard: Path, tmp_path: Path, ending: int) -> None:
    log = tmp_path / "tree.log"
    program = f"""
import os, time
from pathlib import Path
from inferlab.lab import guarded_process
guarded_process.GUARD = Path({str(quick_guard)!r})
with guarded_process.GuardedProcess(["bash", "-c", {TREE!r}], dict(os.environ), Path({str(log)!r})):
    time.sleep(600)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(started_processes(log)) == 2)
    tree = started_processes(log)
    assert all(is_alive(process) for process in tree)
    starter.send_signal(ending)
    starter.wait(60)
    wait_for(lambda: not any(is_alive(process) for process in tree))


def test_a_command_has_its_own_group_and_its_starters_session(
    quick_guard: Path, tmp_path: Path
) -> None:
    """Between sessions Linux shares out cores first, and a client in another one is starved."""
    log = tmp_path / "tree.log"
    with GuardedProcess(["bash", "-c", TREE], dict(os.environ), log) as running:
        wait_for(lambda: len(started_processes(log)) == 2)
        family = {running.process.pid, *started_processes(log)}
        assert {os.getsid(process) for process in family} == {os.getsid(0)}
        assert os.getpgid(0) not in {os.getpgid(process) for process in family}
    assert not any(map(is_alive, family))


def test_stop_returns_after_the_whole_group_has_ended(quick_guard: Path, tmp_path: Path) -> None:
    log = tmp_path / "tree.log"
    process = GuardedProcess(["bash", "-c", TREE], dict(os.environ), log)
    wait_for(lambda: len(started_processes(log)) == 2)
    process.stop()
    assert not any(is_alive(number) for number in started_processes(log))
    process.stop()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_guard_that_is_told_to_end_takes_the_group_along(
    quick_guard: Path, tmp_path: Path, ending: int
) -> None:
    """A batch system tells every process of a job to end, the guard among them."""
    log = tmp_path / "tree.log"
    with GuardedProcess(["bash", "-c", TREE], dict(os.environ), log) as process:
        wait_for(lambda: len(started_processes(log)) == 2)
        process.process.send_signal(ending)
        wait_for(lambda: not process.is_running())
        assert not any(is_alive(number) for number in started_processes(log))


def test_leader_that_ends_takes_its_children_along(quick_guard: Path, tmp_path: Path) -> None:
    log = tmp_path / "orphan.log"
    with GuardedProcess(["bash", "-c", "sleep 600 & echo $!"], dict(os.environ), log) as process:
        wait_for(lambda: not process.is_running())
        assert len(started_processes(log)) == 1
        assert not is_alive(started_processes(log)[0])


@pytest.fixture
def pretended_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment folder whose `vllm` prints two lines and ends."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    command = folder / "bin" / "vllm"
    command.write_text(
        "#!/bin/sh\necho loading weights\necho ValueError: no such flag >&2\nexit 3\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(folder))
    return folder


def test_server_that_dies_at_start_shows_its_last_lines(
    pretended_engines: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="died at start") as caught:
        Server("vLLM", ["vllm", "serve"], free_port(), {}, tmp_path / "server.log")
    assert caught.value.log_tail == "loading weights\nValueError: no such flag"
    assert "no such flag" in str(caught.value)


def test_cause_of_death_is_shown_though_it_is_not_among_the_last_lines(
    pretended_engines: Path, tmp_path: Path
) -> None:
    text = (
        "(EngineCore pid=1) ERROR 11-21 [core.py:1] ValueError: too few blocks\n" + 40 * "later\n"
    )
    (pretended_engines / "bin" / "vllm").write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit 1\n")
    with pytest.raises(EngineError) as caught:
        Server("vLLM", ["vllm", "serve"], free_port(), {}, tmp_path / "server.log")
    assert caught.value.log_tail.splitlines()[:2] == ["ValueError: too few blocks", "later"]


def test_missing_engines_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(engines.EnginesMissingError, match="`make engines`"):
        engines.interpreter()
    done = subprocess.run(
        [sys.executable, "-m", "inferlab.lab", "run", "week04/block-size"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "make engines" in done.stderr
    assert "Traceback" not in done.stderr


def test_profile_of_another_machine_is_refused(
    pretended_engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferlab.lab import provenance, runner

    monkeypatch.setattr(provenance, "gpu_and_driver", lambda: ("NVIDIA H100", "600"))
    with pytest.raises(runner.HardwareError, match=r"needs a GPU named A100.*NVIDIA H100"):
        runner.run_experiment("week04/block-size", "a100", record=False)


def test_metrics_text_becomes_differences() -> None:
    def text(preemptions: int, steps: int) -> str:
        return f"""# HELP vllm:num_preemptions_total Preemptions.
vllm:num_preemptions_total{{engine="0",model_name="m"}} {preemptions}.0
vllm:request_success_total{{finished_reason="stop"}} 1.0
vllm:request_success_total{{finished_reason="length"}} {steps}
vllm:request_queue_time_seconds_sum{{engine="0"}} {steps / 10}
vllm:iteration_tokens_total_count{{engine="0"}} {steps}.0
vllm:iteration_tokens_total_sum{{engine="0"}} {10 * steps}.0
vllm:cache_config_info{{block_size="32",num_gpu_blocks="128",other="a,\\"b"}} 1.0
"""

    before, after = parse_metrics(text(2, 4)), parse_metrics(text(7, 8))
    peaks = {
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:num_requests_running": 3.0,
        "vllm:num_requests_waiting": 0.0,
    }
    metrics = run_metrics(before, after, peaks)
    assert metrics["num_preemptions"] == 5
    assert metrics["tokens_per_step_mean"] == 10
    assert metrics["queue_time_mean_ms"] == pytest.approx(100.0)
    assert (metrics["kv_cache_size_tokens"], metrics["kv_cache_usage_peak"]) == (4096, 0.5)
