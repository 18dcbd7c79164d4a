"""A student's kernel: it is told what to run, and nothing but its replies is read."""

import ast
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager

from autograder.sandbox.bubblewrap import LIMITS
from autograder.sandbox.control_group import control_group
from autograder.sandbox.provisioner import BoxProvisioner

MOST_REPLY_BYTES = 4 * 2**20
INTERRUPT_S = 3.0  # what a kernel gets to stop before it is given up
POLL_S = 0.2
# Set to "pod" where a pod is the box; bubblewrap may not make one there.
ISOLATED_BY = "INFERLAB_ISOLATED_BY"
# In Python 3.11 parsing may fail in one thread while another one parses.
_parsing = threading.Lock()
LINE = re.compile(r"line (\d{1,4})\b")


class Reply(NamedTuple):
    """What came of running code.

    Attributes:
        values: the text that each expression came to, for those that came to a text.
        error: class of the exception that ended it, in the kernel's words; empty if none did.
        line: of the code, where the exception was raised, in the kernel's words; 0 if unknown.
    """

    values: dict[str, str]
    error: str = ""
    line: int = 0


class KernelGoneError(RuntimeError):
    """The kernel ended while it ran something, or did not stop when it was told to."""


class ThisPython(KernelSpecManager):  # type: ignore[misc]
    """Knows one kernel, this Python's."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernelspec, whatever the name."""
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            language="python",
            interrupt_mode="message",
        )


class BoxedKernel:
    """A running kernel; get one from `boxed_kernel`."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str, seconds: float, expressions: Mapping[str, str] | None = None) -> Reply:
        """Run `code`, then evaluate each of `expressions` if it raised nothing.

        Code that takes longer than `seconds` is interrupted; the error is then "TimeoutError".

        Raises:
            KernelGoneError: if there is no kernel any more.
        """
        request = self._client.execute(
            code,
            store_history=False,
            user_expressions=dict(expressions or {}),
            allow_stdin=False,
            stop_on_error=False,
        )
        if (content := self._reply(request, seconds)) is not None:
            return _read(content)
        self._interrupt()
        if self._reply(request, INTERRUPT_S) is None:
            raise KernelGoneError(f"The code ran for more than {seconds:g} seconds.")
        return Reply({}, "TimeoutError")

    def _reply(self, request: str, seconds: float) -> dict[str, Any] | None:
        """Content of the reply to `request`; None if there is none within `seconds`."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                message = self._client.get_shell_msg(timeout=min(left, POLL_S))
            except Empty:
                if not self._manager.is_alive():
                    raise KernelGoneError("The kernel ended.") from None
            except Exception as error:
                # Whatever a message may hold that is no message of Jupyter's.
                raise KernelGoneError("The kernel sent what is no reply.") from error
            else:
                if message["parent_header"].get("msg_id") == request:
                    content: dict[str, Any] = message["content"]
                    return content
        return None

    def _interrupt(self) -> None:
        channel = self._client.control_channel
        channel.send(self._client.session.msg("interrupt_request", {}))


@contextmanager
def boxed_kernel(package: Path) -> Iterator[BoxedKernel]:
    """A kernel in a box, which imports the course's package from the folder `package`.

    The box ends with the thread that enters this, or with the block.
    """
    with tempfile.TemporaryDirectory() as folder, control_group(LIMITS) as entering:
        context = zmq.Context()
        # Of a longer message nothing is read: the connection ends.
        context.setsockopt(zmq.MAXMSGSIZE, MOST_REPLY_BYTES)
        manager = KernelManager(
            kernel_spec_manager=ThisPython(),
            context=context,
            transport="ipc",
            connection_file=f"{folder}/connection.json",
        )
        if os.environ.get(ISOLATED_BY) == "pod":
            manager.ip = f"{folder}/socket"
        else:
            manager.ip = BoxProvisioner.IN_THE_BOX
            manager.provisioner = BoxProvisioner(
                parent=manager,
                kernel_spec=manager.kernel_spec,
                kernel_id="box",
                package=str(package),
                entering=entering,
            )
        manager.start_kernel(
            env=os.environ | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        client = manager.client(context=context)
        # What is printed goes over a channel that nobody opens, and so comes to nothing.
        client.start_channels(shell=True, control=True, iopub=False, stdin=False, hb=False)
        try:
            yield BoxedKernel(manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            context.destroy(linger=0)


def _read(content: dict[str, Any]) -> Reply:
    """The reply, in which anything may stand: a student's code can send what it likes."""
    if content.get("status") != "ok":
        lines = LINE.findall(str(content.get("traceback", "")))
        return Reply({}, str(content.get("ename")), int(lines[-1]) if lines else 0)
    values = {}
    for name, result in dict(content.get("user_expressions") or {}).items():
        try:
            with _parsing:
                value = ast.literal_eval(result["data"]["text/plain"])
        except (LookupError, TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, str):
            values[name] = value
    return Reply(values)
