"""The commands that start the servers: each engine's own, and the router in front of several.

Flags are those of the engines' own command lines. What every server of an engine gets on a machine
stands in the profile, what an experiment varies in its specification; here is only what differs
between the engines: how the model, the port and a switch are written.
"""

import sys
from collections.abc import Mapping, Sequence

from inferlab.lab import engines
from inferlab.lab.specification import Flags, Hardware
from inferlab.lab.table import ENGINES

NAMES = {
    **{engine: name for engine, (name, _) in ENGINES.items()},
    "router": "router",
    "proxy": "proxy",
    "store": "KV store",
}
OPENING = {
    "vllm": ("vllm", "serve"),
    "sglang": ("sglang", "serve", "--model-path"),
    "inferlab": ("python", "-m", "inferlab.engine.server", "--model"),
}
# What empties an engine's prefix cache. Ours cannot: a server of it that keeps one is started anew.
FORGET = {"vllm": "/reset_prefix_cache", "sglang": "/flush_cache?timeout=10"}


def server_command(engine: str, model: str, name: str, port: int, flags: Flags) -> list[str]:
    """What starts one server of `engine` for `model`, served under `name`."""
    address = ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    return [*OPENING[engine], model, *address, *flag_arguments(flags, engine)]


def router_command(
    worker_ports: Sequence[int], port: int, metrics_port: int, flags: Flags
) -> list[str]:
    """What starts SGLang's router in front of the servers at `worker_ports`."""
    workers = [f"http://127.0.0.1:{worker}" for worker in worker_ports]
    # Unless told, every router takes the same port for its own metrics, and a second one dies.
    address = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    return [
        *("sglang-router", "launch", "--worker-urls", *workers, *address),
        *flag_arguments(flags, "router"),
    ]


def devices(hardware: Hardware, servers: int, number: int) -> dict[str, str]:
    """The variable that shares the GPUs, or the slices of one, out among equal servers.

    A slice is called by an identifier of its own, which `nvidia-smi -L` lists and the reader puts
    into the shell variables SLICE_0, SLICE_1 and so on.
    """
    if hardware.gpu is None or hardware.devices < servers:
        return {}
    if servers == 1 and not hardware.slices:
        return {}
    each = 1 if hardware.slices else hardware.devices // servers
    mine = range(number * each, (number + 1) * each)
    names = [f"$SLICE_{device}" if hardware.slices else str(device) for device in mine]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def flag_arguments(flags: Mapping[str, object], engine: str) -> list[str]:
    """Flags as command-line arguments; one that is true or false takes no value.

    SGLang and its router know no `--no-…`: there, what is false is left out.
    """
    arguments = []
    for name, value in flags.items():
        if value is True:
            arguments.append(f"--{name}")
        elif value is not False:
            arguments += [f"--{name}", str(value)]
        elif engine not in ("sglang", "router"):
            arguments.append(f"--no-{name}")
    return arguments


def executable(command: Sequence[str]) -> list[str]:
    """`command` with its first word as a path: our own Python, or a command of the engines.

    Raises:
        EnginesMissingError: if the engines' environment does not hold the command.
    """
    program, *arguments = command
    path = sys.executable if program == "python" else engines.command(program)
    return [path, *arguments]
