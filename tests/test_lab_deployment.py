"""Deployments: how each engine is started, and that several servers are one to those who ask."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from inferlab.lab import deployment, engines, launch, load_generator, paths, specification
from inferlab.lab.deployment import Deployment, PeakReader
from inferlab.lab.plan import Plan, plan_experiment
from inferlab.lab.point import Point
from inferlab.lab.server import EngineError, Server
from inferlab.lab.server_metrics import Snapshot, parse_metrics, run_metrics, together
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_processes import is_alive

OURS = """\
week: 99
experiments:
  ours:
    question: Does it run?
    prediction: Will it?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms:
      - engine: inferlab
        workload: four-at-a-time
        workers: {workers}
        server: {{num-blocks: 64, enable-prefix-caching: false}}
        router: {{policy: [round_robin, cache_aware]}}
"""


def points(folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> tuple[Plan, list[Point]]:
    scratch_experiments(folder, monkeypatch, week99=OURS.format(workers=workers))
    plan = plan_experiment("week99/ours", "cpu")
    return plan, plan.points


@pytest.fixture
def no_engines_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that holds a Python and no engine: our own server needs none."""
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(tmp_path / "environment"))


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("vllm", ["--block-size", "32", "--enforce-eager", "--no-enable-prefix-caching"]),
        ("sglang", ["--block-size", "32", "--enforce-eager"]),
        ("router", ["--block-size", "32", "--enforce-eager"]),
        ("inferlab", ["--block-size", "32", "--enforce-eager", "--no-enable-prefix-caching"]),
    ],
)
def test_each_engine_has_its_own_way_with_switches(engine: str, arguments: list[str]) -> None:
    flags = {"block-size": 32, "enforce-eager": True, "enable-prefix-caching": False}
    assert launch.flag_arguments(flags, engine) == arguments


def test_a_profiles_flags_reach_every_server_and_an_experiments_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (point, _) = points(tmp_path, monkeypatch, 1)
    common = specification.load_profile("cpu").servers["inferlab"]
    assert common["num-blocks"] != 64
    assert point.server == {**common, "num-blocks": 64, "enable-prefix-caching": False}


def test_commands_of_several_workers_can_be_typed_in_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, (point, other) = points(tmp_path, monkeypatch, 3)
    *servers, router, bench = plan.commands(point)
    assert len(servers) == 3
    addresses = [f"http://127.0.0.1:{8000 + number}" for number in range(3)]
    for server, address in zip(servers, addresses):
        assert f"--port {address.rpartition(':')[2]}" in server
    assert f"--worker-urls {' '.join(addresses)} " in router
    assert "--port 8003" in router
    assert "--policy round_robin" in router
    assert "--base-url http://127.0.0.1:8003 " in bench
    # The router keeps a memory of where prefixes went: points do not share one.
    assert not point.has_the_servers_of(other)
    assert point.has_the_servers_of(point)


def test_a_server_is_started_measured_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engines_needed: None
) -> None:
    plan, (point, _) = points(tmp_path, monkeypatch, 1)
    with Deployment(plan, point, tmp_path / "logs") as running:
        before = running.snapshot()
        process = running.engines[0].process.process.pid
        with PeakReader(running) as reader:
            body = {"prompt": [7] * 40, "max_tokens": 300, "temperature": 0, "ignore_eos": True}
            url = f"http://127.0.0.1:{running.port}/v1/completions"
            httpx.post(url, json=body, timeout=60).raise_for_status()
        running.require_running()
        metrics = run_metrics(before, running.snapshot(), reader.peaks)
    assert metrics["server_prompt_tokens"] == 40
    assert metrics["server_generation_tokens"] == 300 == metrics["engine_steps"]
    assert metrics["num_gpu_blocks"] == 64
    assert metrics["num_requests_running_peak"] == 1
    assert not is_alive(process)


def test_servers_that_came_up_go_when_another_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engines_needed: None
) -> None:
    plan, (point, _) = points(tmp_path, monkeypatch, 2)
    started: list[Server] = []

    def second_dies(name: str, command: list[str], *rest: object) -> Server:
        if started:
            command = ["python", "-c", "raise SystemExit('no room')"]
        server = Server(name, command, *rest)  # type: ignore[arg-type]
        assert server.is_running()
        started.append(server)
        return server

    monkeypatch.setattr(deployment, "Server", second_dies)
    with pytest.raises(EngineError, match="The inferlab server died at start") as caught:
        Deployment(plan, point, tmp_path / "logs")
    assert caught.value.log_tail == "no room"
    assert len(started) == 1
    assert not started[0].is_running()


def test_a_server_that_has_ended_is_noticed_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engines_needed: None
) -> None:
    plan, (point, _) = points(tmp_path, monkeypatch, 1)
    with Deployment(plan, point, tmp_path / "logs") as running:
        guard = running.engines[0].process.process
        (server,) = Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGKILL)
        guard.wait()
        assert not running.is_running()
        with pytest.raises(EngineError, match="The inferlab server ended"):
            running.require_running()
        with pytest.raises(EngineError, match="/metrics cannot be read"):
            running.snapshot()


