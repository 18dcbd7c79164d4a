"""In place of `vllm bench serve`, which takes ten seconds to import: sends requests one by one.

It speaks as `inferlab/lab/engine_side/bench_serve.py` does. With the flag `--answer` it misbehaves
in the measured loads; each of them adds a line to the file that INFERLAB_TEST_LOADS names. Standard
library only.
"""

import argparse
import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path

WARM_UP = 10_000  # the runner's seed for it
PROMPT_TOKENS = 20
SUMMARIES = ("mean", "p50", "p90", "p99")


def send(asked: argparse.Namespace) -> float:
    """Seconds that one request takes."""
    body = {
        "model": asked.model,
        "prompt": [7] * PROMPT_TOKENS,
        "max_tokens": asked.random_output_len,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{asked.base_url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()
    return time.perf_counter() - started


def bench(asked: argparse.Namespace) -> dict[str, object]:
    """What vLLM would write; without streaming, half of a request's time stands for its TTFT."""
    count, tokens = asked.num_prompts, asked.random_output_len
    if count < asked.prefix_repetition_num_prefixes:
        raise ValueError(f"num_requests ({count}) must be greater than or equal to num_prefixes")
    latencies = [send(asked) for _ in range(count)]
    interval = sum(latencies) / count / 2 / tokens
    means = {"ttft": interval * tokens, "tpot": interval, "itl": interval, "e2el": 0.0}
    return {
        "duration": sum(latencies),
        "failed": 0,
        "num_prompts": count,
        "errors": [""] * count,
        "input_lens": [PROMPT_TOKENS] * count,
        "output_lens": [tokens] * count,
        "start_times": [sum(latencies[:number]) for number in range(count)],
        "ttfts": [latency / 2 for latency in latencies],
        "itls": [[interval] * (tokens - 1)] * count,
        "latencies": latencies,
        **{f"{s}_{name}_ms": 1000 * mean for name, mean in means.items() for s in SUMMARIES},
    }


def answer(asked: argparse.Namespace) -> str:
    """The line to answer with."""
    result = bench(asked)
    good = json.dumps({"result": result})
    if asked.seed == WARM_UP:
        return good
    if "INFERLAB_TEST_LOADS" in os.environ:
        with Path(os.environ["INFERLAB_TEST_LOADS"]).open("a") as loads:
            loads.write(f"{asked.random_output_len} {asked.seed}\n")
    if asked.answer == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.answer == "hangs":
        time.sleep(600)
    if asked.answer == "closes":
        os.close(1)
        time.sleep(600)
    no_requests = {name: [] for name, value in result.items() if isinstance(value, list)}
    changed: dict[str, dict[str, object]] = {
        "no-requests": {**no_requests, "num_prompts": 0},
        "no-time": {"duration": 0.0},
        "not-a-number": {"mean_ttft_ms": float("nan")},
        "one-short": {"output_lens": [asked.random_output_len]},
        "one-failed": {"failed": 1, "errors": ["", "Connection reset by peer"]},
    }
    lines = {
        "good": good,
        "empty": "",
        "nothing": "{}",
        "cut": good[:-40],
        "null": '{"result": null}',
        "no-fields": '{"result": {}}',
        "twice": f"Warning: slow.\n{good}",
        "refused": '{"error": "ValueError: no such data set"}',
    }
    if asked.answer in changed:
        return json.dumps({"result": {**result, **changed[asked.answer]}})
    return lines[asked.answer]


parser = argparse.ArgumentParser()
for flag, kind in (("base-url", str), ("model", str), ("num-prompts", int), ("seed", int)):
    parser.add_argument(f"--{flag}", type=kind, required=True)
parser.add_argument("--random-output-len", type=int, default=4)
parser.add_argument("--prefix-repetition-num-prefixes", type=int, default=1)
parser.add_argument("--answer", default="good")

for line in sys.stdin:
    try:
        text = answer(parser.parse_known_args(json.loads(line))[0])
    except OSError as error:
        time.sleep(0.5)  # vLLM's takes longer to say so
        text = json.dumps({"error": f"{type(error).__name__}: {error}"})
    print(text, flush=True)
