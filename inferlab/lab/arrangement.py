"""What has to run before a point's requests can be sent: engines, and what stands about them.

One description for both who need it: a deployment starts these processes on free ports, and a page
shows their commands with ports that a reader would choose.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import httpx

from inferlab.lab import kv_store, kv_transfer, launch
from inferlab.lab.point import Point
from inferlab.lab.server import HEALTHY, Readiness
from inferlab.lab.specification import Flags, Hardware

Role = Literal["store", "neighbour", "prefill", "engine", "front"]
# Those that hold a model; `engine` are those whose metrics are the point's.
ENGINES: tuple[Role, ...] = ("neighbour", "prefill", "engine")


class Process(NamedTuple):
    """A command that listens on `port`."""

    role: Role
    name: str  # what a failure calls it
    command: list[str]
    port: int
    environment: dict[str, str]
    readiness: Readiness = HEALTHY

    def as_typed(self) -> str:
        """The command as a reader would type it."""
        return typed(self.environment, self.command)


def typed(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """A command as a reader would type it."""
    variables = [
        # A slice's variable is the shell's to fill in.
        f"{name}={value if value.startswith('$') else shlex.quote(value)}"
        for name, value in environment.items()
    ]
    return " ".join([*variables, shlex.join(command)])


class Arrangement:
    """The processes of one point.

    Args:
        path: what an engine loads for the name of a model.
        take_port: a port that nothing else here has.
        folder: where K and V are kept on disk, where they are.
    """

    def __init__(
        self,
        point: Point,
        path: Callable[[str], str],
        hardware: Hardware,
        take_port: Callable[[], int],
        folder: str,
    ) -> None:
        self.point, self.path, self.hardware = point, path, hardware
        self.take_port, self.folder = take_port, folder
        self.num_engines = point.workers + (point.neighbour is not None) + point.disaggregated

    def processes(self) -> list[Process]:
        """In the order they are started; the last takes the requests."""
        point = self.point
        if point.disaggregated:
            return self.disaggregated()
        if point.neighbour is not None:
            beside = self.engine("neighbour", 1, point.server, point.neighbour)
            return [beside, self.engine("engine", 0, point.server)]
        stores, flags = [], point.server
        if point.kv_store is not None:
            connector_port = self.take_port()
            stores = [self.store(point.kv_store, connector_port)]
            flags = {**flags, kv_transfer.CONFIG: kv_store.connector(connector_port)}
        workers = [self.engine("engine", number, flags) for number in range(point.workers)]
        routers = [self.router(workers)] if point.workers > 1 else []
        return [*stores, *workers, *routers]

    def engine(self, role: Role, number: int, flags: Flags, model: str | None = None) -> Process:
        """One server of the point's engine, the `number`-th of those that share the hardware."""
        name, port = model or self.point.model, self.take_port()
        command = launch.server_command(self.point.engine, self.path(name), name, port, flags)
        environment = {
            **self.point.environment,
            **launch.devices(self.hardware, self.num_engines, number),
        }
        if self.point.kv_store is not None:
            environment |= kv_store.ENVIRONMENT
        if self.point.disaggregated:
            environment |= kv_transfer.environment(self.take_port())
        return Process(role, launch.NAMES[self.point.engine], command, port, environment)

    def disaggregated(self) -> list[Process]:
        """A server for prefill, one for decode, and the proxy before them."""
        flags = self.point.server
        prefill = self.engine("prefill", 0, kv_transfer.server_flags(flags, "prefill", self.folder))
        decode = self.engine("engine", 1, kv_transfer.server_flags(flags, "decode", self.folder))
        port = self.take_port()
        command = kv_transfer.proxy_command([prefill.port], [decode.port], port)
        return [prefill, decode, Process("front", launch.NAMES["proxy"], command, port, {})]

    def store(self, flags: Flags, connector_port: int) -> Process:
        port = self.take_port()
        command = kv_store.server_command(flags, connector_port, port, self.folder)
        name, environment = launch.NAMES["store"], kv_store.ENVIRONMENT
        return Process("store", name, command, port, environment, kv_store.READY)

    def router(self, workers: Sequence[Process]) -> Process:
        ports, port = [worker.port for worker in workers], self.take_port()
        command = launch.router_command(ports, port, self.take_port(), self.point.router)
        return Process("front", launch.NAMES["router"], command, port, {}, all_workers(ports))


def all_workers(ports: list[int]) -> Readiness:
    """The router answers `/health` before it knows its workers, and requests with an error."""

    def are_known(response: httpx.Response) -> bool:
        healthy = [worker for worker in response.json()["workers"] if worker["is_healthy"]]
        return len(healthy) == len(ports)

    return Readiness("/workers", are_known)
