"""The KV cache in its two halves: the block tables of requests, and the K and V they point to."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from inferlab.engine.block_pool import Block, BlockPool, extend_block_hashes
from inferlab.engine.fp8 import FORMATS, Fp8Pages, Pages
from inferlab.engine.request import Request


class PrefixHit(NamedTuple):
    """What the prefix cache holds of a request."""

    blocks: list[Any]  # full blocks, from the start of the sequence; of a radix tree, its match
    num_tokens: int  # tokens in them: a multiple of the block size


class CacheManager(Protocol):
    """What the scheduler and the engine ask of whoever gives out the blocks of the KV cache.

    `KVCacheManager` finds prefixes by the hashes of full blocks, `RadixKVCacheManager` in a tree of
    tokens. The methods are described there.
    """

    block_size: int
    num_blocks: int

    @property
    def capacity(self) -> int: ...

    @property
    def num_free_blocks(self) -> int: ...

    def block_table(self, request_id: str) -> list[int]: ...

    def get_computed_blocks(self, request: Request) -> PrefixHit: ...

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[Any] = (),
        full_sequence_must_fit: bool = False,
    ) -> Sequence[Any] | None: ...

    def settle(self, request: Request) -> None: ...

    def free(self, request: Request) -> None: ...


class KVCacheManager:
    """Gives requests the blocks they need, and finds the ones that are already computed.

    Invariants:
      - a request holds exactly `ceil(n / block_size)` blocks, where n is the number of tokens it
        has slots for, so that at most `block_size - 1` slots of a request are unused; n counts
        drafts until they are verified;
      - `allocate_slots` either succeeds or returns None and changes nothing.

    Source: vllm/v1/core/kv_cache_manager.py:KVCacheManager.
    """

    def __init__(self, num_blocks: int, block_size: int = 16, enable_caching: bool = True) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; a block holds at least one token.")
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.enable_caching = enable_caching
        self.block_pool = BlockPool(num_blocks, enable_caching)
        self._blocks: dict[str, list[Block]] = {}

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold for a request that has it to itself."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out, those that are still cached among them."""
        return self.block_pool.num_free_blocks

    def block_table(self, request_id: str) -> list[int]:
        """Physical block ids of a request, in the order of its tokens."""
        return [block.block_id for block in self._blocks.get(request_id, ())]

    def get_computed_blocks(self, request: Request) -> PrefixHit:
        """The longest run of cached blocks at the start of the request.

        The last token is never taken from the cache, even if its block is there: its logits are
        needed to sample, and only a forward pass gives logits.
        """
        if not self.enable_caching:
            return PrefixHit([], 0)
        self._hash_full_blocks(request)
        hits: list[Block] = []
        for block_hash in request.block_hashes[: (request.num_tokens - 1) // self.block_size]:
            block = self.block_pool.get_cached_block(block_hash)
            if block is None:
                break
            hits.append(block)
        return PrefixHit(hits, len(hits) * self.block_size)

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[Block] = (),
        full_sequence_must_fit: bool = False,
    ) -> list[Block] | None:
        """Give `request` slots for its next `num_new_tokens` tokens.

        Args:
            request: its `num_computed_tokens` does not count the hit yet.
            num_new_tokens: tokens to be computed in this step.
            computed_blocks: prefix-cache hit to adopt; only for a request that holds no block.
            full_sequence_must_fit: refuse unless every token that the request has now would fit.
                Without it a long prompt is admitted on its first chunk and preempts others later.

        Returns:
            The new blocks (not the adopted ones), or None if there is no room.
        """
        held = self._blocks.get(request.request_id, [])
        num_computed = request.num_computed_tokens + len(computed_blocks) * self.block_size
        num_needed = self._num_blocks(num_computed + num_new_tokens)
        num_reserved = self._num_blocks(request.num_tokens) if full_sequence_must_fit else 0
        # A hit that lies in the free queue is about to leave it: it cannot be handed out as well.
        num_revived = sum(block.ref_count == 0 for block in computed_blocks)
        num_free = self.block_pool.num_free_blocks - num_revived
        num_owned = len(held) + len(computed_blocks)
        if max(num_needed, num_reserved) - num_owned > num_free:
            return None
        self.block_pool.touch(computed_blocks)
        new_blocks = self.block_pool.get_new_blocks(max(0, num_needed - num_owned))
        self._blocks[request.request_id] = [*held, *computed_blocks, *new_blocks]
        self._cache_full_blocks(request, min(num_computed + num_new_tokens, request.num_tokens))
        return new_blocks

    def settle(self, request: Request) -> None:
        """Keep what verification accepted and give back the blocks of what it rejected.

        Called with the accepted tokens appended and `num_computed_tokens` still where the step
        began. Rejected drafts' K and V stay where they are: no block that holds them is indexed,
        nothing reads behind a sequence's end, and its next tokens overwrite them.
        """
        num_computed = request.num_tokens - 1  # the newest token has no K and V yet
        self._cache_full_blocks(request, num_computed)
        blocks = self._blocks[request.request_id]
        num_kept = self._num_blocks(num_computed + len(request.draft_token_ids))
        self._blocks[request.request_id] = blocks[:num_kept]
        self.block_pool.free_blocks(blocks[num_kept:][::-1])

    def free(self, request: Request) -> None:
        """Give back all blocks of a request, its last block first.

        In that order the end of a sequence is evicted before its beginning, which is the part that
        another request is most likely to share.
        """
        blocks = self._blocks.pop(request.request_id, [])
        # Indexed for a step that will not compute them, if the request is a victim of that step:
        # found, they would give wrong tokens. (vLLM 0.32 leaves them indexed.)
        self.block_pool.uncache_blocks(blocks[request.num_computed_tokens // self.block_size :])
        self.block_pool.free_blocks(blocks[::-1])

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _hash_full_blocks(self, request: Request) -> None:
        unhashed = len(request.block_hashes) * self.block_size
        token_ids = request.token_ids(unhashed, request.num_tokens)
        extend_block_hashes(request.block_hashes, token_ids, self.block_size, request.cache_salt)

    def _cache_full_blocks(self, request: Request, num_tokens: int) -> None:
        """Index the blocks that this step fills.

        They are indexed before they are computed: the forward pass writes the K and V of all
        requests of a step before any of them reads, so a request of the same step may hit them.
        """
        first, end = request.num_computed_tokens // self.block_size, num_tokens // self.block_size
        if not self.enable_caching or first >= end:  # mostly: a decoded token seldom fills a block
            return
        self._hash_full_blocks(request)
        blocks = self._blocks[request.request_id]
        for i in range(first, end):
            self.block_pool.cache_full_block(blocks[i], request.block_hashes[i])


class KVCache:
    """The physical K and V, `[num_layers, num_blocks, block_size, num_kv_heads, head_dim]` each.

    A slot is the flat index `block_id * block_size + offset` of one token's K and V in a layer.

    Args:
        dtype: "float32", or a name in `fp8.FORMATS`; `keys` and `values` then hold codes (uint8).
        scales: of the codes, K's and V's, `[2, num_layers, num_kv_heads]`; 1 unless given.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str = "float32",
        scales: np.ndarray | None = None,
    ) -> None:
        if dtype not in ("float32", *FORMATS):
            raise ValueError(f"The dtype is {dtype!r}; expected float32, {' or '.join(FORMATS)}.")
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        self.block_size, self.dtype = block_size, dtype
        self.keys = np.zeros(shape, np.float32 if dtype == "float32" else np.uint8)
        self.values = np.zeros_like(self.keys)
        ones = np.ones((2, num_layers, num_kv_heads), np.float32)
        self.scales = ones if scales is None else scales
        if (
            self.scales.shape != ones.shape
            or not ((self.scales > 0) & (self.scales < np.inf)).all()
        ):
            raise ValueError(
                f"The scales are {self.scales.tolist()}; expected positive, finite numbers, "
                f"{num_layers} times {num_kv_heads} for K and as many for V."
            )

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def pages(self, layer: int) -> tuple[Pages, Pages]:
        """K and V of a layer as attention reads them."""
        if self.dtype == "float32":
            return self.keys[layer], self.values[layer]
        codec, (key_scales, value_scales) = FORMATS[self.dtype], self.scales[:, layer]
        keys = Fp8Pages(self.keys[layer], key_scales, codec)
        return keys, Fp8Pages(self.values[layer], value_scales, codec)

    def write(self, layer: int, slots: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Store K and V `[num_tokens, num_kv_heads, head_dim]` in `slots` `[num_tokens]`."""
        if self.dtype != "float32":
            encode, scales = FORMATS[self.dtype].encode, self.scales[:, layer, :, None]
            keys, values = encode(keys / scales[0]), encode(values / scales[1])
        flat = (-1, *self.keys.shape[3:])
        self.keys[layer].reshape(flat)[slots] = keys
        self.values[layer].reshape(flat)[slots] = values


def slot_mapping(block_tables: np.ndarray, positions: np.ndarray, block_size: int) -> np.ndarray:
    """Slots `[num_tokens]` of the tokens at `positions` `[num_tokens]` of their sequences.

    Args:
        block_tables: `[num_tokens, max_blocks]`, for each token the table of its sequence.
    """
    rows = np.arange(len(positions))
    blocks = block_tables[rows, positions // block_size]
    slots: np.ndarray = blocks * block_size + positions % block_size
    return slots
