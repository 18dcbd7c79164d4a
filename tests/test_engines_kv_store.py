"""LMCache's server beside a real vLLM: what is found in it again, counted to the token."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from inferlab.lab import kv_store
from inferlab.lab.checkpoints import model_path
from inferlab.lab.launch import server_command
from inferlab.lab.server import Server, free_port
from inferlab.lab.specification import load_profile
from tests.test_lab_processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.slow]

MODEL = "tiny-chat"
CHUNK = 64
STORE = {
    "chunk-size": CHUNK,
    "l1-size-gb": 0.1,
    "eviction-policy": "LRU",
    "supported-transfer-mode": "auto",
    "l2-adapter.type": "fs_native",
}
# Shorter than a chunk; one chunk; a chunk and almost another; eight chunks and a little more.
LENGTHS = [63, 64, 127, 520]
PROMPTS = [[3 + (length + 7 * n) % 500 for n in range(length)] for length in LENGTHS]
# Whole chunks only, and the last token of a prompt is always computed.
FOUND = sum(min(length // CHUNK * CHUNK, length - 1) for length in LENGTHS)
WHOLE_CHUNKS = sum(length // CHUNK for length in LENGTHS)


class Beside:
    """A store, a vLLM that uses it, and one that has none."""

    def __init__(self, servers: ExitStack, folder: Path) -> None:
        self.folder = folder / "kv"
        port, http_port = free_port(), free_port()
        command = kv_store.server_command(STORE, port, http_port, str(self.folder))
        log = folder / "store.log"
        store = Server("KV store", command, http_port, kv_store.ENVIRONMENT, log, kv_store.READY)
        self.store = servers.enter_context(store)
        connected = {"kv-transfer-config": kv_store.connector(port)}
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(self.engine, flags, folder) for flags in (connected, {})]
            self.vllm, self.alone = [servers.enter_context(one.result()) for one in started]

    def engine(self, more: dict[str, Any], folder: Path) -> Server:
        profile, port = load_profile("cpu"), free_port()
        flags = {**profile.servers["vllm"], "block-size": 32, **more}
        command = server_command("vllm", model_path(MODEL), MODEL, port, flags)
        environment = profile.environment | kv_store.ENVIRONMENT
        return Server("vLLM", command, port, environment, folder / f"vllm-{port}.log")


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with ExitStack() as servers:
        yield Beside(servers, tmp_path_factory.mktemp("kv_store"))


def served(vllm: Server) -> tuple[list[str], dict[str, float]]:
    """What the prompts are continued with, and what the serving added to vLLM's counters.

    The prefix cache is emptied first, so that only the store can know the prompts.
    """
    # It refuses, with 200, while K and V are still on their way to the store.
    assert vllm.client.post("/reset_prefix_cache").json() == {"success": True}
    before = vllm.snapshot().values
    texts = []
    for prompt in PROMPTS:
        request = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        answer = vllm.client.post(
            "/v1/completions", json={**request, "ignore_eos": True}, timeout=60
        )
        texts.append(answer.raise_for_status().json()["choices"][0]["text"])
    after = vllm.snapshot().values
    return texts, {name: value - before.get(name, 0.0) for name, value in after.items()}


def found(added: dict[str, float]) -> float:
    assert added["vllm:prefix_cache_hits_total"] == 0
    assert added["vllm:prompt_tokens_total"] == sum(LENGTHS)
    return added.get("vllm:external_prefix_cache_hits_total", 0.0)


def test_second_serving_takes_every_whole_chunk_from_the_store(beside: Beside) -> None:
    kv_store.clear(beside.store, beside.folder)
    before = kv_store.counted(beside.store)
    texts, first = served(beside.vllm)
    assert found(first) == 0
    # They are written in the background, and what is being written is not cleared from the memory.
    wait_for(lambda: len(list(beside.folder.glob(kv_store.FILES))) == WHOLE_CHUNKS)
    again, second = served(beside.vllm)
    assert found(second) == FOUND
    assert again == texts
    beside.store.post("/cache/clear")
    from_disk, third = served(beside.vllm)
    assert found(third) == FOUND
    assert from_disk == texts
    after = kv_store.counted(beside.store)
    assert {name: after[name] - before[name] for name in after} == {
        "store_found_in_memory_tokens": WHOLE_CHUNKS * CHUNK,
        "store_found_on_disk_tokens": WHOLE_CHUNKS * CHUNK,
        # Those of the first serving; and those from the disk pass through the memory.
        "store_written_chunks": 2 * WHOLE_CHUNKS,
    }


def test_cleared_store_gives_nothing(beside: Beside) -> None:
    served(beside.vllm)
    _, kept = served(beside.vllm)
    assert found(kept) == FOUND
    kv_store.clear(beside.store, beside.folder)
    _, cleared = served(beside.vllm)
    assert found(cleared) == 0


def test_without_a_store_nothing_comes_from_outside(beside: Beside) -> None:
    texts, first = served(beside.alone)
    again, second = served(beside.alone)
    assert found(first) == found(second) == 0
    assert texts == again
