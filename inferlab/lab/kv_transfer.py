"""What a pair of vLLM servers is told, so that one takes over the KV that the other computed.

An arm names its connector as a flag. NixlConnector moves blocks from memory to memory. It runs
without a GPU too, but a thread of each server asks without pause whether something has come: on two
cores a prompt then takes seconds. ExampleConnector writes blocks to a folder and reads them back.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from inferlab.lab.specification import Flags
from inferlab.lab.yaml_file import SpecificationError

Task = Literal["prefill", "decode"]

CONFIG = "kv-transfer-config"
CONNECTOR = f"{CONFIG}.kv_connector"
CONNECTORS = ("NixlConnector", "ExampleConnector")
ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def server_flags(flags: Flags, task: Task, folder: str) -> Flags:
    """`flags` of the arm, with what its server for `task` gets besides; files go to `folder`.

    Raises:
        SpecificationError: if they name no connector that is known here.
    """
    connector = flags.get(CONNECTOR)
    if connector not in CONNECTORS:
        raise SpecificationError(
            f"A disaggregated arm needs the server flag {CONNECTOR} with one of "
            f"{', '.join(CONNECTORS)}; found {connector!r}."
        )
    own: Flags = {**flags, f"{CONFIG}.kv_role": ROLES[task]}
    if connector == "ExampleConnector":
        own[f"{CONFIG}.kv_connector_extra_config.shared_storage_path"] = folder
        if task == "prefill":
            # It stores what the first step has computed as if that were the whole prompt. Where a
            # step's budget cuts a prompt, the decode server dies of a file that is too short.
            own["enable-chunked-prefill"] = False
    return own


def environment(side_channel_port: int) -> dict[str, str]:
    """Variables of one server; through its side channel NIXL's other side learns its addresses."""
    return {
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_channel_port),
        # Unless told, UCX takes TCP between two processes of one machine; told so, it finds that
        # one can read the other's memory.
        "UCX_TLS": "all",
    }


def proxy_command(
    prefill_ports: Sequence[int], decode_ports: Sequence[int], port: int
) -> list[str]:
    """What starts our proxy before the servers at these ports."""
    return [
        *("python", "-m", "inferlab.lab.disaggregated_proxy"),
        *("--prefill", *(f"http://127.0.0.1:{one}" for one in prefill_ports)),
        *("--decode", *(f"http://127.0.0.1:{one}" for one in decode_ports)),
        *("--port", str(port)),
    ]


def forget(folder: Path) -> None:
    """Remove what ExampleConnector has stored: nobody else ever does."""
    shutil.rmtree(folder, ignore_errors=True)
