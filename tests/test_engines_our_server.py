"""The engines' own load generators load our server, as they load the engines."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferlab.lab.engines import interpreter, process_environment
from inferlab.lab.load_generator import LoadGenerator
from tests.server_fixture import CHECKPOINT, OurServer, our_server

pytestmark = [pytest.mark.engines, pytest.mark.slow]
NUM_PROMPTS, INPUT_LENGTH, OUTPUT_LENGTH = 24, 40, 12


@pytest.fixture(scope="module")
def server() -> Iterator[OurServer]:
    with our_server() as running:
        yield running


def test_vllm_bench_serve_loads_our_server(server: OurServer, tmp_path: Path) -> None:
    lengths = ["--random-input-len", INPUT_LENGTH, "--random-output-len", OUTPUT_LENGTH]
    workload = ["--dataset-name", "random", *lengths, "--num-prompts", NUM_PROMPTS]
    with LoadGenerator("vllm", {}, tmp_path / "bench.log") as generator:
        for backend, endpoint in (
            ("openai", "/v1/completions"),
            ("openai-chat", "/v1/chat/completions"),
        ):
            before = server.metrics().values
            where = ["--base-url", server.url, "--backend", backend, "--endpoint", endpoint]
            names = ["--model", CHECKPOINT, "--served-model-name", "tiny-chat", "--ignore-eos"]
            asked = [
                "--percentile-metrics",
                "ttft,tpot,itl,e2el",
                "--metric-percentiles",
                "50,90,99",
            ]
            answer = generator.ask([str(a) for a in (*where, *names, *workload, *asked)])
            assert answer["completed"] == NUM_PROMPTS
            assert answer["failed"] == 0
            assert answer["output_lens"] == [OUTPUT_LENGTH] * NUM_PROMPTS
            assert answer["total_output_tokens"] == NUM_PROMPTS * OUTPUT_LENGTH
            # One chunk a token: what it calls TTFT and ITL are the engine's.
            assert [len(gaps) for gaps in answer["itls"]] == [OUTPUT_LENGTH - 1] * NUM_PROMPTS
            assert 0 < answer["median_ttft_ms"] < answer["duration"] * 1000
            after = server.metrics().values
            grown = {name: after[name] - before[name] for name in after}
            assert grown["vllm:generation_tokens_total"] == NUM_PROMPTS * OUTPUT_LENGTH
            assert grown["vllm:request_success_total"] == NUM_PROMPTS
            assert after["vllm:kv_cache_usage_perc"] == 0


def test_sglangs_benchmark_loads_our_server(server: OurServer, tmp_path: Path) -> None:
    output = tmp_path / "result.jsonl"
    options: dict[str, Any] = {
        "backend": "sglang-oai",
        "base-url": server.url,
        "model": "tiny-chat",
        "tokenizer": CHECKPOINT,
        "dataset-name": "random-ids",
        "random-input-len": INPUT_LENGTH,
        "random-output-len": OUTPUT_LENGTH,
        "random-range-ratio": 1,
        "num-prompts": NUM_PROMPTS,
        "output-file": output,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run = subprocess.run(
        [str(interpreter()), "-m", "sglang.benchmark.serving", *arguments],
        env=process_environment({}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(output.read_text().splitlines()[-1])
    assert result["completed"] == NUM_PROMPTS
    assert result["total_output_tokens"] == NUM_PROMPTS * OUTPUT_LENGTH
