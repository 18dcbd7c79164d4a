"""Our server as a process of its own, on a free port."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai

from inferlab import models
from inferlab.lab.server_metrics import Snapshot, parse_metrics

CHECKPOINT = models.path("tiny-chat")


@dataclass
class OurServer:
    process: subprocess.Popen[str]
    url: str

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def metrics(self) -> Snapshot:
        """As the runner reads them."""
        return parse_metrics(httpx.get(f"{self.url}/metrics").text)

    def value(self, name: str) -> float:
        """One of the metrics, summed over its labels."""
        return self.metrics().values[f"vllm:{name}"]


@contextmanager
def our_server(*options: str) -> Iterator[OurServer]:
    """`python -m inferlab.engine.server` with `options`, ready; ended with Ctrl-C."""
    command = [sys.executable, "-m", "inferlab.engine.server", "--model", str(CHECKPOINT)]
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        # Where another process wants the second core, threads of a product wait for each other.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # it says where it serves once it does
        assert "Serving tiny-chat at http" in line, line
        yield OurServer(process, line.split()[-1].removesuffix("/v1"))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
