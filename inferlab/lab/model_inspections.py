"""What vLLM has found out about a model's class, handed from one server to the next.

To learn what a model can do, vLLM imports its class in a process of its own: a quarter of a start
on two cores. It keeps the answer below VLLM_CACHE_ROOT, a folder that two servers must not share,
so each server of ours gets a copy of what earlier ones found
(vllm/model_executor/models/registry.py:_LazyRegisteredModel.inspect_model_cls).
"""

import os
import shutil
from pathlib import Path

from inferlab.lab import paths

FOLDER = "modelinfos"


def lend(cache: Path) -> None:
    """Put what earlier servers found below `cache`, a server's own folder."""
    for known in paths.INSPECTIONS.glob("*.json"):
        target = cache / FOLDER / known.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known, target)


def learn(cache: Path) -> bool:
    """Keep what the server of `cache` has found; True if it had to find out anything itself."""
    found = [file for file in (cache / FOLDER).glob("*.json") if not is_known(file)]
    paths.INSPECTIONS.mkdir(parents=True, exist_ok=True)
    for file in found:
        # Another run may read it meanwhile.
        unfinished = paths.INSPECTIONS / f"{file.name}.{os.getpid()}"
        shutil.copyfile(file, unfinished)
        unfinished.replace(paths.INSPECTIONS / file.name)
    return bool(found)


def is_known(file: Path) -> bool:
    known = paths.INSPECTIONS / file.name
    return known.exists() and known.read_bytes() == file.read_bytes()
