"""In place of the command `vllm`: a server without a model that counts tokens, or misbehaves.

What it does wrong is the value of `--behaviour`. Standard library only.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--behaviour", default="good")
asked = parser.parse_known_args()[0]
counted: Counter[str] = Counter()

NAMES = """\
num_preemptions_total prompt_tokens_total generation_tokens_total request_params_max_tokens_sum
prefix_cache_queries_total prefix_cache_hits_total iteration_tokens_total_count
iteration_tokens_total_sum request_queue_time_seconds_sum request_success_total kv_cache_usage_perc
num_requests_running num_requests_waiting
"""
CACHE = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="64"} 1.0'


def metrics() -> str:
    """What `/metrics` shows."""
    if asked.behaviour == "foreign-metrics":
        return "process_cpu_seconds_total 1.0"
    if asked.behaviour == "changed-metrics":
        return 'vllm:cache_config_info{blocks="64"} 1.0'
    values = dict.fromkeys(NAMES.split(), 0.0) | counted
    if asked.behaviour == "not-a-number":
        values["request_queue_time_seconds_sum"] = float("nan")
    return "\n".join([CACHE, *(f"vllm:{name} {value}" for name, value in values.items())])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = ("/health",) if asked.behaviour == "no-metrics" else ("/health", "/metrics")
        self.answer(200 if self.path in known else 404, metrics())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/v1/completions":
            if asked.behaviour == "killed-under-load":
                os.kill(os.getpid(), signal.SIGKILL)
            if asked.behaviour == "hangs-under-load":
                time.sleep(600)
            request: dict[str, Any] = json.loads(body)
            counted["prompt_tokens_total"] += len(request["prompt"])
            counted["generation_tokens_total"] += request["max_tokens"]
            counted["request_params_max_tokens_sum"] += request["max_tokens"]
            counted["request_success_total"] += 1
        self.answer(200, "{}")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


print(f"starting, {asked.behaviour}", flush=True)
if asked.behaviour == "crashes":
    raise SystemExit("ValueError: no such thing")
if asked.behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if asked.behaviour == "hangs":
    time.sleep(600)
if asked.behaviour == "finds-its-port-taken":
    sys.exit("OSError: [Errno 98] Address already in use")
ThreadingHTTPServer.allow_reuse_port = asked.behaviour == "shares-its-port"
ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()
