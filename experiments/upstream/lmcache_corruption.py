"""Spoils K and V that LMCache keeps on disk, and serves them: runs in the engines' interpreter.

vLLM answers the same prompt again and again, greedily and without a prefix cache of its own, so
that whatever it does not compute comes from the store; the store's memory is emptied each time. The
answer holds, for each thing done to the chunks' files before, the tokens and how many of the
prompt's were taken from the store.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

os.environ["LMCACHE_TRACK_USAGE"] = "false"
# A forked engine would keep the store's lifeline open.
os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.inputs import TokensPrompt

GUARD = "inferlab/lab/engine_side/guard.py"
LIMIT_S = 120.0


def main(data):
    with tempfile.TemporaryDirectory() as folder, store(folder, data["chunk_size"]) as ports:
        return servings(data, Path(folder), ports)


def servings(data, folder, ports):
    llm = engine(data["checkpoint"], ports["store"])

    def serve():
        urlopen(Request(f"http://127.0.0.1:{ports['http']}/cache/clear", method="POST"))
        return answer(llm, data["prompt"], data["num_tokens"])

    served = {"nothing stored": serve()}
    files = wait_for_files(folder, len(data["prompt"]) // data["chunk_size"])
    served["untouched"] = serve()
    whole = [path.read_bytes() for path in files]
    for path, contents in zip(files, whole):
        path.write_bytes(flipped(contents, data["flipped_bytes"]))
    served["bytes flipped"] = serve()
    for path, contents in zip(files, whole):
        path.write_bytes(contents)
    served["put back"] = serve()
    for path, contents in zip(files, whole):
        path.write_bytes(contents[: len(contents) // 2])
    served["cut short"] = serve()
    return served


@contextmanager
def store(folder, chunk_size):
    """The ports of an LMCache server that writes what it is given to `folder` too."""
    ports = {"store": free_port(), "http": free_port()}
    lifeline, hold = os.pipe()
    command = [
        *(sys.executable, "-I", GUARD, str(lifeline)),
        *(str(Path(sys.executable).with_name("lmcache")), "server", "--host", "127.0.0.1"),
        *("--port", str(ports["store"]), "--http-port", str(ports["http"])),
        *("--chunk-size", str(chunk_size), "--l1-size-gb", "0.1", "--eviction-policy", "LRU"),
        *("--supported-transfer-mode", "auto", "--l2-adapter"),
        json.dumps({"type": "fs_native", "base_path": folder}),
    ]
    process = subprocess.Popen(command, pass_fds=(lifeline,))
    os.close(lifeline)
    try:
        wait_until(lambda: is_ready(ports["http"]))
        yield ports
    finally:
        os.close(hold)
        process.wait()


def engine(checkpoint, port):
    """vLLM with LMCache's connector and without a prefix cache of its own."""
    address = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    return LLM(
        checkpoint,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        block_size=32,
        kv_cache_memory_bytes=33554432,
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=0,
        kv_transfer_config=KVTransferConfig(
            kv_connector="LMCacheMPConnector",
            kv_role="kv_both",
            kv_connector_extra_config=address,
        ),
    )


def answer(llm, prompt, num_tokens):
    before = tokens_from_store(llm)
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], params, use_tqdm=False)
    return {
        "tokens": list(output.outputs[0].token_ids),
        "tokens_from_store": tokens_from_store(llm) - before,
    }


def tokens_from_store(llm):
    name = "vllm:external_prefix_cache_hits"
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def flipped(contents, count):
    """`contents` with every bit of its first `count` bytes inverted."""
    return bytes(byte ^ 0xFF for byte in contents[:count]) + contents[count:]


def wait_for_files(folder, count):
    """The files of `count` chunks, once all are whole: they are written in the background."""

    def are_whole():
        sizes = [path.stat().st_size for path in folder.glob("*.data")]
        return len(sizes) == count and min(sizes) == max(sizes) > 0

    wait_until(are_whole)
    return sorted(folder.glob("*.data"))


def is_ready(port):
    try:
        return urlopen(f"http://127.0.0.1:{port}/healthcheck").status == 200
    except URLError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition.__qualname__} was not true within {LIMIT_S:.0f} s.")
        time.sleep(0.1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
