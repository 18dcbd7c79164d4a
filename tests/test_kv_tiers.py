"""Tiers give back exactly the K and V they were given, or nothing, whatever happens to the disk."""

import resource
import signal
import subprocess
import sys
import warnings
from collections import OrderedDict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from inferlab import models
from inferlab.engine import LLM, LlamaModel, Request, SamplingParams
from inferlab.engine.kv_payload import MAGIC, kv_fingerprint, pack
from inferlab.engine.kv_tiers import KVTiers, TieredKVStore, chunk_hashes
from inferlab.engine.layers import DenseLinear
from inferlab.engine.quantization import Int8Linear
from inferlab.lab import upstream
from inferlab.lab.upstream import SCRIPTS
from inferlab.models import corpus

CHECKPOINT = models.path("tiny-chat")
ROOT = Path(__file__).resolve().parent.parent
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
LARGE = 1 << 24
SHAPE = (2, 4, 2, 8)  # [num_layers, chunk_size, num_kv_heads, head_dim]


# Hashes of chunks.


@given(st.lists(st.integers(0, 639), max_size=70), st.integers(1, 20))
def test_only_whole_chunks_have_a_hash(tokens: list[int], chunk_size: int) -> None:
    hashes = chunk_hashes(tokens, chunk_size)
    assert len(hashes) == len(tokens) // chunk_size == len(set(hashes))
    assert chunk_hashes(tokens[: len(hashes) * chunk_size], chunk_size) == hashes


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_a_hash_stands_for_everything_before_it(
    tokens: list[int], chunk_size: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:place], tokens[place] + 1, *tokens[place + 1 :]]
    pairs = list(zip(chunk_hashes(tokens, chunk_size), chunk_hashes(changed, chunk_size)))
    same = [mine == theirs for mine, theirs in pairs]
    assert same == [i < place // chunk_size for i in range(len(pairs))]
    salted = chunk_hashes(tokens, chunk_size, "salt")
    assert not set(salted) & {mine for mine, _ in pairs}


@pytest.mark.slow
@pytest.mark.engines
def test_chunks_are_those_of_lmcache() -> None:
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    for _ in range(60):
        chunk_size = int(rng.integers(1, 40))
        tokens = rng.integers(0, 640, rng.integers(0, 200)).tolist()
        shared = int(rng.integers(0, len(tokens) + 1))
        for token_ids in (tokens, tokens[:shared] + tokens[shared:][::-1]):
            cases.append({"chunk_size": chunk_size, "token_ids": token_ids})
    theirs = upstream((SCRIPTS / "lmcache_token_database.py").read_text(), cases)
    num_chunks = 0
    for case, chunks in zip(cases, theirs):
        size, hashes = case["chunk_size"], chunk_hashes(case["token_ids"], case["chunk_size"])
        assert [chunk[:2] for chunk in chunks] == [
            [i * size, (i + 1) * size] for i in range(len(hashes))
        ]
        num_chunks += len(hashes)
    assert num_chunks > 500
    for i in range(0, len(cases), 2):  # two sequences share the same chunks in both hashings
        size = cases[i]["chunk_size"]
        mine = [chunk_hashes(case["token_ids"], size) for case in cases[i : i + 2]]
        equal = [left == right for left, right in zip(*mine)]
        assert equal == [left[2] == right[2] for left, right in zip(*theirs[i : i + 2])]


# The store.


def chunk(number: int) -> tuple[np.ndarray, np.ndarray]:
    keys, values = np.random.default_rng(number).standard_normal((2, *SHAPE), dtype=np.float32)
    return keys, values


def key_of(number: int) -> bytes:
    return bytes([number]) * 32


def put(store: TieredKVStore, number: int) -> None:
    store.put(key_of(number), *chunk(number))


def holds(store: TieredKVStore, number: int) -> bool:
    """Whether `get` finds the chunk; fails if it finds anything but exactly that."""
    found = store.get(key_of(number))
    if found is None:
        return False
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, chunk(number)))
    return True


PAYLOAD_BYTES = len(pack({"key": key_of(0).hex()}, *chunk(0)))


