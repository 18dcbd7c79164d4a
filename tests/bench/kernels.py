"""The Triton kernels beside the ceilings of the same GPU: copy bandwidth and `torch.matmul`.

Run alone with `python -m tests.bench.kernels`. Without a GPU nothing is measured: the interpreter
says nothing about speed. Bytes are those that a kernel has to move, each counted once, so a GB/s
figure above the copy's means that part of them came from a cache.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from tests.bench.measurement import Measurement

TITLE = "Triton kernels against the GPU's measured ceilings"

WARM_UPS, CALLS = 3, 20
CONTEXT, BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 8192, 16, 32, 8, 128  # Llama-3.1-8B, one layer


def measure(repeats: int) -> list[Measurement]:
    """All timings, in float16; empty, and said so, where there is no GPU."""
    try:
        import torch
    except ImportError:
        print("not measured: PyTorch is missing")
        return []
    if not torch.cuda.is_available():
        print("not measured: no GPU")
        return []
    found = bandwidth(repeats)
    found += product(repeats, "TFLOP/s", 4096, 4096, 4096)
    # So few rows that reading the weights is what takes the time: a decode step's product.
    found += product(repeats, "GB/s", 16, 4096, 14336)
    found += decode_attention(repeats, num_sequences=1)
    found += decode_attention(repeats, num_sequences=32)
    found += experts(repeats)
    found += packed_weights(repeats)
    return found


def bandwidth(repeats: int) -> list[Measurement]:
    """A copy of 1 GiB, which is read and written."""
    import torch

    from inferlab.kernels.tiled_gemm import copy_tensor

    source = torch.zeros(2**29, dtype=torch.float16, device="cuda")
    target = torch.empty_like(source)
    calls = {
        "copy kernel, 1 GiB": partial(copy_tensor, source, tile=4096),
        "torch copy_, 1 GiB (ceiling)": partial(target.copy_, source),
    }
    return compare(repeats, "GB/s", 2 * source.nbytes / 1e9, calls)


def product(repeats: int, unit: str, m: int, k: int, n: int) -> list[Measurement]:
    """`[m, k]` times `[k, n]`, in TFLOP/s or in GB/s of the matrices."""
    import torch

    from inferlab.kernels.tiled_gemm import tiled_gemm

    left = torch.randn(m, k, dtype=torch.float16, device="cuda")
    right = torch.randn(k, n, dtype=torch.float16, device="cuda")
    work = {"TFLOP/s": 2 * m * k * n / 1e12, "GB/s": 2 * (m * k + k * n + m * n) / 1e9}
    tiles = dict(tile_m=min(128, m), tile_n=128, tile_k=32)
    shape = f"{m} x {k} x {n}"
    calls = {
        f"tiled GEMM {shape}": partial(tiled_gemm, left, right, **tiles),
        f"tiled GEMM {shape}, ungrouped": partial(tiled_gemm, left, right, **tiles, group=1),
        f"torch.matmul {shape} (ceiling)": partial(torch.matmul, left, right),
    }
    return compare(repeats, unit, work[unit], calls)


def decode_attention(repeats: int, num_sequences: int) -> list[Measurement]:
    """Decode attention, in GB/s of K and V."""
    import torch

    from inferlab.kernels.paged_decode import paged_decode
    from inferlab.kernels.split_kv_decode import merge_splits, split_kv_partials

    num_blocks = 1 + num_sequences * CONTEXT // BLOCK_SIZE
    shape = num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM
    keys, values = (torch.randn(shape, dtype=torch.float16, device="cuda") for _ in range(2))
    order = 1 + torch.randperm(num_blocks - 1, device="cuda")
    tables = order.view(num_sequences, -1).to(torch.int32)
    lengths = torch.full((num_sequences,), CONTEXT, dtype=torch.int32, device="cuda")
    queries = torch.randn(num_sequences, HEADS, HEAD_DIM, dtype=torch.float16, device="cuda")
    arguments = queries, keys, values, tables, lengths

    def split(num_splits: int) -> Any:
        return merge_splits(*split_kv_partials(*arguments, num_splits))

    name = f"{num_sequences} x {CONTEXT:,} tokens"
    calls = {
        f"paged decode, {name}": partial(paged_decode, *arguments),
        f"split-KV decode in 8, {name}": partial(split, 8),
        f"split-KV decode in 64, {name}": partial(split, 64),
    }
    return compare(repeats, "GB/s", (keys.nbytes + values.nbytes) / 1e9, calls)


def experts(repeats: int) -> list[Measurement]:
    """One matrix of each of Mixtral's experts, for 32 tokens with two experts each."""
    import torch

    from inferlab.kernels.grouped_gemm import grouped_gemm

    num_experts, num_rows, depth, width = 8, 64, 4096, 14336
    rows = torch.randn(num_rows, depth, dtype=torch.float16, device="cuda")
    weights = torch.randn(num_experts, depth, width, dtype=torch.float16, device="cuda")
    rows_each = num_rows // num_experts
    offsets = torch.arange(0, num_rows + 1, rows_each, dtype=torch.int32, device="cuda")
    calls = {
        "grouped GEMM, 8 experts": partial(grouped_gemm, rows, weights, offsets),
        "torch.bmm, 8 experts (ceiling)": partial(
            torch.bmm, rows.view(num_experts, rows_each, depth), weights
        ),
    }
    return compare(repeats, "GB/s", weights.nbytes / 1e9, calls)


def packed_weights(repeats: int) -> list[Measurement]:
    """A decode step's product with int4 weights, beside the same product with float16 weights."""
    import torch

    from inferlab.kernels.int4_gemm import int4_gemm

    m, k, n, group_size = 16, 4096, 14336, 128
    x = torch.randn(m, k, dtype=torch.float16, device="cuda")
    packed = torch.randint(256, (k // 2, n), dtype=torch.uint8, device="cuda")
    scales = torch.rand(k // group_size, n, device="cuda")
    weight = torch.randn(k, n, dtype=torch.float16, device="cuda")
    calls = {
        f"int4 GEMM {m} x {k} x {n}": partial(int4_gemm, x, packed, scales),
        f"torch.matmul {m} x {k} x {n}, float16": partial(torch.matmul, x, weight),
    }
    return compare(repeats, "TFLOP/s", 2 * m * k * n / 1e12, calls)


def compare(
    repeats: int, unit: str, work: float, calls: dict[str, Callable[[], Any]]
) -> list[Measurement]:
    """Each call's rate, `work` per second, the calls taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(work / seconds(call))
    return [Measurement(name, unit, rates) for name, rates in samples.items()]


def seconds(call: Callable[[], Any]) -> float:
    """Median time of a call on the GPU, by CUDA events; compiled and warmed up before."""
    import torch

    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


if __name__ == "__main__":
    for measurement in measure(repeats=5):
        print(measurement)
