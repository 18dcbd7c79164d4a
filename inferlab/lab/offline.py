"""Runs a program that measures an engine and ends: no server, no client, one command."""

import shutil
import subprocess
from pathlib import Path

from inferlab.lab import engines
from inferlab.lab.guarded_process import GuardedProcess
from inferlab.lab.launch import executable
from inferlab.lab.offline_commands import command
from inferlab.lab.offline_results import LOG, READERS, Measured
from inferlab.lab.point import Point
from inferlab.lab.server import EngineError

LIMIT_S = 1800.0


def measure(point: Point, model: str, output: Path, seed: int) -> Measured:
    """Run the point's program, with its files and its log in the folder `output`, emptied first.

    Raises:
        SpecificationError: if the program cannot do what the point asks for.
        EnginesMissingError: if the program is not installed.
        EngineError: if it fails, does not end within half an hour, or leaves no usable result.
    """
    name = str(point.program)
    words = command(point, model, output, seed)
    # Our own program runs in our own interpreter.
    words = (
        executable(words) if point.engine == "machine" else [engines.command(words[0]), *words[1:]]
    )
    # Some add to the files that they find.
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    environment = engines.process_environment(point.environment)
    with GuardedProcess(words, environment, output / LOG) as running:
        try:
            status = running.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"The program {name} did not end within {LIMIT_S:.0f} s.", running.last_lines()
            ) from None
    if status != 0:
        raise EngineError(f"The program {name} ended with status {status}.", running.last_lines())
    try:
        return READERS[name](output)
    except ValueError as error:
        raise EngineError(
            f"The program {name} ended well, but its result cannot be used: {error}.",
            running.last_lines(),
        ) from None
