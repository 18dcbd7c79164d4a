"""Where an engine finds a model: a checkpoint of ours, one made from ours, or a download."""

import hashlib
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from inferlab import models
from inferlab.lab.paths import without_root
from inferlab.models import quantized


def is_ours(name: str) -> bool:
    """Whether the model `name` is a checkpoint of ours, or is made from one."""
    return name in models.names() or name in quantized.names()


def folder(name: str) -> Path:
    """Folder of a checkpoint of ours; a quantised one is made when it is first asked for."""
    return models.path(name) if name in models.names() else quantized.path(name)


def model_path(name: str) -> str:
    """What an engine is given to load the model `name`: a path, or a Hugging Face name.

    A path is relative if it is below the root; a student's checkpoints are installed elsewhere.
    """
    return without_root(str(folder(name))) if is_ours(name) else name


def weights_hash(name: str) -> str:
    """SHA-256 of the weights file of a checkpoint of ours; empty for another model."""
    if not is_ours(name):
        return ""
    return hashlib.sha256((folder(name) / "model.safetensors").read_bytes()).hexdigest()


def downloaded(name: str) -> Path | None:
    """Folder of a model in the local cache of Hugging Face, None if it was never fetched."""
    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # the name of a folder
        return None
    return Path(found).parent if isinstance(found, str) else None


def revision(name: str) -> str:
    """Commit at which a model was downloaded; empty if it was not."""
    snapshot = downloaded(name)
    return snapshot.name if snapshot else ""
