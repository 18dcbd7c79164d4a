"""Checkpoints with int8 or int4 weights that vLLM loads, made from ours; week 12 measures them.

`tiny-chat-int8` and `tiny-chat-int4` are made when they are first asked for: committed weights
would have to be kept in step with the code that rounds. Embedding, head and norms stay in float32.
The same source gives the same bytes on every machine.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from inferlab import models
from inferlab.engine.checkpoint import EMBEDDING, ModelConfig, load_weights
from inferlab.engine.layers import DenseLinear
from inferlab.models.quantized_formats import FORMATS, Tensors, quantization_config

VERSION = 1
"""Part of what a cached checkpoint is found by: raise it when the bytes that are written change."""

CACHE = Path(__file__).parents[2] / "build" / "checkpoints"
GROUP_SIZE = 128
NOT_COPIED = ("card.json", "config.json", "model.safetensors")
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def write(name: str, form: str, folder: Path, group_size: int = GROUP_SIZE) -> None:
    """Write checkpoint `name` in the format `form` to `folder`, which appears only when complete.

    The inputs of an int4 layer are rounded in groups; int8 has none.

    Raises:
        ValueError: if the checkpoint or the format is unknown, the checkpoint has experts, or the
            groups do not divide a layer's inputs.
        FileExistsError: if there is something at `folder`.
    """
    from safetensors.numpy import save

    source = models.path(name)
    if form not in FORMATS:
        raise ValueError(f"There is no format {form!r}; choose one of {', '.join(FORMATS)}.")
    if not _is_dense(name):
        raise ValueError(f"{name} has experts, which are not written; choose a dense checkpoint.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; name a new folder, or remove it first.")
    tensors = _quantized(load_weights(source), form, group_size)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization_config(form, group_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "checkpoint"
        made.mkdir()
        for file in source.iterdir():
            if file.name not in NOT_COPIED:
                shutil.copyfile(file, made / file.name)
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (made / "model.safetensors").write_bytes(save(tensors))
        # Renamed, so that a runner that was killed leaves no half of a checkpoint under this name.
        made.rename(folder)


def _is_dense(name: str) -> bool:
    return not ModelConfig.from_json(models.path(name) / "config.json").num_experts


def _quantized(weights: Tensors, form: str, group_size: int) -> Tensors:
    written: Tensors = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            parts = FORMATS[form](DenseLinear(weight.T), group_size)
            written |= {f"{stem}{part}": tensor for part, tensor in parts.items()}
        else:
            written[name] = weight
    # Of a transposed array, safetensors would write the memory as it lies there.
    return {name: np.ascontiguousarray(tensor) for name, tensor in written.items()}


def names() -> list[str]:
    """Names that `path` knows, such as `tiny-chat-int8`."""
    return list(_known())


def _known() -> dict[str, tuple[str, str]]:
    dense = filter(_is_dense, models.names())
    return {f"{name}-{form}": (name, form) for name in dense for form in FORMATS}


def path(name: str) -> Path:
    """Folder of the quantised checkpoint `name`, as vLLM takes it; made at the first call.

    Raises:
        ValueError: if there is no such checkpoint.
    """
    known = _known()
    if name not in known:
        raise ValueError(f"There is no checkpoint {name!r}; choose one of {', '.join(known)}.")
    source, form = known[name]
    folder = CACHE / f"{name}-{_fingerprint(models.path(source))}"
    if not folder.exists():
        try:
            write(source, form, folder)
        except OSError:
            # Another process may have been faster; what it wrote is the same.
            if not folder.exists():
                raise
    return folder


def _fingerprint(source: Path) -> str:
    """Twelve hexadecimal digits of all that decides the bytes of a quantised checkpoint."""
    digest = hashlib.sha256(str(VERSION).encode())
    for file in sorted(source.iterdir()):
        if file.name != "card.json":
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def decode_weight_bytes(folder: Path, dtype: str) -> int:
    """Bytes of weights that one decode step reads if vLLM computes in `dtype`, as PyTorch calls it.

    That is all but the input embedding, of which a step reads a row for each token. vLLM turns
    everything in floating point into `dtype`, except for the scales of int8 weights.

    Raises:
        ValueError: if the model in `folder` has experts: which ones are read is up to the tokens.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if "num_local_experts" in config:
        raise ValueError(f"{folder} has experts, and which ones a step reads is up to its tokens.")
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        is_gathered = name == EMBEDDING and not config["tie_word_embeddings"]
        if is_gathered or name == "__metadata__" or name.endswith("weight_shape"):
            continue
        weight = header.get(name.removesuffix("_scale"), tensor)
        if "F" in tensor["dtype"] and weight["dtype"] != "I8":
            total += FLOAT_BYTES[dtype] * int(np.prod(tensor["shape"]))
        else:
            begin, end = tensor["data_offsets"]
            total += end - begin
    return total


def main() -> None:
    """The command that writes one checkpoint."""
    parser = argparse.ArgumentParser("python -m inferlab.models.quantized")
    parser.add_argument("checkpoint", help="one of ours, for example tiny-chat")
    parser.add_argument("format", help=" or ".join(FORMATS))
    parser.add_argument("folder", type=Path, help="where to write it; must not exist yet")
    parser.add_argument("--group-size", type=int, default=GROUP_SIZE, help="for int4 only")
    arguments = parser.parse_args()
    try:
        write(arguments.checkpoint, arguments.format, arguments.folder, arguments.group_size)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
