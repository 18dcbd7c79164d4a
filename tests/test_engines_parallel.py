"""Four servers of three engines at once: none shares a port, a log or a cache with another."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from inferlab.lab.deployment import CACHES, Deployment
from inferlab.lab.plan import plan_experiment
from tests.pretended_engines import WORKLOADS
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_kills import can_be_bound

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.full]

RUNS = {"first": "vllm", "second": "sglang", "third": "inferlab", "fourth": "inferlab"}
EXPERIMENT = """\
  {name}:
    question: Does it run beside the others?
    prediction: Will it?
    metrics: [output_tokens_per_s]
    repeats: 1
    profiles: [cpu]
    arms: [{{engine: {engine}, workload: two}}]
"""


def deploy(name: str, logs: Path, stack: ExitStack) -> Deployment:
    plan = plan_experiment(f"week99/{name}", "cpu")
    return stack.enter_context(Deployment(plan, plan.points[0], logs / name))


def own(deployment: Deployment) -> list[psutil.Process]:
    """The processes of a deployment."""
    return [psutil.Process(n) for server in deployment.engines for n in server.process.processes()]


def ports(deployment: Deployment) -> set[object]:
    """Every port that it listens on, those between its own processes among them."""
    connections = [c for process in own(deployment) for c in process.net_connections("tcp")]
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def written(deployment: Deployment) -> set[object]:
    """The files that it has open for writing, its log among them."""
    files = [file for process in own(deployment) for file in process.open_files()]
    return {file.path for file in files if file.mode != "r"}


def caches(deployment: Deployment) -> set[object]:
    """The folders that its processes were told to keep what they compile in."""
    environments = [process.environ() for process in own(deployment)]
    # An engine's process that gives itself a title writes it over its environment.
    return {found[name] for found in environments for name in CACHES if name in found}


def test_four_servers_at_once_share_no_port_no_log_and_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [EXPERIMENT.format(name=name, engine=engine) for name, engine in RUNS.items()]
    week = "week: 99\nexperiments:\n" + "".join(texts)
    scratch_experiments(tmp_path, monkeypatch, workloads=WORKLOADS, week99=week)
    logs = tmp_path / "logs"
    with ExitStack() as stack, ThreadPoolExecutor(len(RUNS)) as pool:
        running = list(pool.map(lambda name: deploy(name, logs, stack), RUNS))
        for deployment in running:
            deployment.require_running()
            body = {"model": "tiny-chat", "prompt": [7] * 20, "max_tokens": 4}
            url = f"http://127.0.0.1:{deployment.port}/v1/completions"
            answer = httpx.post(url, json=body, timeout=120).raise_for_status().json()
            assert answer["usage"]["completion_tokens"] == 4
        for deployment in running:
            assert deployment.port in ports(deployment)
            assert str(deployment.engines[0].process.log) in written(deployment)
            (cache,) = caches(deployment)
            assert str(cache).startswith(str(deployment.log_folder))
        used = {port for deployment in running for port in ports(deployment)}
        for of in (ports, written, caches):
            everything = [thing for deployment in running for thing in of(deployment)]
            assert len(everything) == len(set(everything)), of.__name__
    assert all(can_be_bound(port) for port in used)
    assert not list(logs.rglob("*.scratch"))
    assert not psutil.Process(os.getpid()).children(recursive=True)
