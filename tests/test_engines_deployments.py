"""SGLang, and SGLang's router before several servers: started, loaded, measured, stopped."""

import os
from pathlib import Path

import pytest

from inferlab.lab import runner
from inferlab.lab.table import Table
from tests.scratch_experiments import scratch_experiments
from tests.test_engines_runs import descendants
from tests.test_lab_processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.slow]

NUM_PREFIXES, NUM_REQUESTS, PREFIX, QUESTION, OUTPUT = 4, 24, 128, 32, 8
SHARED = f"""\
shared:
  description: {NUM_PREFIXES} prefixes for {NUM_REQUESTS} requests
  flags: {{dataset-name: prefix_repetition, num-prompts: {NUM_REQUESTS}, max-concurrency: 2,
          prefix-repetition-prefix-len: {PREFIX}, prefix-repetition-suffix-len: {QUESTION},
          prefix-repetition-num-prefixes: {NUM_PREFIXES},
          prefix-repetition-output-len: {OUTPUT}, ignore-eos: true, temperature: 0}}
"""
WEEK = """\
week: 99
experiments:
  small:
    question: Does it run?
    prediction: Will it?
    metrics: [prefix_hit_share]
    repeats: 2
    profiles: [cpu]
    arms:
      - engine: {engine}
        workload: shared
        {grid}
"""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str, grid: str) -> Table:
    week = WEEK.format(engine=engine, grid=grid)
    scratch_experiments(folder, monkeypatch, workloads=SHARED, week99=week)
    monkeypatch.setattr(runner, "LIVE", folder / "live")
    monkeypatch.setattr(runner, "LOGS", folder / "logs")
    before = set(descendants(os.getpid()))
    table = runner.run_experiment("week99/small", "cpu", record=False)
    wait_for(lambda: set(descendants(os.getpid())) <= before)
    assert [row.get("error") for row in table.rows] == [None] * len(table.rows)
    return table


def test_sglang_is_measured_with_and_without_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run(tmp_path, monkeypatch, "sglang", "server: {disable-radix-cache: [false, true]}")
    with_cache, without = table.rows
    for row in table.rows:
        assert row["output_tokens"] == NUM_REQUESTS * OUTPUT == row["server_generation_tokens"]
        assert row["kv_cache_size_tokens"] == 32768
        # The gauge is read now and then, and may be missed while both requests are running.
        assert 1 <= row["num_requests_running_peak"] <= 2
    assert without["prefix_cache_hits_tokens"] == 0
    # Each prefix is computed once, or twice where two requests for it run at once. The second
    # repeat has prompts of its own, and finds nothing of the first.
    largest = (NUM_REQUESTS - NUM_PREFIXES) * (PREFIX + QUESTION)
    assert with_cache["prefix_cache_hits_tokens_min"] >= (NUM_REQUESTS - 2 * NUM_PREFIXES) * PREFIX
    assert with_cache["prefix_cache_hits_tokens_max"] <= largest


def test_the_router_keeps_a_prefix_on_one_server_if_it_looks_at_prefixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = "workers: 2\n        router: {policy: [cache_aware, round_robin]}"
    table = run(tmp_path, monkeypatch, "inferlab", grid)
    aware, blind = table.rows
    for row in table.rows:
        assert row["output_tokens"] == NUM_REQUESTS * OUTPUT == row["server_generation_tokens"]
        assert row["num_gpu_blocks"] == 2 * 2048
    # Blind to prefixes, both servers compute each of them.
    assert aware["prefix_cache_hits_tokens_min"] > blind["prefix_cache_hits_tokens_max"]
    assert blind["prefix_cache_hits_tokens_min"] > 0