def files(directory: str | Path) -> list[Path]:
    return sorted(Path(directory).iterdir())


class TierModel:
    """What the tiers hold, as two lists in the order of use."""

    def __init__(self, memory_chunks: int, disk_chunks: int) -> None:
        self.sizes = memory_chunks, disk_chunks
        self.memory: OrderedDict[int, None] = OrderedDict()
        self.disk: OrderedDict[int, None] = OrderedDict()

    def write(self, number: int) -> None:
        if number in self.disk or not self.sizes[1]:
            return
        while len(self.disk) >= self.sizes[1]:
            self.disk.popitem(last=False)
        self.disk[number] = None

    def remember(self, number: int) -> None:
        if self.sizes[0]:
            self.memory[number] = None
            self.memory.move_to_end(number)
        while len(self.memory) > self.sizes[0]:
            self.write(self.memory.popitem(last=False)[0])

    def touch(self, number: int) -> bool:
        for tier in (self.memory, self.disk):
            if number in tier:
                tier.move_to_end(number)
        return number in self.memory or number in self.disk

    def put(self, number: int) -> None:
        self.write(number)
        self.remember(number)
        self.touch(number)

    def get(self, number: int) -> bool:
        if number not in self.memory and number not in self.disk:
            return False
        self.remember(number)
        return self.touch(number)

    def restart(self) -> None:
        self.memory.clear()


@settings(max_examples=60)
@given(
    memory_chunks=st.integers(0, 4),
    disk_chunks=st.integers(0, 5),
    operations=st.lists(
        st.tuples(st.sampled_from(["put", "get", "touch", "restart"]), st.integers(0, 7)),
        max_size=40,
    ),
)
def test_the_tiers_hold_what_two_lists_in_the_order_of_use_hold(
    memory_chunks: int, disk_chunks: int, operations: list[tuple[str, int]]
) -> None:
    model = TierModel(memory_chunks, disk_chunks)
    with TemporaryDirectory() as directory:

        def new_store() -> TieredKVStore:
            budgets = memory_chunks * PAYLOAD_BYTES, disk_chunks * PAYLOAD_BYTES
            return TieredKVStore(directory, *budgets)

        store = new_store()
        for operation, number in operations:
            if operation == "put":
                put(store, number)
                model.put(number)
            elif operation == "get":
                assert holds(store, number) == model.get(number)
            elif operation == "touch":
                assert store.touch(key_of(number)) == model.touch(number)
            else:
                store = new_store()
                model.restart()
            assert [key[0] for key in store._memory] == list(model.memory)
            assert store.num_memory_bytes == len(model.memory) * PAYLOAD_BYTES
            by_use = sorted(files(directory), key=lambda path: path.stat().st_mtime_ns)
            assert [int(path.name[:2], 16) for path in by_use] == list(model.disk)


def test_a_chunk_that_the_disk_lost_is_written_again_when_it_leaves_memory(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, 2 * PAYLOAD_BYTES, LARGE)
    put(store, 0)
    store.path(key_of(0)).unlink()
    put(store, 1)
    assert not store.path(key_of(0)).exists()
    put(store, 2)
    assert store.path(key_of(0)).exists()
    assert store.num_memory_bytes == 2 * PAYLOAD_BYTES
    assert holds(TieredKVStore(tmp_path, 0, LARGE), 0)


def test_a_chunk_larger_than_a_tier_evicts_nothing_from_it(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, PAYLOAD_BYTES, PAYLOAD_BYTES)
    put(store, 0)
    large = np.zeros((2, 400, 2, 8), dtype=np.float32)
    store.put(key_of(1), large, large)
    assert holds(store, 0)
    assert files(tmp_path) == [store.path(key_of(0))]
    assert not store.touch(key_of(1))


def test_other_files_of_the_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x" * 10 * PAYLOAD_BYTES)
    store = TieredKVStore(tmp_path, 0, PAYLOAD_BYTES)
    put(store, 0)
    put(store, 1)
    assert {path.name for path in files(tmp_path)} == {"notes.txt", store.path(key_of(1)).name}


