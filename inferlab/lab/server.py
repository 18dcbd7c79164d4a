"""A vLLM server on a free port, ready to be loaded and read."""

import socket
import threading
import time
from pathlib import Path

import httpx

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.server_metrics import Snapshot, parse_metrics

START_LIMIT_S = 600.0
SAMPLE_EVERY_S = 0.25


class EngineError(RuntimeError):
    """An engine's process failed; `log_tail` holds the last lines it wrote."""

    def __init__(self, message: str, log_tail: str) -> None:
        super().__init__(f"{message} Its last log lines:\n{log_tail}")
        self.summary = message
        self.log_tail = log_tail


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`vllm` with `arguments`, waited for until `/health` answers. Use it as a context manager.

    Raises:
        EnginesMissingError: if vLLM is not installed.
        EngineError: if the server ends, or is not ready within ten minutes.
    """

    def __init__(
        self, arguments: list[str], port: int, environment: dict[str, str], log: Path
    ) -> None:
        self.arguments = arguments
        self.port = port
        self.process = GuardedProcess(
            [engines.command("vllm"), *arguments], engines.process_environment(environment), log
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if not self.process.is_running():
                raise EngineError("The vLLM server died at start.", self.process.last_lines())
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise EngineError(
            f"The vLLM server was not ready after {START_LIMIT_S:.0f} s.", self.process.last_lines()
        )

    def is_running(self) -> bool:
        return self.process.is_running()

    def last_lines(self) -> str:
        return self.process.last_lines()

    def snapshot(self) -> Snapshot:
        """Everything `/metrics` says now."""
        return parse_metrics(self.client.get("/metrics").raise_for_status().text)

    def stop(self) -> None:
        self.client.close()
        self.process.stop()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class PeakReader:
    """Reads gauges of `server` every 250 ms while the `with` block runs and keeps the highest.

    A peak between two readings is missed, so a peak is a lower bound.
    """

    def __init__(self, server: Server, gauges: tuple[str, ...]) -> None:
        self.peaks = dict.fromkeys(gauges, 0.0)
        self._server = server
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while not self._finished.wait(SAMPLE_EVERY_S):
            try:
                values = self._server.snapshot().values
            except httpx.HTTPError:
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
