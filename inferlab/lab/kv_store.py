"""LMCache's server: a KV store outside the engines, that outlives them and that several share.

It listens on two ports. At one the engines' connectors store and retrieve; at the other it answers
HTTP: whether it is ready, its `/metrics`, and the request to clear its memory.
"""

import json
from pathlib import Path

import httpx

from inferlab.lab import launch
from inferlab.lab.server import EngineError, Readiness, Server
from inferlab.lab.server_metrics import parse_metrics
from inferlab.lab.specification import Flags

# An engine looks every 10 s whether the store is there, and makes itself known again only to one
# that it has missed: with one that comes back sooner its next request hangs for 300 s
# (lmcache/integration/vllm/vllm_multi_process_adapter.py:HeartbeatThread).
NOTICED_AFTER_S = 12.0
READY = Readiness("/healthcheck", lambda response: True)
# The engines need it too: the connector is LMCache's, and reports its use to its makers as well.
ENVIRONMENT = {"LMCACHE_TRACK_USAGE": "false"}
ADAPTER = "l2-adapter."
# The adapter in C++: the one in Python needs aiofiles. Both write the same files.
FILES = "*.data"

# Their names → ours, as in server_metrics, which has what the engines asked for and were given.
# The store counts in whole chunks, all of a prompt's, those too that the engine does not fetch.
COUNTERS = {
    "lmcache_mp_lookup_hit_l1_tokens_total": "store_found_in_memory_tokens",
    "lmcache_mp_lookup_hit_l2_tokens_total": "store_found_on_disk_tokens",
    "lmcache_mp_l1_write_chunks_total": "store_written_chunks",
}


def server_command(flags: Flags, port: int, http_port: int, folder: str) -> list[str]:
    """What starts the server, for connectors at `port`.

    Flags that begin with `l2-adapter.` are the fields of one adapter, whose files are in `folder`.
    """
    own: Flags = {name: value for name, value in flags.items() if not name.startswith(ADAPTER)}
    adapter = {
        name.removeprefix(ADAPTER): value
        for name, value in flags.items()
        if name.startswith(ADAPTER)
    }
    if adapter:
        own["l2-adapter"] = json.dumps({**adapter, "base_path": folder})
    return [
        *("lmcache", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--http-port", str(http_port), *launch.flag_arguments(own, "lmcache")),
    ]


def connector(port: int) -> str:
    """The value of vLLM's `--kv-transfer-config` that makes it store and retrieve at `port`."""
    address = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    return json.dumps(
        {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": address,
        }
    )


def clear(store: Server, folder: Path) -> None:
    """Empty the store: its memory, and what its adapter has written to `folder`.

    Raises:
        EngineError: if the server does not do it.
    """
    store.post("/cache/clear")
    for path in folder.glob(FILES):
        path.unlink()


def counted(store: Server) -> dict[str, float]:
    """What the store has counted since it started, under names that carry their units.

    Raises:
        EngineError: if the server does not answer.
    """
    try:
        text = store.client.get("/metrics").raise_for_status().text
    except httpx.HTTPError as error:
        raise EngineError(
            f"The {store.name} server's /metrics cannot be read: {error}.", store.last_lines()
        ) from None
    # A counter is shown once it has grown.
    values = parse_metrics(text).values
    return {name: values.get(metric, 0.0) for metric, name in COUNTERS.items()}
