"""A Jupyter kernel in a box, as a kernel provisioner."""

import asyncio
import time
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner
from traitlets import List, Unicode

from autograder.sandbox.bubblewrap import SOCKETS, boxed

START_S = 60.0
POLL_S = 0.005


class BoxProvisioner(LocalProvisioner):
    """Starts a kernel in a box without network, and meets it in sockets that lie in the box.

    They are reached through `/proc`, so that the box needs no folder of this machine to write to,
    which a student's code could fill. The manager's `transport` has to be "ipc" and its `ip`
    `IN_THE_BOX`; the kernelspec has `interrupt_mode` "message", because a signal would reach
    bubblewrap and not the kernel.
    """

    IN_THE_BOX = f"{SOCKETS}/socket"

    package = Unicode(help="Folder that the kernel imports the course's package from.")
    entering = List(Unicode(), help="Words before the command (`control_group`).")

    async def pre_launch(self, **options: Any) -> dict[str, Any]:
        """Put the kernel's command into a box that can read its connection file."""
        options = await super().pre_launch(**options)
        box = boxed(
            options["cmd"],
            readable=[Path(self.package), Path(self.parent.connection_file)],
            environment={"PYTHONPATH": self.package, "TRITON_INTERPRET": "1"},
        )
        return options | {"cmd": [*self.entering, *box]}

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Start the box and wait until the kernel listens.

        Raises:
            RuntimeError: if it ends before it does.
        """
        info = await super().launch_kernel(cmd, **options)
        end = time.monotonic() + START_S
        while await self.poll() is None and time.monotonic() < end:
            if found := self._seen_from_here(int(info["shell_port"])):
                return {**info, "ip": found}
            await asyncio.sleep(POLL_S)
        await self.kill()
        raise RuntimeError(f"No kernel came up in its box within {START_S:g} seconds.")

    def _seen_from_here(self, port: int) -> str:
        """The address of the kernel's sockets for us; empty as long as there is none."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for child in children:
            address = f"/proc/{child}/root{self.IN_THE_BOX}"
            if Path(f"{address}-{port}").exists():
                return address
        return ""