def places_of_interest(payload: bytes) -> list[int]:
    """The borders of every part of a file, the bytes beside them, and some in the middle."""
    header_length = int.from_bytes(payload[len(MAGIC) + 32 :][:8], "little")
    raw = len(MAGIC) + 32 + 8 + header_length
    borders = [0, len(MAGIC), len(MAGIC) + 32, raw - header_length, raw, (raw + len(payload)) // 2]
    middles = [(left + right) // 2 for left, right in zip(borders, [*borders[1:], len(payload)])]
    near = [border + offset for border in [*borders, len(payload)] for offset in (-1, 0, 1)]
    return sorted({place for place in near + middles if 0 <= place < len(payload)})


def test_a_file_cut_short_anywhere_is_a_miss_and_leaves(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, 0, LARGE)
    put(store, 0)
    path = store.path(key_of(0))
    payload = path.read_bytes()
    assert len(places_of_interest(payload)) > 20
    for length in places_of_interest(payload):
        path.write_bytes(payload[:length])
        assert not holds(store, 0)
        assert not path.exists()
    path.write_bytes(payload)
    assert holds(store, 0)


def test_a_file_with_one_bit_altered_anywhere_is_a_miss(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, 0, LARGE)
    put(store, 0)
    path = store.path(key_of(0))
    payload = path.read_bytes()
    for place in places_of_interest(payload):
        altered = bytearray(payload)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        assert not holds(store, 0)
    path.write_bytes(payload + b"\0")
    assert not holds(store, 0)
    put(store, 0)  # computed again, it is kept again
    assert holds(store, 0)


def test_a_file_under_the_name_of_another_chunk_is_a_miss(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, 0, LARGE)
    put(store, 0)
    store.path(key_of(0)).rename(store.path(key_of(1)))
    assert store.get(key_of(1)) is None


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `script` in an interpreter of its own; warnings are errors unless it says otherwise."""
    code = f"import os, signal, sys, time, warnings\nfrom tests.test_kv_tiers import *\n{script}"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def output(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout


def test_a_writer_killed_before_its_rename_leaves_no_chunk_and_no_rubbish(tmp_path: Path) -> None:
    killed = child(
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "put(TieredKVStore(sys.argv[1], 0, LARGE), 0)",
        tmp_path,
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    (left_over,) = files(tmp_path)
    assert left_over.stat().st_size == PAYLOAD_BYTES
    store = TieredKVStore(tmp_path, 0, 2 * PAYLOAD_BYTES)
    assert not holds(store, 0)
    put(store, 1)
    put(store, 0)
    assert not left_over.exists()
    assert holds(store, 0)
    assert holds(store, 1)


SHARE = """
me, other, directory = int(sys.argv[1]), 1 - int(sys.argv[1]), Path(sys.argv[2])

def meet(stage):
    (directory / f"{stage}-{me}").touch()
    for _ in range(3000):
        if (directory / f"{stage}-{other}").exists():
            return
        time.sleep(0.01)
    raise TimeoutError(stage)

store = TieredKVStore(directory, 2 * PAYLOAD_BYTES, 6 * PAYLOAD_BYTES)
rng, found = np.random.default_rng(me), 0
meet("start")
for _ in range(400):
    number = int(rng.integers(0, 12))
    if rng.random() < 0.4:
        put(store, number)
    else:
        found += holds(store, number)
meet("middle")
put(store, 100 + me)
meet("end")
assert holds(store, 100 + other)
print(found)
"""


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    processes = [child(SHARE, number, tmp_path) for number in range(2)]
    assert all(int(output(process)) > 20 for process in processes)
    chunks = [path for path in files(tmp_path) if "-" not in path.stem]
    assert 2 <= len(chunks) <= 7  # six, and one that the other may have written just then


FULL = """
store = TieredKVStore(sys.argv[1], LARGE, LARGE)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for number in range(4):
        put(store, number)
    kept = [holds(store, number) for number in range(4)]
    on_disk = [holds(TieredKVStore(sys.argv[1], 0, LARGE), number) for number in range(4)]
print(len(told), told[0].message.args[0] if told else "")
print(kept, on_disk, len(files(sys.argv[1])))
"""


def test_a_disk_that_refuses_a_write_costs_that_chunk_and_is_told_once(tmp_path: Path) -> None:
    """A real OSError: the process may not write files larger than half a payload."""
    limit = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (PAYLOAD_BYTES // 2, PAYLOAD_BYTES // 2))"
    )
    first, second = output(child(limit + FULL, tmp_path)).splitlines()
    assert first.startswith("1 The disk tier failed: [Errno 27] File too large.")
    assert second == f"{[True] * 4} {[False] * 4} 0"
    control, second = output(child(FULL, tmp_path)).splitlines()
    assert control == "0 "
    assert second == f"{[True] * 4} {[True] * 4} 4"


def test_a_full_disk_costs_the_chunks_that_do_not_fit(tmp_path: Path) -> None:
    """A file system of two pages, in a mount namespace of its own: the third chunk has no room."""
    mount = f"mount -t tmpfs -o nr_blocks=2 none {tmp_path}"
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*in_namespace, mount], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    assert resource.getpagesize() >= PAYLOAD_BYTES
    code = f"import sys, warnings\nfrom tests.test_kv_tiers import *\n{FULL}"
    done = subprocess.run(
        [*in_namespace, f'{mount} && exec "$@"', "sh", sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("1 The disk tier failed: [Errno 28] No space left on device.")
    assert second == f"{[True] * 4} {[True, True, False, False]} 2"


def test_a_directory_that_cannot_be_read_is_told_once_and_memory_goes_on(tmp_path: Path) -> None:
    store = TieredKVStore(tmp_path, 0, LARGE)
    put(store, 0)
    tmp_path.chmod(0)
    unprivileged = "os.getuid() or os.setuid(65534)\n"  # root may read everything
    script = unprivileged + FULL.replace(
        "len(files(sys.argv[1]))", "os.access(sys.argv[1], os.R_OK)"
    )
    try:
        process = child(script, tmp_path)
        first, second = output(process).splitlines()
    finally:
        tmp_path.chmod(0o700)
    assert first.startswith("5 The disk tier failed: [Errno 13] Permission denied")
    assert second == f"{[True] * 4} {[False] * 4} False"
    assert holds(store, 0)


def test_a_directory_that_is_a_file_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = TieredKVStore(tmp_path / "file", LARGE, LARGE)
    with pytest.warns(RuntimeWarning, match="further failures are not reported"):
        put(store, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(store, 1)
    assert holds(store, 0)
    assert holds(store, 1)


# With an engine.


def chat(task: str = "recall", index: int = 1) -> str:
    """A question whose answer stands in the prompt; by default it has 33 tokens."""
    example = corpus.held_out_examples(task, index + 1)[index]
    return f"<|bos|><|user|>{example.prompt}<|end|><|assistant|>"


@cache
def shared_model(name: str = "tiny-chat") -> LlamaModel:
    return LlamaModel.from_pretrained(models.path(name))


def engine(name: str = "tiny-chat", **options: Any) -> LLM:
    """An engine of its own on weights that are loaded once."""
    with patch.object(LlamaModel, "from_pretrained", return_value=shared_model(name)):
        return LLM(models.path(name), **{"num_blocks": 128, "block_size": 4, **options})


def tiered(directory: Path | str, chunk_size: int = 8, **options: Any) -> KVTiers:
    return KVTiers(engine(**options), TieredKVStore(directory, LARGE, LARGE), chunk_size)


@cache
def run_alone(
    prompt: str | tuple[int, ...], params: SamplingParams = GREEDY, name: str = "tiny-chat"
) -> list[int]:
    return engine(name).generate([prompt], params)[0].token_ids


def finish(llm: LLM) -> None:
    while llm.scheduler.has_unfinished_requests():
        llm.step()


def test_cold_warm_restarted_and_second_engine_give_the_same_tokens(tmp_path: Path) -> None:
    cold, warm = tiered(tmp_path), tiered(tmp_path)
    warm.store = cold.store  # a second engine beside the same store
    restarted = tiered(tmp_path)  # nothing in memory
    second = tiered(tmp_path, block_size=16)
    found = []
    for tiers in (cold, warm, restarted, second):
        (completion,) = tiers.llm.generate([chat()], GREEDY)
        assert completion.token_ids == run_alone(chat())
        assert completion.num_cached_tokens == tiers.num_loaded_tokens
        found.append((tiers.num_loaded_tokens, tiers.num_saved_tokens))
    # 33 tokens of prompt and 11 of output were computed: five whole chunks of 8. Of the prompt,
    # four chunks are whole, and they fill whole blocks of 4 and of 16.
    assert found == [(0, 40), (32, 0), (32, 0), (32, 0)]


@settings(max_examples=30, derandomize=True)
@given(
    prompt=st.lists(st.integers(6, 639), min_size=1, max_size=50),
    num_shared=st.integers(0, 50),
    chunk_size=st.integers(1, 20),
    block_sizes=st.tuples(st.sampled_from([1, 3, 4, 16]), st.sampled_from([1, 4, 7, 16])),
    params=st.sampled_from([GREEDY, SamplingParams(max_tokens=12, seed=3, ignore_eos=True)]),
)
def test_loaded_tokens_are_whole_chunks_in_whole_blocks(
    prompt: list[int],
    num_shared: int,
    chunk_size: int,
    block_sizes: tuple[int, int],
    params: SamplingParams,
) -> None:
    with TemporaryDirectory() as directory:
        writer = tiered(directory, chunk_size, name="tiny-draft", block_size=block_sizes[0])
        (first,) = writer.llm.generate([prompt], params)
        in_blocks = (len(prompt) + 11) // block_sizes[0] * block_sizes[0]
        saved = in_blocks // chunk_size * chunk_size
        assert writer.num_saved_tokens == saved
        other = prompt[:num_shared] + first.token_ids
        sequence, shared = prompt + first.token_ids, 0
        while shared < min(len(sequence), len(other)) and sequence[shared] == other[shared]:
            shared += 1
        reader = tiered(directory, chunk_size, name="tiny-draft", block_size=block_sizes[1])
        (second,) = reader.llm.generate([other], params)
        chunks = min(saved, shared) // chunk_size * chunk_size
        loaded = min(chunks, len(other) - 1) // block_sizes[1] * block_sizes[1]
        assert reader.num_loaded_tokens == second.num_cached_tokens == loaded
        assert second.token_ids == run_alone(tuple(other), params, "tiny-draft")


def test_loaded_blocks_are_cached_unreferenced_and_reused_last_tail_first(tmp_path: Path) -> None:
    tiered(tmp_path).llm.generate([chat()], GREEDY)
    tiers = tiered(tmp_path)
    request = tiers.llm.add_request(chat(), GREEDY)
    num_free = tiers.manager.num_free_blocks
    tiers.load_waiting()
    assert (tiers.manager.num_free_blocks, tiers.num_loaded_tokens) == (num_free, 32)
    loaded = tiers.manager.block_pool.free_queue.blocks()[-8:][::-1]
    assert [block.block_hash for block in loaded] == request.block_hashes[:8]
    assert request.num_computed_tokens == 0
    tiers.load_waiting()  # what is cached now is not loaded again
    assert tiers.num_loaded_tokens == 32


def test_a_partial_chunk_is_never_loaded(tmp_path: Path) -> None:
    prompt = np.random.default_rng(1).integers(6, 640, 40).tolist()
    writer = tiered(tmp_path, chunk_size=16)
    writer.llm.generate([prompt[:31]], SamplingParams(max_tokens=1, temperature=0))
    assert writer.num_saved_tokens == 16
    reader = tiered(tmp_path, chunk_size=16)
    reader.llm.generate([prompt], GREEDY)
    assert reader.num_loaded_tokens == 16


def test_what_the_prefix_cache_holds_is_not_loaded(tmp_path: Path) -> None:
    tiered(tmp_path).llm.generate([chat()], GREEDY)
    tiers = tiered(tmp_path)
    token_ids = tiers.llm.tokenizer.encode(chat()).ids
    tiers.store.path(tiers._hashes(Request("a", token_ids))[1]).unlink()  # from token 8 on
    tiers.llm.generate([token_ids[:21]], SamplingParams(max_tokens=1, temperature=0))
    assert tiers.num_loaded_tokens == 8  # the first chunk; 21 tokens are in the cache now
    (completion,) = tiers.llm.generate([chat()], GREEDY)
    assert tiers.num_loaded_tokens == 8 + 12  # 20 are in whole blocks, 32 in whole chunks
    assert completion.num_cached_tokens == 32
    assert completion.token_ids == run_alone(chat())


def test_another_model_finds_nothing(tmp_path: Path) -> None:
    tiered(tmp_path).llm.generate([chat()], GREEDY)
    other = LLM(CHECKPOINT, block_size=4)
    other.model.layers[0].input_norm[:] *= 1.01
    tiers = KVTiers(other, TieredKVStore(tmp_path, LARGE, LARGE), 8)
    other.generate([chat()], GREEDY)
    assert (tiers.num_loaded_tokens, tiers.num_saved_tokens) == (0, 40)
    assert tiers.fingerprint != kv_fingerprint(shared_model(), other.kv_cache)


def test_a_model_changed_after_it_was_known_is_another_model() -> None:
    """Its weights, and settings that decide what is computed from the same weights."""
    llm = LLM(CHECKPOINT)
    seen = [kv_fingerprint(llm.model, llm.kv_cache)]
    layer = llm.model.layers[1]
    dense = layer.output
    assert isinstance(dense, DenseLinear)
    for int8_activations in (False, True):
        layer.output = Int8Linear.from_dense(dense, int8_activations)
        seen.append(kv_fingerprint(llm.model, llm.kv_cache))
    assert len(set(seen)) == 3
    layer.output = dense
    assert kv_fingerprint(llm.model, llm.kv_cache) == seen[0]


def test_salted_requests_share_only_with_their_like(tmp_path: Path) -> None:
    loaded = []
    for salt in ("left", "right", "", "left"):
        tiers = tiered(tmp_path)
        request = tiers.llm.add_request(chat(), GREEDY)
        request.cache_salt = salt
        finish(tiers.llm)
        loaded.append(tiers.num_loaded_tokens)
    assert loaded == [0, 0, 0, 32]


def damage(directory: Path, how: str) -> None:
    for path in files(directory):
        payload = bytearray(path.read_bytes())
        if how == "cut short":
            payload = payload[: len(payload) // 2]
        else:
            # The sign of V in the second half of the file: K stay as they are.
            payload[len(payload) // 2 + 3 :: 4] = bytes(
                byte ^ 0x80 for byte in payload[len(payload) // 2 + 3 :: 4]
            )
        path.write_bytes(payload)


@pytest.mark.parametrize("how", ["cut short", "corrupted"])
def test_damaged_files_are_misses_and_the_tokens_stay_right(tmp_path: Path, how: str) -> None:
    tiered(tmp_path).llm.generate([chat()], GREEDY)
    damage(tmp_path, how)
    tiers = tiered(tmp_path)
    (completion,) = tiers.llm.generate([chat()], GREEDY)
    assert completion.token_ids == run_alone(chat())
    # The first chunk was found damaged, and left; the others were not even asked for.
    assert (tiers.num_loaded_tokens, tiers.num_saved_tokens) == (0, 8)


def unpack_trustingly(payload: bytes) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    header = unpack_header(payload)
    shape, dtype = header.pop("shape"), np.dtype(header.pop("dtype"))
    count = 2 * int(np.prod(shape))
    keys, values = np.frombuffer(payload[-count * dtype.itemsize :], dtype).reshape(2, *shape)
    return header, keys, values


def unpack_header(payload: bytes) -> dict[str, Any]:
    import json

    body = payload[len(MAGIC) + 32 :]
    header: dict[str, Any] = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return header


def test_control_without_the_checksum_damaged_files_give_other_tokens(tmp_path: Path) -> None:
    tiered(tmp_path).llm.generate([chat()], GREEDY)
    with patch("inferlab.engine.kv_tiers.unpack", unpack_trustingly):
        intact = tiered(tmp_path)
        assert intact.llm.generate([chat()], GREEDY)[0].token_ids == run_alone(chat())
        assert intact.num_loaded_tokens == 32
        damage(tmp_path, "corrupted")
        misled = tiered(tmp_path)
        assert misled.llm.generate([chat()], GREEDY)[0].token_ids != run_alone(chat())
        assert misled.num_loaded_tokens == 32


def test_a_queue_longer_than_the_cache_loads_for_each_as_its_turn_comes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(6, 640, 40).tolist() for _ in range(10)]
    tiered(tmp_path, name="tiny-draft").llm.generate(prompts, GREEDY)
    # 39 blocks: room for three requests of 13 blocks, and never for what all ten would load.
    tiers = tiered(tmp_path, name="tiny-draft", num_blocks=40)
    completions = tiers.llm.generate(prompts, GREEDY)
    assert [completion.num_preemptions for completion in completions] == [0] * 10
    assert [completion.num_cached_tokens for completion in completions] == [36] * 10
    assert tiers.num_loaded_tokens == 360
    expected = [run_alone(tuple(prompt), name="tiny-draft") for prompt in prompts]
    assert [completion.token_ids for completion in completions] == expected


def cached_hashes(llm: LLM) -> set[bytes]:
    return set(llm.scheduler.kv_cache_manager.block_pool._cached)  # type: ignore[attr-defined]


@settings(max_examples=25, derandomize=True)
@given(st.data())
def test_a_load_evicts_nothing_that_would_stay_without_tiers(data: st.DataObject) -> None:
    """Two engines with the same past admit the same requests, one with tiers and one without."""
    numbers = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    prompts = [rng.integers(6, 640, int(rng.integers(5, 60))).tolist() for _ in range(6)]
    past, present = data.draw(numbers), data.draw(numbers)
    num_blocks = data.draw(st.integers(17, 40))
    one_token = SamplingParams(max_tokens=1, temperature=0)
    with TemporaryDirectory() as directory:
        small = {"name": "tiny-draft", "num_blocks": num_blocks}
        tiered(directory, name="tiny-draft").llm.generate(prompts, one_token)
        tiers, plain = tiered(directory, **small), engine(**small)
        for llm in (tiers.llm, plain):
            llm.kv_tiers = None
            for number in past:
                llm.generate([prompts[number]], one_token)
        assert cached_hashes(tiers.llm) == cached_hashes(plain)
        tiers.llm.kv_tiers = tiers
        before = cached_hashes(plain)
        for llm in (tiers.llm, plain):
            for number in present:
                llm.add_request(prompts[number], one_token)
            llm.step()
        admitted = [[r.request_id for r in llm.scheduler.waiting] for llm in (tiers.llm, plain)]
        assert admitted[0] == admitted[1]
        assert cached_hashes(tiers.llm) & before >= cached_hashes(plain) & before


def test_an_engine_without_a_hashed_prefix_cache_is_refused(tmp_path: Path) -> None:
    for options in ({"enable_prefix_caching": False}, {"prefix_cache": "radix"}):
        with pytest.raises(ValueError, match="no prefix cache of hashed blocks"):
            tiered(tmp_path, **options)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        tiered(tmp_path, chunk_size=0)


def test_a_broken_disk_does_not_stop_the_engine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tiers = KVTiers(engine(), TieredKVStore(tmp_path / "file", 0, LARGE), 8)
    with pytest.warns(RuntimeWarning, match="The disk tier failed"):
        (completion,) = tiers.llm.generate([chat()], GREEDY)
    assert completion.token_ids == run_alone(chat())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiers.llm.generate([chat("json")], GREEDY)[0].token_ids == run_alone(chat("json"))
