"""Runs a command in a process group that ends when the process that asked for it does.

`python guard.py LIFELINE COMMAND...`, where LIFELINE is the read end of a pipe whose write end the
asking process holds. The kernel closes that end however the process ends, by Ctrl-C, an exception
or SIGKILL, so no server is ever left behind. Standard library only; it runs for as long as the
command does.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 10.0


def group_is_alive(group: int) -> bool:
    """True while a process of `group`, other than one waiting to be reaped, exists."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as stat:
                # The command in parentheses may hold spaces: the fields are counted after it.
                state, _, process_group = stat.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state not in "ZX":
            return True
    return False


def end_group(group: int) -> None:
    """Asks every process of `group` to end, and kills those that have not after GRACE_S."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, wanted)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + GRACE_S
        while group_is_alive(group) and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> int:
    lifeline = int(sys.argv[1])
    # Its own group, so that a Ctrl-C in the terminal reaches the asking process only.
    process = subprocess.Popen(sys.argv[2:], process_group=0)

    def end_with_parent() -> None:
        os.read(lifeline, 1)
        end_group(process.pid)

    for told in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A batch system tells every process of a job to end, and would leave the group to itself.
        signal.signal(told, lambda *_: end_group(process.pid))
    watcher = threading.Thread(target=end_with_parent, daemon=True)
    watcher.start()
    status = process.wait()
    end_group(process.pid)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
