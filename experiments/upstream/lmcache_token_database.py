"""The chunks that LMCache's own token database makes: runs in the engines' interpreter."""

import torch
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.token_database import ChunkedTokenDatabase


def main(data):
    return [chunks(**case) for case in data]


def chunks(chunk_size, token_ids, num_workers=1, worker=0):
    """Bounds and key of each chunk, as LMCache is configured by default."""
    config = LMCacheEngineConfig.from_defaults(chunk_size=chunk_size)
    metadata = LMCacheMetadata(
        model_name="tiny-chat",
        world_size=num_workers,
        local_world_size=num_workers,
        worker_id=worker,
        local_worker_id=worker,
        kv_dtype=torch.float32,
        kv_shape=(4, 2, chunk_size, 2, 64),
        chunk_size=chunk_size,
    )
    found = ChunkedTokenDatabase(config, metadata).process_tokens(token_ids)
    return [[start, end, key.to_string()] for start, end, key in found]
