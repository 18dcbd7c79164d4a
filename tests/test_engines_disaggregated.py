"""Two real vLLM servers that exchange KV, behind our proxy."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from inferlab import models
from inferlab.engine import LLM
from inferlab.lab import kv_transfer, launch
from inferlab.lab.deployment import free_ports
from inferlab.lab.server import Server
from inferlab.lab.specification import load_model_facts, load_profile
from tests.oracle import MARGIN, decision_margin

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.full]

MODEL, BLOCK_SIZE, NEW_TOKENS = "tiny-chat", 32, 8
# Below a block; whole blocks, one token more and two; and many blocks.
LENGTHS = (20, 64, 65, 66, 300, 700)
EXTERNAL = "vllm:external_prefix_cache_hits_total"


def stored(length: int) -> int:
    """Tokens of a prompt whose KV the prefill server keeps: whole blocks before the last token."""
    return (length - 1) // BLOCK_SIZE * BLOCK_SIZE


def taken_over(length: int) -> int:
    """Tokens of a prompt that the decode server need not compute.

    It looks for the whole blocks before the last token but one, under a name that says which tokens
    they are. With one token beyond whole blocks, what was stored has another name.
    """
    sought = (length - 2) // BLOCK_SIZE * BLOCK_SIZE
    return sought if sought == stored(length) else 0


@dataclass
class Pair:
    prefill: Server
    decode: Server
    proxy: Server
    folder: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    kept = folder / "kv"
    profile = load_profile("cpu")
    common = {
        **profile.servers["vllm"],
        "block-size": BLOCK_SIZE,
        # Otherwise the second time a prompt is asked nothing is computed or taken over.
        "enable-prefix-caching": False,
        kv_transfer.CONNECTOR: "ExampleConnector",
    }
    ports = free_ports()
    with ExitStack() as running:

        def start(name: str, command: list[str], port: int, environment: dict[str, str]) -> Server:
            log = folder / f"{name}.log"
            return running.enter_context(Server(name, command, port, environment, log))

        def engine(task: kv_transfer.Task) -> Server:
            port = next(ports)
            flags = kv_transfer.server_flags(common, task, str(kept))
            command = launch.server_command("vllm", str(models.path(MODEL)), MODEL, port, flags)
            return start(task, command, port, profile.environment)

        prefill, decode, port = engine("prefill"), engine("decode"), next(ports)
        command = kv_transfer.proxy_command([prefill.port], [decode.port], port)
        yield Pair(prefill, decode, start("proxy", command, port, {}), kept)


def prompts(seed: int) -> list[list[int]]:
    """Random token ids, so that no prompt begins like another."""
    rng = np.random.default_rng(seed)
    return [rng.integers(6, 512, size=length).tolist() for length in LENGTHS]


def tokens(server: Server, prompt: list[int], **more: Any) -> list[int]:
    body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "return_token_ids": True, **more}
    answer = server.client.post(
        "/v1/completions", json={**body, "temperature": 0, "ignore_eos": True}, timeout=60
    )
    ids: list[int] = answer.raise_for_status().json()["choices"][0]["token_ids"]
    return ids


class Counters:
    """What a server's counters grow by from the moment this is made."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = server.snapshot().values

    def grown(self, name: str) -> float:
        return self.server.snapshot().values.get(name, 0) - self.before.get(name, 0)


def test_the_pair_answers_like_one_server_and_takes_over_what_was_predicted(pair: Pair) -> None:
    asked = prompts(seed=0)
    computing, taking_over = Counters(pair.prefill), Counters(pair.decode)
    from_pair = [tokens(pair.proxy, prompt) for prompt in asked]
    assert computing.grown(EXTERNAL) == 0
    assert taking_over.grown(EXTERNAL) == sum(taken_over(length) for length in LENGTHS)
    files = [load_file(path)["kv_cache"].nbytes for path in pair.folder.rglob("*.safetensors")]
    token_bytes = load_model_facts(MODEL).kv_bytes_per_token
    assert sum(files) == token_bytes * sum(stored(length) for length in LENGTHS)

    kv_transfer.forget(pair.folder)
    alone = Counters(pair.decode)
    from_one = [tokens(pair.decode, prompt) for prompt in asked]
    assert alone.grown(EXTERNAL) == 0
    assert_equal_but_for_near_ties(asked, from_pair, from_one)


def test_prompts_that_a_step_cannot_hold_are_handed_over_whole(pair: Pair) -> None:
    """A step computes 2,048 tokens: one that would cut a prompt would store a part of it."""
    rng = np.random.default_rng(1)
    asked = [rng.integers(6, 512, size=700).tolist() for _ in range(4)]
    taking_over = Counters(pair.decode)
    with ThreadPoolExecutor(len(asked)) as clients:
        from_pair = list(clients.map(lambda prompt: tokens(pair.proxy, prompt), asked))
    assert taking_over.grown(EXTERNAL) == 4 * taken_over(700)
    kv_transfer.forget(pair.folder)
    from_one = [tokens(pair.decode, prompt) for prompt in asked]
    assert_equal_but_for_near_ties(asked, from_pair, from_one)


def test_without_a_prefill_server_the_error_says_so_and_decode_lives(pair: Pair) -> None:
    pair.prefill.stop()
    body = {"prompt": prompts(seed=2)[0], "max_tokens": NEW_TOKENS}
    answer = pair.proxy.client.post("/v1/completions", json=body)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("The prefill server at ")
    assert pair.proxy.client.get("/health").status_code == 503
    assert len(tokens(pair.decode, prompts(seed=2)[0])) == NEW_TOKENS


def assert_equal_but_for_near_ties(
    asked: list[list[int]], some: list[list[int]], others: list[list[int]]
) -> None:
    """Other shapes of a step round its products differently, which decides only a near-tie."""
    llm = LLM(models.path(MODEL))
    for prompt, these, those in zip(asked, some, others):
        assert len(these) == len(those) == NEW_TOKENS
        differing = [i for i, both in enumerate(zip(these, those)) if both[0] != both[1]]
        if differing:
            assert decision_margin(llm, prompt + these[: differing[0]]) < MARGIN
