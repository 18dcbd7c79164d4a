"""The tiny checkpoints that every experiment on a machine without a GPU runs on.

`tiny-chat` (Llama), `tiny-draft` and `tiny-draft-weak` (its drafters, same vocabulary) and
`tiny-moe` (Mixtral). Contract: the committed weights never change once a result has been recorded
with them, which `verify` checks against the hash in each card.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any


def _folder_of_checkpoints() -> Path:
    own = Path(__file__).parent / "checkpoints"
    # A student's bundle holds no weights: all bundles share one installed distribution.
    shared = None if own.is_dir() else importlib.util.find_spec("inferlab_checkpoints")
    found = shared.submodule_search_locations if shared else None
    return Path(next(iter(found))) if found else own


CHECKPOINTS = _folder_of_checkpoints()


def names() -> list[str]:
    """Names of the committed checkpoints."""
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/card.json"))


def path(name: str) -> Path:
    """Folder of checkpoint `name`, as transformers, vLLM and SGLang take it.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    folder = CHECKPOINTS / name
    if not (folder / "config.json").exists():
        if not names():
            raise ValueError(
                f"There is no checkpoint {name!r}, because no checkpoints are installed: "
                "run the notebook's first cell, or install the wheel inferlab_checkpoints."
            )
        raise ValueError(f"There is no checkpoint {name!r}; choose one of {', '.join(names())}.")
    return folder


def card(name: str) -> dict[str, Any]:
    """What checkpoint `name` is and what was measured of it: data, seed, loss, accuracies."""
    contents: dict[str, Any] = json.loads((path(name) / "card.json").read_text())
    return contents


def weights_hash(name: str) -> str:
    """SHA-256 of the weights file of checkpoint `name`."""
    return hashlib.sha256((path(name) / "model.safetensors").read_bytes()).hexdigest()
