"""All the servers of a point: one, or several that are alike behind a router."""

import threading
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx

from inferlab.lab import launch
from inferlab.lab.plan import Plan, Point
from inferlab.lab.server import EngineError, Readiness, Server, free_port
from inferlab.lab.server_metrics import PEAKS, Snapshot, together

SAMPLE_EVERY_S = 0.25


class Deployment(AbstractContextManager["Deployment"]):
    """Servers that hold the model, and the port that requests go to.

    Raises:
        EnginesMissingError: if an engine is not installed.
        EngineError: if a server does not come up; those that did are stopped.
    """

    def __init__(self, plan: Plan, point: Point, log_folder: Path) -> None:
        self.point = point
        self.servers: list[Server] = []
        name = "-".join(str(value) for value in point.parameters.values()).replace("/", "-")
        with ExitStack() as started:
            for number in range(point.workers):
                port = free_port()
                log = log_folder / f"server-{name}-{number}.log"
                command = plan.server_command(point, port)
                called = launch.NAMES[point.engine]
                server = Server(called, command, port, plan.profile.environment, log)
                self.servers.append(started.enter_context(server))
            self.port = self.servers[0].port
            self.router: Server | None = None
            if point.workers > 1:
                self.port = free_port()
                ports = [server.port for server in self.servers]
                command = launch.router_command(ports, self.port, free_port(), point.router)
                log = log_folder / f"router-{name}.log"
                self.router = started.enter_context(
                    Server(launch.NAMES["router"], command, self.port, {}, log, all_workers(ports))
                )
            self._started = started.pop_all()

    def is_running(self) -> bool:
        return all(server.is_running() for server in self._all())

    def require_running(self) -> None:
        """Raises EngineError with the log of a server that has ended."""
        for server in self._all():
            if not server.is_running():
                raise EngineError(f"The {server.name} server ended.", server.last_lines())

    def can_serve(self, point: Point) -> bool:
        """True if these are the servers that `point` needs, and they can be made as good as new."""
        is_same = self.point.has_the_servers_of(point)
        return is_same and self.is_running() and point.engine in launch.FORGET

    def forget_prefixes(self) -> None:
        """Empty the prefix caches: with the same seed, two points have prompts in common.

        Raises:
            EngineError: if a server does not do it.
        """
        path = launch.FORGET.get(self.point.engine)
        for server in self.servers if path else []:
            server.post(str(path))

    def snapshot(self) -> Snapshot:
        """Everything that the servers' `/metrics` say now, summed."""
        return together(server.snapshot() for server in self.servers)

    def stop(self) -> None:
        self._started.close()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _all(self) -> list[Server]:
        return [*self.servers, *([self.router] if self.router else [])]


def all_workers(ports: list[int]) -> Readiness:
    """The router answers `/health` before it knows its workers, and requests with an error."""

    def are_known(response: httpx.Response) -> bool:
        healthy = [worker for worker in response.json()["workers"] if worker["is_healthy"]]
        return len(healthy) == len(ports)

    return Readiness("/workers", are_known)


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
