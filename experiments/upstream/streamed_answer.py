"""Streams one answer from a real server, over both endpoints: runs in the engines' interpreter.

The server is started with the flags that the page prints, and asked once before the answer that is
kept, since an engine's first answers load code.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_WITHIN_S = 180
ENDPOINTS = ("/v1/completions", "/v1/chat/completions")


def main(data):
    streams = {}
    for engine, arguments in data["servers"].items():
        with served(engine, arguments, data["port"]):
            for endpoint in ENDPOINTS:
                stream(data, endpoint)
                streams[f"{engine} {endpoint}"] = stream(data, endpoint)
    return {
        "streams": streams,
        "hardware": {"cpu": processor(), "cores": len(os.sched_getaffinity(0))},
    }


@contextlib.contextmanager
def served(engine, arguments, port):
    """The engine's own server, until the block ends."""
    program = Path(sys.executable).parent / engine
    command = [str(program), "serve", *arguments, "--port", str(port)]
    threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    server = subprocess.Popen(command, env=os.environ | threads, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not is_ready(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server of {engine} did not come up: {' '.join(command)}")
            time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait(60)


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def stream(data, endpoint):
    """When each piece of text came, in ms after the request was sent, and the piece."""
    asked = {"prompt": data["question"]}
    if "chat" in endpoint:
        asked = {"messages": [{"role": "user", "content": data["question"]}]}
    body = {"model": data["model"], "stream": True, **data["sampling"], **asked}
    request = urllib.request.Request(
        f"http://127.0.0.1:{data['port']}{endpoint}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    pieces, sent_s = [], time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                text = choice["delta"].get("content") if "chat" in endpoint else choice["text"]
                if text:
                    pieces.append([round(1e3 * (time.perf_counter() - sent_s), 3), text])
    return pieces


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
