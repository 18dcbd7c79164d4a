"""A program of SGLang's own language, with a fork, against a real server: prompt and cached tokens.

Runs in the engines' interpreter. One server is started and asked in this order:

1. `first`, with an empty cache: the program `solve` on one task: a plan, a fork into several
   views, and a verdict;
2. `second`: the same program on another task, so that only the rules are shared;
3. `after_hint`: with an empty cache, the rules are sent as a fork sends its text, with no token
   to be generated, and then the rules with a task;
4. `after_token`: the same with one token to be generated instead of none.

For each call of the model the answer holds the prompt as text, the text that came, and the tokens
that the prompt had, that were found in the cache, and that were generated. Branches of a fork run
at once, so what they found is sorted: which of them came first differs from run to run.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import requests
import sglang as sgl
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

CALLS = []  # of the program that runs; each branch of a fork adds its own


class Endpoint(RuntimeEndpoint):
    """The language's own client, which keeps what it sent and what the server counted."""

    def generate(self, s, sampling_params):
        prompt = s.text_
        text, info = super().generate(s, sampling_params)
        CALLS.append(call(prompt, text, info))
        return text, info


def call(prompt, text, info):
    counts = {name: info[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
    return {"prompt": prompt, "text": text, **counts}


@sgl.function
def solve(s, rules, task, views, settings):
    s += rules + task + "<|assistant|>"
    s += sgl.gen("plan", **settings)
    s += "<|end|><|user|>"
    branches = s.fork(len(views))
    for branch, view in zip(branches, views):
        branch += view + "<|end|><|assistant|>"
        branch += sgl.gen("view", **settings)
    for branch in branches:
        s += branch["view"] + "<|end|><|user|>"
    s += "Which one?<|end|><|assistant|>"
    s += sgl.gen("verdict", **settings)


def main(data):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in data["server"].items()
    ]
    command = [sys.executable, "-m", "sglang.launch_server", "--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(
        [*command, *flags],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for(server, url)
        return ask(url, data)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(server, url):
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"The server ended with {server.returncode}.")
        try:
            with urllib.request.urlopen(f"{url}/health_generate", timeout=30) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.5)
    raise RuntimeError("The server did not answer within its time.")


def ask(url, data):
    endpoint = Endpoint(url)
    endpoint.flush_cache()
    seen = {}
    for name, task in data["tasks"].items():
        CALLS.clear()
        solve.run(
            rules=data["rules"],
            task=task,
            views=data["views"],
            settings=data["settings"],
            backend=endpoint,
        ).sync()
        # The plan has the shortest prompt and the verdict the longest.
        plan, *branches, verdict = sorted(
            CALLS, key=lambda one: (len(one["prompt"]), one["prompt"])
        )
        found = sorted(one.pop("cached_tokens") for one in branches)
        seen[name] = {
            "plan": plan,
            "branches": branches,
            "branches_found": found,
            "verdict": verdict,
        }
    text = data["rules"] + data["tasks"]["first"]
    for name, count in (("after_hint", 0), ("after_token", 1)):
        endpoint.flush_cache()
        generate(url, data["rules"], count)
        seen[name] = call(text, "", generate(url, text, 1)["meta_info"])
    return seen


def generate(url, text, max_new_tokens):
    sampling = {"temperature": 0, "max_new_tokens": max_new_tokens}
    reply = requests.post(
        f"{url}/generate", json={"text": text, "sampling_params": sampling}, timeout=300
    )
    reply.raise_for_status()
    return reply.json()
