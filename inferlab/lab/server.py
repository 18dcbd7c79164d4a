"""A server on a free port, ready to be loaded and read."""

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil  # type: ignore[import-untyped]

from inferlab.lab import engines, launch
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.server_metrics import Snapshot, parse_metrics

START_LIMIT_S = 600.0
# In the words of Python, of Rust and of ZeroMQ.
ADDRESS_IN_USE = re.compile(r"address (is )?already in use", re.IGNORECASE)


class EngineError(RuntimeError):
    """An engine's process failed; `log_tail` holds the last lines it wrote."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(f"{message} Its last log lines:\n{log_tail}")
        self.summary = message
        self.log_tail = log_tail


class PortTakenError(EngineError):
    """Between choosing a port and listening on it, another process took it: try another one."""


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listeners(port: int) -> set[int]:
    """Process numbers of all that listen on `port`; 0 stands for one that may not be looked at."""
    return {
        connection.pid or 0
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


class Readiness(NamedTuple):
    """The path that a server is asked, and whether what it answers, with 200, means ready."""

    path: str
    is_given_by: Callable[[httpx.Response], bool]


HEALTHY = Readiness("/health", lambda response: True)


class Server:
    """A command that listens on `port`, waited for until it says that it is ready.

    Use it as a context manager. `name` is what a failure calls it.

    Raises:
        EnginesMissingError: if the command is not installed.
        PortTakenError: if another process has the port.
        EngineError: if the server ends, or is not ready within ten minutes.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        port: int,
        environment: dict[str, str],
        log: Path,
        readiness: Readiness = HEALTHY,
    ) -> None:
        self.name = name
        self.port = port
        started = time.monotonic()
        self.process = GuardedProcess(
            launch.executable(command), engines.process_environment(environment), log
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        try:
            self._wait_until(readiness)
            self.startup_s = time.monotonic() - started
            self._refuse_strangers()
        except BaseException:
            self.stop()
            raise

    def _wait_until(self, readiness: Readiness) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if not self.process.is_running():
                if ADDRESS_IN_USE.search(self.process.log.read_text(errors="replace")):
                    raise self._port_taken()
                raise self._failure("died at start")
            try:
                response = self.client.get(readiness.path)
                if response.status_code == 200 and readiness.is_given_by(response):
                    return
            except (httpx.TransportError, KeyError, ValueError):
                pass  # nothing answers yet, or something that is no server of ours
            time.sleep(0.2)
        raise self._failure(f"was not ready after {START_LIMIT_S:.0f} s")

    def _refuse_strangers(self) -> None:
        """What answers may be another server, and engines let two listen on one port."""
        if listeners(self.port) - self.process.processes():
            raise self._port_taken()

    def _port_taken(self) -> PortTakenError:
        return PortTakenError(
            f"The {self.name} server cannot have port {self.port}: another process listens on it.",
            self.last_lines(),
        )

    def _failure(self, what_happened: str) -> EngineError:
        message = f"The {self.name} server {what_happened}.{self.process.how_it_was_killed()}"
        return EngineError(message, self.last_lines())

    def is_running(self) -> bool:
        return self.process.is_running()

    def require_running(self) -> None:
        """Raises EngineError, with the end of the log, if the server has ended."""
        if not self.is_running():
            raise self._failure("ended")

    def last_lines(self) -> str:
        return self.process.last_lines()

    def snapshot(self) -> Snapshot:
        """Everything `/metrics` says now.

        Raises:
            EngineError: if the server does not answer, or has no metrics.
        """
        try:
            found = parse_metrics(self.client.get("/metrics").raise_for_status().text)
            if found.cache:
                return found
            reason = "they say nothing of its KV cache"
        except KeyError as error:
            reason = f"they lack {error}"
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error).partition("\n")[0]
        raise EngineError(
            f"The {self.name} server's /metrics cannot be read: {reason}.", self.last_lines()
        )

    def post(self, path: str) -> None:
        """Ask for something that needs no more words.

        Raises:
            EngineError: if the server does not answer, or refuses.
        """
        try:
            self.client.post(path).raise_for_status()
        except httpx.HTTPError as error:
            raise EngineError(
                f"The {self.name} server did not do {path}: {error}.", self.last_lines()
            ) from None

    def stop(self) -> None:
        self.client.close()
        self.process.stop()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
