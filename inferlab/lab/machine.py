"""Measures the machine itself: the ceilings that a roofline and a cost model need.

`python -m inferlab.lab.machine NAME --option value …` prints one line of JSON: all `samples`, and
`metrics`, among them the median of the samples and, called `…_best_…`, the fastest. Where there is
a GPU, it is the GPU that is measured. On a CPU as many threads work as OMP_NUM_THREADS says, so
that a ceiling can be held against an engine that has the same number.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click
import numpy as np
import torch
import torch.distributed as dist

from inferlab.engine.process_group import ProcessGroup, spawn
from inferlab.lab.engines import EnginesMissingError
from inferlab.lab.upstream import SCRIPTS, UpstreamError, upstream

SAMPLES = 9
SHORTEST_SAMPLE_S = 0.02  # a shorter one measures the clock, or a GPU's queue of launches
CALLS_PER_SAMPLE = 20  # of a collective: every rank has to make the same number
Call = Callable[[], object]


@click.group()
def main() -> None:
    """What this machine reaches, without any engine."""


@main.command()
@click.option("--megabytes", type=click.FloatRange(min=0.001), required=True)
def copy(megabytes: float) -> None:
    """Copy an array of MEGABYTES (10⁶ bytes each); each byte counts twice: read and written."""
    num_bytes = round(1e6 * megabytes)
    if torch.cuda.is_available():
        source = torch.ones(num_bytes, dtype=torch.uint8, device="cuda")
        call: Call = partial(torch.empty_like(source).copy_, source)
    else:
        # Ones, because a page of zeros that was never written is one page, and stays in the cache.
        # numpy, because its copy writes past the cache, and torch's reads what it overwrites.
        array = np.ones(num_bytes, np.uint8)
        call = partial(np.copyto, np.empty_like(array), array)
    show("copy", "gb_per_s", [2e-9 * num_bytes / s for s in seconds_per_call(call)], best=max)


@main.command()
@click.option("--m", type=click.IntRange(min=1), required=True, help="Rows: tokens of a step.")
@click.option("--n", type=click.IntRange(min=1), required=True, help="Columns: outputs of a layer.")
@click.option("--k", type=click.IntRange(min=1), required=True, help="Inputs of the layer.")
def matmul(m: int, n: int, k: int) -> None:
    """Multiply [M, K] by [K, N]: float32 on a CPU, bfloat16 on a GPU, for its tensor cores."""
    on_gpu = torch.cuda.is_available()
    # Random, because ones take a GPU less power, and so less time, than weights do.
    left, right = (
        torch.randn(
            shape,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device="cuda" if on_gpu else "cpu",
        )
        for shape in ((m, k), (k, n))
    )
    product = left.new_empty(m, n)
    flop = 2 * m * n * k
    call = partial(torch.mm, left, right, out=product)
    rates = [1e-9 * flop / s for s in seconds_per_call(call)]
    num_bytes = left.nbytes + right.nbytes + product.nbytes
    # Its place on a roofline's axis, if each matrix moves once.
    show("matmul", "gflop_per_s", rates, best=max, matmul_flop_per_byte=flop / num_bytes)


@main.command("all-reduce")
@click.option("--bytes", "num_bytes", type=click.IntRange(min=4), required=True)
@click.option("--ranks", type=click.IntRange(min=2), default=2, show_default=True)
@click.option("--shared-memory/--no-shared-memory", help="vLLM's own, in place of gloo or NCCL.")
def all_reduce(num_bytes: int, ranks: int, shared_memory: bool) -> None:
    """Add up float32 arrays of BYTES that RANKS processes hold, one GPU each if there are any."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise click.UsageError(
            f"{ranks} ranks need {ranks} GPUs, and this machine has {gpus}; give fewer --ranks."
        )
    task = {"num_bytes": num_bytes, "ranks": ranks, "samples": SAMPLES, "calls": CALLS_PER_SAMPLE}
    try:
        if shared_memory:
            seconds = upstream((SCRIPTS / "vllm_shared_memory.py").read_text(), task)
        else:
            seconds = spawn(time_all_reduce, ranks, num_bytes)[0]
    except (EnginesMissingError, UpstreamError) as error:
        raise click.ClickException(str(error)) from error
    show("all_reduce", "us", [1e6 * s for s in seconds], best=min)


def time_all_reduce(group: ProcessGroup, num_bytes: int) -> list[float]:
    """Seconds of one all-reduce in each sample, on this rank.

    The arrays stay on the device: `group.all_reduce` would also copy them there and back.
    """
    on_gpus = dist.get_backend() == "nccl"
    if on_gpus:
        torch.cuda.set_device(group.rank)
    array = torch.zeros(num_bytes // 4, device="cuda" if on_gpus else "cpu")
    timed = partial(seconds_of, partial(dist.all_reduce, array), CALLS_PER_SAMPLE)
    timed()  # the first calls connect the ranks
    return [timed() for _ in range(SAMPLES)]


def seconds_per_call(call: Call) -> list[float]:
    """Seconds of one call in each sample; a sample is as many calls as last 20 ms, after others."""
    calls = 1
    while calls * seconds_of(call, calls) < SHORTEST_SAMPLE_S:
        calls *= 2
    return [seconds_of(call, calls) for _ in range(SAMPLES)]


def seconds_of(call: Call, calls: int) -> float:
    """Mean seconds of `calls` calls, from an idle GPU to an idle GPU if there is one."""
    wait_for_gpu()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait_for_gpu()
    return (time.perf_counter() - start) / calls


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(
    name: str,
    unit: str,
    samples: list[float],
    *,
    best: Callable[[list[float]], float],
    **others: float,
) -> None:
    """Print the line of JSON, with `others` among the metrics."""
    metrics = {f"{name}_{unit}": median(samples), f"{name}_best_{unit}": best(samples), **others}
    click.echo(json.dumps({"metrics": metrics, "samples": {f"{name}_{unit}": samples}}))


if __name__ == "__main__":
    main()
