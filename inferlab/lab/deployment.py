"""All the servers of a point: one, or several, with what stands before and beside them."""

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from inferlab.lab import gpu_check, kv_store, kv_transfer, launch, model_inspections
from inferlab.lab.arrangement import ENGINES, Process, Role
from inferlab.lab.plan import Plan
from inferlab.lab.point import Point
from inferlab.lab.server import EngineError, PortTakenError, Server, free_port
from inferlab.lab.server_metrics import PEAKS, Snapshot, together

SAMPLE_EVERY_S = 0.25
# A port can be taken between choosing it and listening on it.
PORT_ATTEMPTS = 3
# What the engines compile is kept in these folders, which two servers must not share.
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class Deployment(AbstractContextManager["Deployment"]):
    """Servers that hold the model, and the port that requests go to.

    What they compile and keep on disk lies below `log_folder`, and goes when they do: every server
    starts as if it were the first, but for what vLLM knows of the model's class.

    Raises:
        EnginesMissingError: if an engine is not installed.
        EngineError: if a server does not come up; those that did are stopped.
    """

    def __init__(self, plan: Plan, point: Point, log_folder: Path) -> None:
        self.point = point
        self.log_folder = log_folder
        self.scratch = log_folder / f"{point.name}.scratch"
        self._started = itertools.count()
        self._running: list[tuple[Process, Server]] = []
        self.kept = self.scratch / "kv"
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            # A run that was killed could not remove it.
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.kept.mkdir(parents=True)
            try:
                for process in plan.processes(point, free_ports().__next__, str(self.kept)):
                    self._running.append((process, self._start(process)))
                return
            except BaseException as error:
                self.stop()
                if not isinstance(error, PortTakenError) or not attempts_left:
                    raise

    def _start(self, process: Process) -> Server:
        called = f"{process.name.replace(' ', '-')}-{next(self._started)}"
        environment = gpu_check.with_slices(process.environment)
        cache = (self.scratch / called).absolute()
        if process.role in ENGINES:
            environment |= dict.fromkeys(CACHES, str(cache))
            model_inspections.lend(cache)
        log = self.log_folder / f"{self.point.name}-{called}.log"
        start = partial(
            Server, process.name, process.command, process.port, environment, log, process.readiness
        )
        server = start()
        if model_inspections.learn(cache):
            # Its start took longer than that of any server after it will.
            server.stop()
            server = start()
        return server

    @property
    def port(self) -> int:
        """Where requests go."""
        return self._running[-1][0].port

    @property
    def engines(self) -> list[Server]:
        return self.servers("engine")

    def servers(self, role: Role) -> list[Server]:
        return [server for process, server in self._running if process.role == role]

    def is_running(self) -> bool:
        return all(server.is_running() for _, server in self._running)

    def require_running(self) -> None:
        """Raises EngineError with the log of a server that has ended."""
        for _, server in self._running:
            server.require_running()

    def can_serve(self, point: Point) -> bool:
        """True if these are the servers that `point` needs, and they can be made as good as new."""
        is_same = self.point.has_the_servers_of(point)
        keeps_prefixes = point.server.get("enable-prefix-caching") is not False
        can_forget = point.engine in launch.FORGET or not keeps_prefixes
        return is_same and self.is_running() and can_forget

    def forget_everything(self) -> None:
        """Empty prefix caches and KV store: with the same seed, two points share prompts.

        Raises:
            EngineError: if a server does not do it.
        """
        self.forget_prefixes()
        for store in self.servers("store"):
            kv_store.clear(store, self.kept)
        if self.point.disaggregated:
            kv_transfer.forget(self.kept)

    def forget_prefixes(self) -> None:
        """Empty the engines' prefix caches.

        Raises:
            EngineError: if a server does not do it.
        """
        path = launch.FORGET.get(self.point.engine)
        for process, server in self._running:
            if path and process.role in ENGINES:
                server.post(path)

    def restart(self, role: Role, pause_s: float = 0.0) -> None:
        """Stop all servers of a role, then start them again, on the same ports.

        For `pause_s` they are away, and for as long nothing is asked of them when they are back.

        Raises:
            EngineError: if one does not come up.
        """
        meant = [n for n, (process, _) in enumerate(self._running) if process.role == role]
        for number in reversed(meant):
            self._running[number][1].stop()
        time.sleep(pause_s)
        for number in meant:
            process = self._running[number][0]
            self._running[number] = (process, self._start(process))
        time.sleep(pause_s)

    def snapshot(self) -> Snapshot:
        """Everything that the engines' `/metrics` say now, summed."""
        return together(server.snapshot() for server in self.engines)

    def stored(self) -> dict[str, float]:
        """What the KV store has counted by now; nothing without one."""
        found: dict[str, float] = {}
        for store in self.servers("store"):
            found |= kv_store.counted(store)
        return found

    def stop(self) -> None:
        while self._running:
            self._running.pop()[1].stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_ports() -> Iterator[int]:
    """Ports that nothing listens on, none of them twice."""
    given: set[int] = set()
    while True:
        port = free_port()
        if port not in given:
            given.add(port)
            yield port


class PeakReader:
    """Reads gauges every 250 ms while the `with` block runs and keeps the highest of each.

    A peak between two readings is missed, so a peak is a lower bound.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.peaks = dict.fromkeys(PEAKS, 0.0)
        self._deployment = deployment
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while not self._finished.wait(SAMPLE_EVERY_S):
            try:
                values = self._deployment.snapshot().values
            except EngineError:
                # The load generator reports a server that no longer answers; this does not.
                continue
            for gauge in self.peaks:
                self.peaks[gauge] = max(self.peaks[gauge], values.get(gauge, 0.0))

    def __enter__(self) -> "PeakReader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()
