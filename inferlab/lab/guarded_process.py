"""Starts an engine's process so that it cannot outlive this one."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from inferlab.lab.engines import environment_folder
from inferlab.lab.paths import ROOT, without_root

GUARD = Path(__file__).parent / "engine_side" / "guard.py"
TAIL_LINES = 20
# SGLang writes all of its settings into one line.
LINE_CHARACTERS = 1000
# The last line of a traceback, with or without the prefix of vLLM's log.
EXCEPTION = re.compile(r"(?:^|(?<=\] ))[\w.]+(?:Error|Exception): .*")
# Linux counts here how many processes it killed because memory ran out.
KERNEL_COUNTERS = Path("/proc/vmstat")


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed since it started, because memory ran out."""
    text = KERNEL_COUNTERS.read_text() if KERNEL_COUNTERS.exists() else ""
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


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
        self._kills_before = out_of_memory_kills()
        with log.open("wb") as output:
            lifeline, self._hold = os.pipe()
            # Held by whoever inherits the file, so that `run_lock` knows when all have ended. The
            # file systems of some clusters have no locks.
            with suppress(OSError):
                fcntl.flock(output, fcntl.LOCK_SH)
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(lifeline), *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                text=True,
                pass_fds=(lifeline,),
                # No session of its own: Linux shares out a core between sessions first. A client
                # in another one waits for all of an answer, while an engine polls in its own.
                process_group=0,
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

    def processes(self) -> set[int]:
        """Process numbers of the command and of all that it started."""
        try:
            return {child.pid for child in psutil.Process(self.process.pid).children(True)}
        except psutil.NoSuchProcess:
            return set()

    def how_it_was_killed(self) -> str:
        """A sentence, with a space before it, if the command was killed; otherwise nothing.

        A vLLM server whose engine was killed ends by itself, and its log does not say why.
        """
        if out_of_memory_kills() > self._kills_before:
            return " Memory ran out: the kernel killed a process meanwhile."
        if self.process.poll() != 128 + signal.SIGKILL:
            return ""
        return (
            " It was killed by signal 9: the kernel does that when memory runs out, and SGLang "
            "does it to itself when a part of it has failed."
        )

    def last_lines(self) -> str:
        """End of the log, after the exceptions named before it, without this machine's paths.

        A vLLM server dies of an exception in a child process, and the cause stands far above the
        last lines, which only say that the child is gone.
        """
        text = self.log.read_text(errors="replace")
        lines = [line[:LINE_CHARACTERS] for line in text.splitlines()]
        causes = dict.fromkeys(
            match.group() for line in lines[:-TAIL_LINES] if (match := EXCEPTION.search(line))
        )
        shown = without_root("\n".join([*causes, *lines[-TAIL_LINES:]]))
        return shown.replace(f"{environment_folder()}/", ".venv-engines/")

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
