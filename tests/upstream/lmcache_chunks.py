"""The chunks that LMCache's own token database makes; runs in the engines' interpreter."""

import torch
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.token_database import ChunkedTokenDatabase


def main(data):
    return [chunks(case["chunk_size"], case["token_ids"]) for case in data]


def chunks(chunk_size, token_ids):
    """Bounds and hash of each chunk, as LMCache is configured by default."""
    config = LMCacheEngineConfig.from_defaults(chunk_size=chunk_size)
    metadata = LMCacheMetadata(
        model_name="tiny",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=torch.float32,
        kv_shape=(2, 2, chunk_size, 2, 32),
        chunk_size=chunk_size,
    )
    found = ChunkedTokenDatabase(config, metadata).process_tokens(token_ids, make_key=False)
    return [[start, end, str(chunk_hash)] for start, end, chunk_hash in found]
