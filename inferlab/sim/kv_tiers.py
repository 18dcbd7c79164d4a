"""Tiers below a server's KV cache: K and V that it has itself no more, loaded in whole chunks."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from inferlab.engine.kv_cache import KVCacheManager, PrefixHit
from inferlab.engine.request import Request
from inferlab.sim.received_kv import ReceivingKVCacheManager


class Tier(NamedTuple):
    """Where chunks of K and V are kept: the host's memory, a disk, another machine."""

    name: str
    capacity_tokens: int
    bytes_per_s: float  # of loading
    latency_s: float = 0.0  # of each chunk that is loaded


class TieredKVCacheManager(ReceivingKVCacheManager):
    """A KV cache that loads from `tiers` what it does not find in its own blocks.

    What a request computed is kept in every tier when the request ends, and the least recently used
    chunk leaves a full one. As in our engine, the engine waits for what it loads; storing costs it
    nothing.

    Args:
        tiers: the fastest first.
        chunk_size: tokens that are kept and loaded together, a multiple of the block size.
        kv_bytes_per_token: over all layers.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        tiers: Sequence[Tier],
        chunk_size: int,
        kv_bytes_per_token: float,
    ) -> None:
        if chunk_size < 1 or chunk_size % block_size:
            raise ValueError(
                f"A chunk of {chunk_size} tokens is not a whole number of blocks of {block_size}."
            )
        ReceivingKVCacheManager.__init__(self, num_blocks, block_size)
        self.tiers, self.chunk_size = tiers, chunk_size
        self.chunk_bytes = chunk_size * kv_bytes_per_token
        self.loaded_tokens = dict.fromkeys((tier.name for tier in tiers), 0)
        self._kept: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in tiers]
        self._found: dict[str, list[bytes]] = {}  # chunks to be loaded, by waiting request
        self._loading_s = 0.0

    def take_loading_s(self) -> float:
        """Seconds of loading for the requests admitted since this was last asked."""
        seconds, self._loading_s = self._loading_s, 0.0
        return seconds

    def get_computed_blocks(self, request: Request) -> PrefixHit:
        hit = KVCacheManager.get_computed_blocks(self, request)
        first = hit.num_tokens // self.chunk_size
        found = []
        for chunk in self._chunks(request, request.num_tokens - 1)[first:]:
            if not any(chunk in kept for kept in self._kept):
                break
            found.append(chunk)
        self._found[request.request_id] = found
        self.expect(request, (first + len(found)) * self.chunk_size if found else 0)
        return ReceivingKVCacheManager.get_computed_blocks(self, request)

    def receive(self, request: Request) -> None:
        if request.request_id in self._expected:
            for chunk in self._found.pop(request.request_id):
                self._load(chunk)
        ReceivingKVCacheManager.receive(self, request)

    def free(self, request: Request) -> None:
        """Keep what was computed, then give back its blocks."""
        for chunk in self._chunks(request, request.num_computed_tokens):
            self._keep(chunk)
        ReceivingKVCacheManager.free(self, request)

    def _chunks(self, request: Request, num_tokens: int) -> list[bytes]:
        """The hash of each whole chunk of the first tokens: that of its last block."""
        size = self.chunk_size // self.block_size
        blocks = min(num_tokens // self.block_size, len(request.block_hashes))
        return request.block_hashes[size - 1 : blocks : size]

    def _load(self, chunk: bytes) -> None:
        tier = next(tier for tier, kept in zip(self.tiers, self._kept) if chunk in kept)
        self._loading_s += tier.latency_s + self.chunk_bytes / tier.bytes_per_s
        self.loaded_tokens[tier.name] += self.chunk_size
        self._keep(chunk)

    def _keep(self, chunk: bytes) -> None:
        for tier, kept in zip(self.tiers, self._kept):
            kept[chunk] = None
            kept.move_to_end(chunk)
            if len(kept) * self.chunk_size > tier.capacity_tokens:
                kept.popitem(last=False)