def test_sglangs_metrics_have_the_names_of_ours() -> None:
    def text(steps: int, cached: str) -> str:
        return f"""sglang:num_pages{{tp_rank="0"}} 512.0
sglang:page_size{{tp_rank="0"}} 4.0
sglang:prompt_tokens_total{{is_streaming="true"}} {100 * steps}.0
sglang:prompt_tokens_total{{is_streaming="false"}} 20.0
sglang:generation_tokens_total{{is_streaming="true"}} {steps}.0
sglang:cuda_graph_passes_total{{mode="decode_none"}} {steps}.0
sglang:queue_time_seconds_sum{{tp_rank="0"}} {steps / 10}
sglang:num_requests_total{{model_name="m"}} {steps}.0
{cached}"""

    peaks = {"sglang:token_usage": 0.25, "sglang:num_running_reqs": 3.0, "sglang:num_queue_reqs": 1}
    # The count of hits appears with the first of them.
    cached = 'sglang:cached_tokens_total{cache_source="device"} 150.0'
    metrics = run_metrics(parse_metrics(text(1, "")), parse_metrics(text(3, cached)), peaks)
    assert metrics["prefix_hit_share"] == 150 / 200
    assert metrics["kv_cache_size_tokens"] == 512 * 4
    assert metrics["num_preemptions"] == 0
    assert metrics["queue_time_mean_ms"] == pytest.approx(100)
    assert metrics["kv_cache_usage_peak"] == 0.25
    assert "tokens_per_step_mean" not in metrics, "SGLang does not count the tokens of its steps"


def test_workers_are_counted_together() -> None:
    one = Snapshot({"vllm:kv_cache_usage_perc": 0.2, "vllm:a_total": 3.0}, {"num_gpu_blocks": 8.0})
    two = Snapshot({"vllm:kv_cache_usage_perc": 0.6, "vllm:a_total": 4.0}, {"num_gpu_blocks": 8.0})
    both = together([one, two])
    assert both.values == {"vllm:kv_cache_usage_perc": 0.4, "vllm:a_total": 7.0}
    assert both.cache == {"num_gpu_blocks": 16.0}
    assert together([one]) == one


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("import time; time.sleep(600)", "The load generator gave no answer within 1 s"),
        ("raise SystemExit('no pandas')", "The load generator ended"),
        ('print(\'{"error": "no server"}\')', "The load generator failed: no server"),
    ],
)
def test_a_load_generator_that_does_not_answer_is_given_up(
    script: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_engines_needed: None,
) -> None:
    (tmp_path / "bench.py").write_text(script)
    monkeypatch.setattr(load_generator, "ANSWER_LIMIT_S", 1.0)
    monkeypatch.setitem(load_generator.SCRIPTS, "vllm", tmp_path / "bench.py")
    with (
        load_generator.LoadGenerator("vllm", {}, tmp_path / "bench.log") as generator,
        pytest.raises(EngineError, match=sentence),
    ):
        generator.ask([])
    assert not generator.is_running()


def test_what_a_server_found_out_about_a_model_is_lent_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engines_needed: None
) -> None:
    plan, (point, _) = points(tmp_path, monkeypatch, 1)
    known = tmp_path / "known" / "llama.json"
    monkeypatch.setattr(paths, "INSPECTIONS", known.parent)
    starts: list[tuple[Server, str]] = []

    def inspecting(
        name: str, command: list[str], port: int, environment: dict[str, str], *rest: Any
    ) -> Server:
        """As vLLM does: what its own folder does not tell, it finds out and puts there."""
        facts = Path(environment["VLLM_CACHE_ROOT"], "modelinfos", "llama.json")
        before = facts.read_text() if facts.exists() else "nothing"
        facts.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text("version 2")
        starts.append((Server(name, command, port, environment, *rest), before))
        return starts[-1][0]

    monkeypatch.setattr(deployment, "Server", inspecting)
    for told in ("nothing", "version 1"):
        with Deployment(plan, point, tmp_path / "logs") as running:
            slow, usual = starts
            assert [slow[1], usual[1]] == [told, "version 2"]
            assert running.engines == [usual[0]], "the slow start counts for nothing"
            assert not slow[0].is_running()
        starts.clear()
        with Deployment(plan, point, tmp_path / "logs"):
            assert [found for _, found in starts] == ["version 2"]
        starts.clear()
        known.write_text("version 1")


def test_a_server_that_restarts_is_away_and_then_left_alone_for_as_long_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engines_needed: None
) -> None:
    plan, (point, _) = points(tmp_path, monkeypatch, 1)
    with Deployment(plan, point, tmp_path / "logs") as running:
        first = running.engines[0]
        port, seen = running.port, []

        def sleep(duration_s: float) -> None:
            now = running.engines[0]
            seen.append((duration_s, now is first, now.is_running()))

        monkeypatch.setattr(deployment, "time", SimpleNamespace(sleep=sleep))
        running.restart("engine", pause_s=12.0)
        assert seen == [(12.0, True, False), (12.0, False, True)]
        assert running.port == port == running.engines[0].port
