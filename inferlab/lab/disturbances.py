"""What happens to servers while they are measured: a neighbour's load, the loss of a worker."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped]

from inferlab.lab.load_generator import LoadGenerator
from inferlab.lab.server import EngineError, Server


@contextmanager
def loaded(generator: LoadGenerator, load: list[str]) -> Iterator[None]:
    """Send `load` through `generator` again and again while the `with` block runs.

    Raises:
        EngineError: at the end, if it failed before: the neighbour was idle from then on.
    """
    finished = threading.Event()
    failures: list[EngineError] = []

    def send() -> None:
        while not finished.is_set():
            try:
                generator.ask(load)
            except EngineError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def lost(server: Server, after_s: float) -> Iterator[None]:
    """Kill `server` so long after the `with` block begins.

    Raises:
        EngineError: if the block was over before.
    """
    timer = threading.Timer(after_s, kill, [server])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if server.is_running():
        raise EngineError(
            f"The load was over before {after_s:g} s, when a worker was to be killed.", ""
        )


def kill(server: Server) -> None:
    """End all processes of a server at once, as a machine that fails does."""
    for process in psutil.Process(server.process.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
