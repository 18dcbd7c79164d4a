"""Writes a file, JSON mostly, so that a crash leaves either the old one or the new, never half."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, contents: Any) -> None:
    """Write `contents` to `path` atomically; NaN is refused, since it is not JSON.

    Raises:
        OSError: if the disk is full, or the folder may not be written to; nothing is left then.
    """
    write_text(path, json.dumps(contents, separators=(",", ":"), allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, with the line ends that it has.

    Raises:
        OSError: if the disk is full, or the folder may not be written to; nothing is left then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
