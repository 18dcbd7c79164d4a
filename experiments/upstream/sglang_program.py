"""A program of SGLang's own language, with a fork, against a real server: prompt and cached tokens.

Runs in the engines' interpreter. One server is started and asked in this order:

1. `first`, with an empty cache: the program `solve` on one task: a plan, a fork into several
   views, and a verdict;
2. `second`: the same program on another task, so that only the rules are shared;
3. `synced`, with an empty cache: as the first, but the program waits for its plan before it forks;
4. `after_hint`, with an empty cache: the rules are sent as a fork sends its text, with no token to
   be generated, and then the rules with a task.

For each call of the model the answer holds the prompt as text, the text that came, and the tokens
that the prompt had, that were found in the cache, and that were generated; and how often the fork
sent its text ahead. Branches of a fork run at once, so what they found is sorted: which of them
came first differs from run to run.
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

CALLS, COMMITS = [], []  # of the program that runs; each branch of a fork adds its own


class Endpoint(RuntimeEndpoint):
    """The language's own client, which keeps what it sent and what the server counted."""

    def generate(self, s, sampling_params):
        prompt = s.text_
        text, info = super().generate(s, sampling_params)
        CALLS.append(call(prompt, text, info))
        return text, info

    def commit_lazy_operations(self, s):
        COMMITS.append(s.text_)
        super().commit_lazy_operations(s)


def call(prompt, text, info):
    counts = {name: info[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
    return {"prompt": prompt, "text": text, **counts}


@sgl.function
def solve(s, rules, task, views, settings, waits):
    s += rules + task + "<|assistant|>"
    s += sgl.gen("plan", **settings)
    s += "<|end|><|user|>"
    if waits:
        s.sync()
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
    seen = {}
    for name, task, is_cold, waits in (
        ("first", "first", True, False),
        ("second", "second", False, False),
        ("synced", "first", True, True),
    ):
        if is_cold:
            endpoint.flush_cache()
        CALLS.clear()
        COMMITS.clear()
        solve.run(
            rules=data["rules"],
            task=data["tasks"][task],
            views=data["views"],
            settings=data["settings"],
            waits=waits,
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
            "commits": len(COMMITS),
        }
    text = data["rules"] + data["tasks"]["first"]
    endpoint.flush_cache()
    endpoint.cache_prefix(data["rules"])
    seen["after_hint"] = call(text, "", generate(url, text)["meta_info"])
    return seen


def generate(url, text):
    sampling = {"temperature": 0, "max_new_tokens": 1}
    reply = requests.post(
        f"{url}/generate", json={"text": text, "sampling_params": sampling}, timeout=300
    )
    reply.raise_for_status()
    return reply.json()
