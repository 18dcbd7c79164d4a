"""Tiers below the KV cache: chunks of K and V in memory and on disk; built in week 15.

The tiers feed the prefix cache: a chunk that a waiting request can use becomes cached blocks that
nobody holds, and the ordinary prefix lookup finds them; the scheduler knows nothing of it. Mirrors
lmcache/v1/token_database.py:ChunkedTokenDatabase, lmcache/v1/storage_backend/
local_disk_backend.py:LocalDiskBackend, and vllm/distributed/kv_transfer/kv_connector/v1/base.py.
Differences on purpose: every payload has a checksum, and the engine waits for the disk.
"""

import os
import secrets
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from inferlab.engine.block_pool import extend_block_hashes
from inferlab.engine.kv_cache import KVCacheManager, PrefixHit
from inferlab.engine.kv_payload import kv_fingerprint, pack, read_blocks, unpack, write_tokens
from inferlab.engine.llm import LLM
from inferlab.engine.request import Request

SUFFIX = ".inferlab-kv"


def chunk_hashes(token_ids: Sequence[int], chunk_size: int, salt: str = "") -> list[bytes]:
    """Hash of each whole chunk of `chunk_size` tokens, chained as the hashes of blocks are."""
    hashes: list[bytes] = []
    extend_block_hashes(hashes, token_ids, chunk_size, salt)
    return hashes


