"""Writes a JSON file so that a crash leaves either the old file or the new one, never half."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, contents: Any) -> None:
    """Write `contents` to `path` atomically; NaN is refused, since it is not JSON.

    Raises:
        OSError: if the disk is full, or the folder may not be written to; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w") as file:
            json.dump(contents, file, separators=(",", ":"), allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
