"""A real vLLM server, and ours, find in their caches what an agent loop's turns have in common."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inferlab import models
from inferlab.lab import launch, prompt_sets
from inferlab.lab.load_generator import LoadGenerator
from inferlab.lab.plan import PERCENTILES
from inferlab.lab.server import Server, free_port
from inferlab.lab.specification import Flags, load_profile
from tests.test_lab_prompt_sets import with_a_beginning

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.full]

CONVERSATIONS, BLOCK = 4, 32
# After an answer of 8 tokens, the block in which a prompt ends is not yet full: which of them are
# found again does not depend on what the model answers.
LENGTHS = [100, 170, 240, 310, 380]
SHAPE: Flags = {
    "conversations": CONVERSATIONS,
    "turns": len(LENGTHS),
    "first_tokens": LENGTHS[0],
    "added_tokens": LENGTHS[1] - LENGTHS[0],
    "output_tokens": 8,
}
OF_THE_ENGINE: dict[str, Flags] = {
    "vllm": {"block-size": BLOCK},
    "inferlab": {"block-size": BLOCK, "num-blocks": 512},
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadGenerator]:
    log = tmp_path_factory.mktemp("load") / "load.log"
    with LoadGenerator("vllm", load_profile("cpu").environment, log) as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tiny-chat, whose tokenizer puts a special token before every prompt, as Llama 3's does."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for file in models.path("tiny-chat").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tokenizer.json").unlink()
    with_a_beginning().save(str(folder / "tokenizer.json"))
    return str(folder)


@contextmanager
def serving(engine: str, checkpoint: str, log: Path) -> Iterator[Server]:
    profile, port = load_profile("cpu"), free_port()
    flags = {**profile.servers[engine], **OF_THE_ENGINE[engine]}
    command = launch.server_command(engine, checkpoint, "tiny-chat", port, flags)
    with Server(engine, command, port, profile.environment, log) as server:
        yield server


def loaded(
    generator: LoadGenerator, server: Server, checkpoint: str, prompts: Flags, folder: Path
) -> tuple[dict[str, Any], float]:
    """The load generator's answer, and how many prompt tokens the server found in its cache."""
    file = folder / f"{prompts['kind']}.jsonl"
    prompt_sets.write(prompts, checkpoint, 0, file)
    flags: Flags = {
        **prompt_sets.bench_flags(prompts),
        "dataset-path": str(file),
        "max-concurrency": CONVERSATIONS,
        "ignore-eos": True,
        "temperature": 0,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "metric-percentiles": ",".join(str(percentile) for percentile in PERCENTILES),
    }
    where = ["--base-url", f"http://127.0.0.1:{server.port}"]
    names = ["--model", "tiny-chat", "--tokenizer", checkpoint]
    before = server.snapshot().values
    answer = generator.ask([*where, *names, *launch.flag_arguments(flags, "vllm")])
    after, counter = server.snapshot().values, "vllm:prefix_cache_hits_total"
    return answer, after[counter] - before[counter]


@pytest.mark.parametrize("engine", OF_THE_ENGINE)
def test_each_turn_finds_the_former_one_in_the_cache(
    engine: str, checkpoint: str, generator: LoadGenerator, tmp_path: Path
) -> None:
    hits = {}
    with serving(engine, checkpoint, tmp_path / "server.log") as server:
        for kind in ("agent-loop", "separate-turns"):
            answer, hits[kind] = loaded(
                generator, server, checkpoint, {"kind": kind, **SHAPE}, tmp_path
            )
            # Counted by the server: it makes as many tokens of the text as were asked for.
            assert answer["input_lens"] == [n for n in LENGTHS for _ in range(CONVERSATIONS)]
            assert answer["output_lens"] == [8] * CONVERSATIONS * len(LENGTHS)
        if engine == "vllm":
            tasks: Flags = {"kind": "tasks", "num_requests": 12}
            answer, _ = loaded(generator, server, checkpoint, tasks, tmp_path)
            lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
            prompts = [json.loads(line)["prompt"] for line in lines]
            chats = [f"<|bos|><|user|>{prompt}<|end|><|assistant|>" for prompt in prompts]
            # One special token at the beginning, the template's, and not the tokenizer's beside it.
            encodings = with_a_beginning().encode_batch(chats, add_special_tokens=False)
            assert answer["input_lens"] == [len(encoding.ids) for encoding in encodings]
            body = {"model": "tiny-chat", "prompt": chats[0], "max_tokens": 1}
            plain = server.client.post("/v1/completions", json=body, timeout=60).json()
            assert plain["usage"]["prompt_tokens"] == answer["input_lens"][0] + 1
    found_again = [length // BLOCK * BLOCK for length in LENGTHS[:-1]]
    assert hits == {"agent-loop": CONVERSATIONS * sum(found_again), "separate-turns": 0}
