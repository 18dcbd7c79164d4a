"""vLLM's all-reduce between processes on one machine's CPUs, through memory that they share.

`main` takes the bytes of one array, the number of ranks, and how many samples of how many calls to
make; it returns the mean seconds of a call in each sample, as rank 0 saw them.
"""

import os
import time
from multiprocessing import get_context

LIMIT_S = 120.0  # a rank that died leaves the others spinning


def run_rank(rank, data, name, barrier, answers):
    # A core for each, as vLLM's workers have: a rank waits for the others in a busy loop, and on
    # one core these would first have to wait for its time slice to end.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    handle = torch.ops._C.init_shm_manager(name, data["ranks"], rank, 1)
    barrier.wait(LIMIT_S)
    torch.ops._C.join_shm_manager(handle, name)
    barrier.wait(LIMIT_S)
    # No rank needs the name any more, and it would outlive them all.
    os.unlink(f"/dev/shm/{name}_{rank}")
    array = torch.full((data["num_bytes"] // 4,), float(rank))
    torch.ops._C.shm_allreduce(handle, array)
    expected = sum(range(data["ranks"]))
    if not bool((array == expected).all()):
        raise RuntimeError(f"Rank {rank} got {array[0]} in place of {expected}.")
    array.zero_()
    samples = []
    for _ in range(data["samples"]):
        barrier.wait(LIMIT_S)
        start = time.perf_counter()
        for _ in range(data["calls"]):
            torch.ops._C.shm_allreduce(handle, array)
        samples.append((time.perf_counter() - start) / data["calls"])
    if rank == 0:
        answers.put(samples)


def main(data):
    # A new interpreter could not import this script.
    context = get_context("fork")
    barrier, answers = context.Barrier(data["ranks"]), context.SimpleQueue()
    name = f"inferlab-{os.getpid()}"
    ranks = [
        context.Process(target=run_rank, args=(rank, data, name, barrier, answers))
        for rank in range(data["ranks"])
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT_S)
    codes = [process.exitcode for process in ranks]
    if any(code != 0 for code in codes):
        for process in ranks:
            process.kill()
        raise RuntimeError(f"The ranks ended with {codes}.")
    return answers.get()
