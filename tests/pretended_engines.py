"""An environment of the engines that holds pretended ones, of which a run takes no time."""

import sys
from pathlib import Path

import pytest

from inferlab.lab import engines, load_generator, runner
from tests.scratch_experiments import scratch_experiments

PRETENDED = Path(__file__).parent / "pretended"

WORKLOADS = """\
two:
  description: two short requests, one after the other
  flags: {dataset-name: random, num-prompts: 2, max-concurrency: 1, random-input-len: 20,
          random-output-len: 4, ignore-eos: true, temperature: 0}
"""


def pretended_engines(folder: Path) -> Path:
    """Make an environment in `folder` whose one engine is the pretended vLLM."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "vllm").write_text(f'#!/bin/sh\nexec python "{PRETENDED}/vllm.py" "$@"\n')
    (binaries / "vllm").chmod(0o755)
    return folder


def pretended_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, week99: str) -> None:
    """Runs of the experiments in `week99` keep to `folder` and use the pretended engines."""
    scratch_experiments(folder, monkeypatch, workloads=WORKLOADS, week99=week99)
    environment = pretended_engines(folder / "environment")
    monkeypatch.setenv(engines.ENGINES_VARIABLE, str(environment))
    monkeypatch.setitem(load_generator.SCRIPTS, "vllm", PRETENDED / "bench_serve.py")
    monkeypatch.setattr(runner, "LIVE", folder / "live")
    monkeypatch.setattr(runner, "RECORDED", folder / "recorded")
    monkeypatch.setattr(runner, "LOGS", folder / "logs")
    monkeypatch.delenv("INFERLAB_TEST_LOADS", raising=False)