class TieredKVStore:
    """Chunks of K and V by hash, in memory and in a directory that several processes may share.

    A chunk is written to disk at once, to survive a restart, and promoted to memory when it is read
    there. One that has to leave memory is demoted: written again if the disk no longer has it.

    Invariants:
      - `get` returns bit for bit what `put` was given under that key, or None;
      - memory holds at most `memory_bytes`, the directory at most `disk_bytes` and one payload more
        for each other process writing just then; the least recently used leave first, on disk by
        modification time, so that the left-overs of a killed writer leave too;
      - a file is whole: it was written under another name, synced, then renamed;
      - a disk that fails raises nothing: a chunk is missed or not kept, and the first time is told.
    """

    def __init__(self, directory: str | Path, memory_bytes: int, disk_bytes: int) -> None:
        self.directory = Path(directory)
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.num_memory_bytes = 0
        self._memory: OrderedDict[bytes, bytes] = OrderedDict()
        self._has_warned = False

    def path(self, key: bytes) -> Path:
        """The file of a chunk; the directory has no other index."""
        return self.directory / f"{key.hex()}{SUFFIX}"

    def put(self, key: bytes, keys: np.ndarray, values: np.ndarray) -> None:
        """Keep the K and V `[num_layers, chunk_size, num_kv_heads, head_dim]` of a chunk."""
        payload = pack({"key": key.hex()}, keys, values)
        self._write(key, payload)
        self._remember(key, payload)
        self.touch(key)

    def get(self, key: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        """K and V of a chunk, or None if no tier has it whole, unaltered and under its own key."""
        try:
            payload = self._memory.get(key) or self.path(key).read_bytes()
            header, keys, values = unpack(payload)
            if header.get("key") != key.hex():
                raise ValueError(f"{self.path(key)} holds another chunk.")
        except OSError as error:
            self._tell(error)
            return None
        except ValueError:
            self._forget(key)
            with suppress(OSError):
                self.path(key).unlink()  # so that `touch` does not take it for the chunk
            return None
        self._remember(key, payload)
        self.touch(key)
        return keys, values

    def touch(self, key: bytes) -> bool:
        """Whether a tier has the chunk, which now counts as just used."""
        if key in self._memory:
            self._memory.move_to_end(key)
        now = time.time_ns()  # the file system's own clock is too coarse to order two uses
        try:
            os.utime(self.path(key), ns=(now, now))
        except OSError:
            return key in self._memory
        return True

    def _remember(self, key: bytes, payload: bytes) -> None:
        self._forget(key)
        if len(payload) <= self.memory_bytes:
            self._memory[key] = payload
            self.num_memory_bytes += len(payload)
        while self.num_memory_bytes > self.memory_bytes:
            oldest = next(iter(self._memory))
            self._write(oldest, self._forget(oldest))

    def _forget(self, key: bytes) -> bytes:
        payload = self._memory.pop(key, b"")
        self.num_memory_bytes -= len(payload)
        return payload

    def _write(self, key: bytes, payload: bytes) -> None:
        path = self.path(key)
        temporary = path.with_suffix(f".{secrets.token_hex(8)}{SUFFIX}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if path.exists() or len(payload) > self.disk_bytes:
                return
            self._make_room(len(payload))
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())  # else the rename may reach the disk before the data
            temporary.replace(path)
            self.touch(key)
        except OSError as error:
            self._tell(error)
            with suppress(OSError):
                temporary.unlink()

    def _make_room(self, num_bytes: int) -> None:
        files = []
        for path in self.directory.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process was faster
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = num_bytes + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.disk_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _tell(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The disk tier failed: {error}. Chunks that it cannot keep or return are computed "
                "again; further failures are not reported.",
                RuntimeWarning,
                stacklevel=3,
            )


class KVTiers:
    """Joins an engine to a store: loads what waiting requests need, saves what finished ones leave.

    Invariant: where the first come is the first admitted, a load evicts nothing that would stay
    without tiers. It serves only requests that fit in the free blocks beside all before them in the
    queue, and it takes only blocks that their admission would take in any case.

    Args:
        chunk_size: tokens of a chunk; neither it nor the block size has to divide the other.
    """

    def __init__(self, llm: LLM, store: TieredKVStore, chunk_size: int = 256) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; a chunk holds at least one token.")
        manager = llm.scheduler.kv_cache_manager
        if not isinstance(manager, KVCacheManager) or not manager.enable_caching:
            raise ValueError(
                "The engine has no prefix cache of hashed blocks, and tiers reach its requests "
                'through nothing else; set enable_prefix_caching=True and prefix_cache="hash".'
            )
        self.llm, self.manager, self.store, self.chunk_size = llm, manager, store, chunk_size
        self.fingerprint = kv_fingerprint(llm.model, llm.kv_cache)
        self.num_loaded_tokens = self.num_saved_tokens = 0
        llm.kv_tiers = self

    def load_waiting(self) -> None:
        """Load for the requests that the next step may admit; called before it is scheduled."""
        scheduler, room = self.llm.scheduler, self.manager.num_free_blocks
        for request in islice(scheduler.waiting, scheduler.max_num_seqs - len(scheduler.running)):
            hit = self.manager.get_computed_blocks(request)
            num_held = sum(block.ref_count > 0 for block in hit.blocks)
            room -= -(-request.num_tokens // self.manager.block_size) - num_held
            if room < 0:
                return
            self._load(request, hit)

    def _load(self, request: Request, hit: PrefixHit) -> None:
        pool, size = self.manager.block_pool, self.manager.block_size
        usable = (request.num_tokens - 1) // size * size  # the last token is always computed
        first = hit.num_tokens // self.chunk_size
        chunks = []
        for key in self._hashes(request)[first:] if hit.num_tokens < usable else []:
            if (chunk := self.store.get(key)) is None:
                break
            chunks.append(chunk)
        stop = min((first + len(chunks)) * self.chunk_size, usable) // size
        # The hit moves to where blocks are reused last, lest the next request's load evict it.
        pool.touch(hit.blocks)
        blocks = pool.get_new_blocks(max(0, stop - len(hit.blocks)))
        if blocks:
            tokens = np.arange(hit.num_tokens, stop * size) - first * self.chunk_size
            keys, values = (np.concatenate(arrays, axis=1)[:, tokens] for arrays in zip(*chunks))
            write_tokens(self.llm.kv_cache, [b.block_id for b in blocks], 0, keys, values)
            for block, block_hash in zip(blocks, request.block_hashes[len(hit.blocks) :]):
                pool.cache_full_block(block, block_hash)
        pool.free_blocks([*hit.blocks, *blocks][::-1])
        self.num_loaded_tokens += len(blocks) * size

    def save(self, request: Request) -> None:
        """Keep the whole chunks of a request that finished in the step before.

        Its blocks are free, but cached still: none was handed out since.
        """
        size, table = self.manager.block_size, []
        for block_hash in request.block_hashes:
            if (block := self.manager.block_pool.get_cached_block(block_hash)) is None:
                break
            table.append(block.block_id)
        for i, key in enumerate(self._hashes(request)[: len(table) * size // self.chunk_size]):
            if not self.store.touch(key):
                start, stop = i * self.chunk_size, (i + 1) * self.chunk_size
                blocks = table[start // size : -(-stop // size)]
                keys, values = read_blocks(self.llm.kv_cache, blocks)
                tokens = slice(start % size, start % size + self.chunk_size)
                self.store.put(key, keys[:, tokens], values[:, tokens])
                self.num_saved_tokens += self.chunk_size

    def _hashes(self, request: Request) -> list[bytes]:
        salt = f"{self.fingerprint} {request.cache_salt}"
        return chunk_hashes(request.token_ids(0, request.num_tokens), self.chunk_size, salt)
