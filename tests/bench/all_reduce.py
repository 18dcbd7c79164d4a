"""How long two processes on this machine take to add up an array, against its size."""

import time

import numpy as np

from inferlab.engine.process_group import ProcessGroup, spawn
from tests.bench.measurement import Measurement

TITLE = "All-reduce between two ranks (gloo, loopback)"
SIZES = [1 << exponent for exponent in range(10, 25, 2)]  # bytes: 1 KiB to 16 MiB
CALLS_PER_SAMPLE = 20  # a single call is shorter than the scheduler's time slice


def measure(repeats: int) -> list[Measurement]:
    by_size = spawn(time_all_reduces, 2, repeats)[0]
    return [
        Measurement(f"all-reduce of {size // 1024:,} KiB", "µs", samples)
        for size, samples in by_size.items()
    ]


def time_all_reduces(group: ProcessGroup, repeats: int) -> dict[int, list[float]]:
    """µs a call, by the size of the array in bytes; the first, slower call is not counted."""
    samples: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(repeats):
        for size in SIZES:
            array = np.ones(size // 4, np.float32)
            group.all_reduce(array)
            start = time.perf_counter()
            for _ in range(CALLS_PER_SAMPLE):
                group.all_reduce(array)
            samples[size].append(1e6 * (time.perf_counter() - start) / CALLS_PER_SAMPLE)
    return samples
