"""Starts an engine's process so that it cannot outlive this one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

from inferlab.lab.engines import environment_folder
from inferlab.lab.paths import ROOT, without_root

GUARD = Path(__file__).parent / "engine_side" / "guard.py"
TAIL_LINES = 20
# The last line of a traceback, with or without the prefix of vLLM's log.
EXCEPTION = re.compile(r"(?:^|(?<=\] ))[\w.]+(?:Error|Exception): .*")


class GuardedProcess:
    """A command in a process group of its own, with its output in `log`.

    A small guard process starts it and ends the whole group when `stop` is called or this process
    ends in any way. Use it as a context manager.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], log: Path, *, pipes: bool = False
    ) -> None:
        """Start `command` in the repository root; `pipes` opens its stdin and stdout as text."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        lifeline, self._hold = os.pipe()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(lifeline), *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                text=True,
                pass_fds=(lifeline,),
                start_new_session=True,
            )
        os.close(lifeline)

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None, "started without pipes"
        return self.process.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None, "started without pipes"
        return self.process.stdout

    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self) -> str:
        """End of the log, after the exceptions named before it, without this machine's paths.

        A vLLM server dies of an exception in a child process, and the cause stands far above the
        last lines, which only say that the child is gone.
        """
        lines = self.log.read_text(errors="replace").splitlines()
        causes = dict.fromkeys(
            match.group() for line in lines[:-TAIL_LINES] if (match := EXCEPTION.search(line))
        )
        text = without_root("\n".join([*causes, *lines[-TAIL_LINES:]]))
        return text.replace(f"{environment_folder()}/", ".venv-engines/")

    def stop(self) -> None:
        """End the whole group and wait until it is gone; does nothing the second time."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> "GuardedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
