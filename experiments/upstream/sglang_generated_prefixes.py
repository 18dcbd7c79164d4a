"""SGLang's own shared-prefix workload on a real server whose cache is too small for all its groups.

Runs in the engines' interpreter. For each case the client generates its requests anew, or finds the
file that the case before it left, and sends them one at a time to an empty cache. The answer holds
the different prompts as tokens and, for each case, which of them was sent when and what was hit.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from sglang.benchmark import serving
from sglang.benchmark.datasets import generated_shared_prefix
from sglang.utils import launch_server_cmd, terminate_process, wait_for_http_ready
from transformers import AutoTokenizer

READY_WITHIN_S = 180


def main(data):
    tokenizer = AutoTokenizer.from_pretrained(data["server"]["model-path"])
    prompts, cases = [], {}
    with served(data["server"]) as url, tempfile.TemporaryDirectory() as folder:
        for name, case in data["cases"].items():
            home = Path(folder) / case["home"]
            home.mkdir(exist_ok=True)
            sent, cached_tokens = load(url, home, [*data["client"], *case["flags"]])
            for text in sent:
                if text not in prompts:
                    prompts.append(text)
            order = [prompts.index(text) for text in sent]
            cases[name] = {"order": order, "cached_tokens": cached_tokens}
    return {"prompts": [tokenizer(text).input_ids for text in prompts], "cases": cases}


def load(url, home, flags):
    """The prompts in the order in which they were sent, and the tokens hit by each."""
    sent, output = [], home / f"{time.monotonic_ns()}.jsonl"
    generate = generated_shared_prefix.sample_generated_shared_prefix_requests

    def keep(**options):
        requests = generate(**options)
        sent.extend(request.prompt for request in requests)
        return requests

    command = ["serving", "--base-url", url, *flags, "--output-file", str(output)]
    with (
        mock.patch.object(generated_shared_prefix, "sample_generated_shared_prefix_requests", keep),
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, {"HOME": str(home)}),
    ):
        serving.cli_main()
    return sent, json.loads(output.read_text())["cached_tokens"]


@contextlib.contextmanager
def served(options):
    flags = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()
    ]
    server, port = launch_server_cmd(
        " ".join(["OMP_NUM_THREADS=1", sys.executable, "-m sglang.launch_server", *flags]),
        host="127.0.0.1",
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_http_ready(f"{url}/health_generate", timeout=READY_WITHIN_S, process=server)
        yield url
    finally:
        terminate_process(server)
