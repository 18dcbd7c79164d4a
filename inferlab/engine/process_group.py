"""Processes that run one function together, and the collectives between them; week 13.

Mirrors vllm/distributed/parallel_state.py and vllm/v1/executor/multiproc_executor.py.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

GRACE_SECONDS = 5.0
"""How long the other ranks have, after one has failed, to say what they were waiting for."""


class PeerLostError(RuntimeError):
    """A collective that cannot finish, because a peer died or does not answer."""


class ProcessGroup:
    """This process's place among the ranks, and the collectives between them, counted.

    Arguments stay as they are. gloo carries the arrays between CPUs, NCCL where each rank has a GPU
    of its own. All ranks have to make the same calls in the same order.

    Invariant: `num_calls[name]` and `num_bytes[name]` are this rank's calls and the bytes of its
    own array in each. What travels depends on the algorithm: a ring all-reduce sends
    `2 * (size - 1) / size` times that.

    Raises:
        PeerLostError: from every call, at once if a peer died, after `timeout` seconds if it is
            alive and silent.

    Source: vllm/distributed/parallel_state.py:GroupCoordinator.
    """

    def __init__(self, rank: int, size: int, meeting_file: Path, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.num_calls: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()
        on_gpus = torch.cuda.device_count() >= size
        self._device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            init_method=f"file://{meeting_file}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum of all ranks' arrays, equal to the last bit on every rank."""
        with self._counted("all_reduce", array) as tensor:
            dist.all_reduce(tensor)
            return tensor.numpy(force=True)

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """All ranks' arrays, stacked by rank: `[size, *array.shape]`."""
        with self._counted("all_gather", array) as tensor:
            parts = [torch.empty_like(tensor) for _ in range(self.size)]
            dist.all_gather(parts, tensor)
            return torch.stack(parts).numpy(force=True)

    def broadcast(self, array: np.ndarray, source: int) -> np.ndarray:
        """The array of rank `source`; the others hand in one of the same shape and type."""
        with self._counted("broadcast", array) as tensor:
            dist.broadcast(tensor, source)
            return tensor.numpy(force=True)

    def send(self, array: np.ndarray, to: int) -> None:
        """Hand `array` to rank `to`, which has to `receive` it."""
        with self._counted("send", array, to) as tensor:
            dist.send(tensor, to)

    def receive(self, shape: tuple[int, ...], source: int) -> np.ndarray:
        """The float32 array of `shape` that rank `source` sends."""
        with self._counted("receive", np.empty(shape, np.float32), source) as tensor:
            dist.recv(tensor, source)
            return tensor.numpy(force=True)

    @contextmanager
    def _counted(
        self, name: str, array: np.ndarray, peer: int | None = None
    ) -> Iterator[torch.Tensor]:
        """A copy of `array` on this rank's device, for a call that is counted and may fail."""
        self.num_calls[name] += 1
        self.num_bytes[name] += array.nbytes
        try:
            yield torch.from_numpy(np.array(array, order="C")).to(self._device)
        except RuntimeError as error:
            others = [str(r) for r in range(self.size) if r != self.rank and peer in (None, r)]
            raise PeerLostError(
                f"{name} number {self.num_calls[name]} ({array.nbytes} bytes) cannot finish: rank "
                f"{' or '.join(others)} died, or made no matching call within {self.timeout:g} s."
            ) from error


def spawn(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    timeout: float = 600,
    collective_timeout: float = 60,
) -> list[Any]:
    """Run `function(group, *args)` in `size` new processes; what each returned, by rank.

    However it ends, no process and no open port is left, and no port is open to the network.

    Args:
        function: defined in a module, because a new process cannot import a notebook's cells.
        timeout: seconds after which a rank that has not returned is killed.
        collective_timeout: seconds that a collective waits for a peer that is alive and silent.

    Raises:
        RuntimeError: if a rank died, raised or ran out of time: a sentence for each that did, the
            causes before the collectives that they broke; tracebacks are in its notes.
    """
    context = multiprocessing.get_context("spawn")
    ranks: list[tuple[Any, Connection]] = []
    environment = {
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        # Ranks that each start a thread on every core would wait for one another's threads.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),
        "TORCH_NCCL_BLOCKING_WAIT": "1",  # a timeout raises; NCCL would end the process
    }
    with TemporaryDirectory() as folder, patch.dict(os.environ, environment):
        try:
            for rank in range(size):
                receiver, sender = context.Pipe(duplex=False)
                place = (rank, size, Path(folder) / "meeting", collective_timeout)
                process = context.Process(target=_run_rank, args=(sender, place, function, args))
                process.start()
                sender.close()  # the rank's end is the last one now: it closes when the rank dies
                ranks.append((process, receiver))
            return _collect(ranks, time.monotonic() + timeout)
        finally:
            for process, _ in ranks:
                process.kill()
                process.join()


def _run_rank(sender: Connection, place: Any, function: Any, args: Any) -> None:
    """A rank's life: it sends its result and None, or None and what went wrong."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    result = failure = None
    try:
        result = function(ProcessGroup(*place), *args)
    except Exception as error:
        failure = f"Rank {place[0]} raised {type(error).__name__}: {error}", traceback.format_exc()
    sender.send((result, failure))
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _collect(ranks: Sequence[tuple[Any, Connection]], deadline: float) -> list[Any]:
    """The ranks' results; once one has failed, the others have `GRACE_SECONDS` to say why."""
    results: list[Any] = [None] * len(ranks)
    failures = []
    waiting = {receiver: rank for rank, (_, receiver) in enumerate(ranks)}
    while waiting:
        ready: list[Any] = wait(waiting, max(0.0, deadline - time.monotonic()))
        for receiver in ready or list(waiting):
            rank = waiting.pop(receiver)
            failure = f"Rank {rank} did not return in time.", ""
            try:
                if receiver.poll():
                    results[rank], failure = receiver.recv()
            except (EOFError, OSError):
                process, _ = ranks[rank]
                process.join()
                code = process.exitcode
                end = f"exited ({code})" if code >= 0 else f"died of {signal.Signals(-code).name}"
                failure = f"Rank {rank} {end} before it returned.", ""
            if failure:
                failures.append(failure)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if failures:
        failures.sort(key=lambda failure: (PeerLostError.__name__ in failure[0], failure))
        error = RuntimeError("\n".join(sentence for sentence, _ in failures))
        error.add_note("\n".join(text for _, text in failures))
        raise error
    return results
