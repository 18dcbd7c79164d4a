"""A program of SGLang's own language, with a fork, against a real server: prompt and cached tokens.

Runs in the engines' interpreter. For each of `policies` a server is started, and asked in this
order, with a flushed cache before the first and the third:

1. `first`: the program `solve` on one task: a plan, a fork into several views, and a verdict;
2. `second`: the same program on another task, so that only the rules are shared;
3. `at_once`: what the branches of `first` asked, as one batch of requests without a program.

The answer holds for each call of the model its prompt as text, the text that came, and the tokens
that the prompt had, that were found in the cache, and that were generated.
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
    return {policy: answers(policy, data) for policy in data["policies"]}


def answers(policy, data):
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
        [*command, f"--schedule-policy={policy}", *flags],
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
    for name in ("first", "second"):
        CALLS.clear()
        solve.run(
            rules=data["rules"],
            task=data["tasks"][name],
            views=data["views"],
            settings=data["settings"],
            backend=endpoint,
        ).sync()
        # Branches end in any order.
        seen[name] = sorted(CALLS, key=lambda one: (len(one["prompt"]), one["prompt"]))
    endpoint.flush_cache()
    ends = tuple(f"{view}<|end|><|assistant|>" for view in data["views"])
    prompts = [one["prompt"] for one in seen["first"] if one["prompt"].endswith(ends)]
    sampling = {
        "temperature": 0,
        "ignore_eos": True,
        "max_new_tokens": data["settings"]["max_tokens"],
    }
    reply = requests.post(
        f"{url}/generate", json={"text": prompts, "sampling_params": sampling}, timeout=300
    ).json()
    seen["at_once"] = [call(p, one["text"], one["meta_info"]) for p, one in zip(prompts, reply)]
    return seen
