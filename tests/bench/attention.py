"""Paged decode attention by the number of blocks in a tile, on one layer of tiny-chat's shape."""

import time
from collections.abc import Iterator

import numpy as np

from inferlab.engine.attention import paged_decode_attention
from tests.bench.measurement import Measurement
from tests.bench.throughput import LENGTHS

TITLE = "Paged decode attention by tile, 16 sequences of ShareGPT-like lengths, blocks of 16 tokens"
TILES = [4, 12, 24, 64]  # blocks


def measure(repeats: int) -> Iterator[Measurement]:
    """The tiles in turn, on the same batches; sequences are met as often as they take steps."""
    random = np.random.default_rng(0)
    keys, values = random.standard_normal((2, 4096, 16, 2, 64), dtype=np.float32)
    contexts = np.concatenate([prompt + 1 + np.arange(output) for prompt, output in LENGTHS])
    batches = []
    for _ in range(20):
        lengths = random.choice(contexts, 16)
        tables = random.permutation(4095)[: 16 * 128].reshape(16, 128) + 1
        queries = random.standard_normal((16, 4, 64), dtype=np.float32)
        batches.append((queries, keys, values, tables, lengths))
    samples: dict[int, list[float]] = {tile: [] for tile in TILES}
    for _ in range(repeats):
        for tile, times in samples.items():
            start = time.perf_counter()
            for batch in batches:
                paged_decode_attention(*batch, tile_blocks=tile)
            times.append((time.perf_counter() - start) / len(batches) / 16 * 1e6)
    for tile, times in samples.items():
        yield Measurement(f"tile of {tile} blocks", "µs/sequence", times)
