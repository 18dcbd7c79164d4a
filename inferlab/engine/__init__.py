"""The course's serving engine: NumPy, small enough to hold in the head, exact enough to grade with.

Contract: importing this package needs NumPy and nothing of the course outside it (loading a
checkpoint needs safetensors and tokenizers; `parallel`, `step_graph` and `server` are imported by
name). Same prompt and same seed give the same tokens, whatever the batch, the chunking, the cache
or preemption; with speculation the sampled ones keep their distribution instead. Each module
states its invariants; the property tests enforce them. README.md follows one request through.
"""

from inferlab.engine.attention import paged_decode_attention, paged_prefill_attention
from inferlab.engine.block_pool import (
    Block,
    BlockPool,
    FreeBlockQueue,
    extend_block_hashes,
    hash_block_tokens,
)
from inferlab.engine.checkpoint import ModelConfig
from inferlab.engine.kv_cache import KVCache, KVCacheManager, PrefixHit, slot_mapping
from inferlab.engine.kv_tiers import KVTiers, TieredKVStore, chunk_hashes
from inferlab.engine.llm import LLM
from inferlab.engine.model import LlamaModel, SequenceChunk, make_batch
from inferlab.engine.radix_cache import RadixCache
from inferlab.engine.radix_kv_cache import RadixKVCacheManager
from inferlab.engine.request import Completion, Request, RequestStatus, SamplingParams
from inferlab.engine.sampler import Sampler
from inferlab.engine.scheduler import ScheduledRequest, Scheduler, SchedulerOutput
from inferlab.engine.speculation import DraftModelProposer, NgramProposer, Proposer
from inferlab.engine.transfer import (
    KVExport,
    export_request,
    import_request,
    move_request,
    release_request,
)

__all__ = [
    "LLM",
    "Block",
    "BlockPool",
    "Completion",
    "DraftModelProposer",
    "FreeBlockQueue",
    "KVCache",
    "KVCacheManager",
    "KVExport",
    "KVTiers",
    "LlamaModel",
    "ModelConfig",
    "NgramProposer",
    "PrefixHit",
    "Proposer",
    "RadixCache",
    "RadixKVCacheManager",
    "Request",
    "RequestStatus",
    "Sampler",
    "SamplingParams",
    "ScheduledRequest",
    "Scheduler",
    "SchedulerOutput",
    "SequenceChunk",
    "TieredKVStore",
    "chunk_hashes",
    "export_request",
    "extend_block_hashes",
    "hash_block_tokens",
    "import_request",
    "make_batch",
    "move_request",
    "paged_decode_attention",
    "paged_prefill_attention",
    "release_request",
    "slot_mapping",
]
