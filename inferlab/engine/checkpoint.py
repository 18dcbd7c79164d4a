"""A checkpoint folder on disk: its configuration and its weights, checked before they are used.

Every chapter's engine starts from one. Mirrors
`vllm/model_executor/model_loader/default_loader.py:DefaultModelLoader`, and is stricter: a model
that lost part of its weights still answers, only badly.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = ("LlamaForCausalLM", "MixtralForCausalLM")
ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}
ONLY |= {"rope_type": "default", "rope_scaling": None, "partial_rotary_factor": 1.0}
ONLY |= {"quantization_config": None}
"""Settings that change the mathematics, with the one value of each that this engine computes."""
EMBEDDING = "model.embed_tokens.weight"
STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # NumPy has no bfloat16


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


@dataclass(frozen=True)
class ModelConfig:
    """The part of a checkpoint's `config.json` that the forward pass needs.

    Raises:
        ValueError: if a size is not a positive whole number, or two of them do not go together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_id: int | None
    num_experts: int = 0
    """Experts of a layer; 0 for a dense model."""
    num_experts_per_token: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if "experts" in field.name else 1
            valid = field.type is not int or (type(value) is int and value >= least)
            _require(valid, f"{field.name} is {value!r}; expected a whole number, {least} or more.")
        heads, kv_heads, dim = self.num_heads, self.num_kv_heads, self.head_dim
        _require(heads % kv_heads == 0, f"{heads} heads cannot share {kv_heads} KV heads evenly.")
        _require(dim % 2 == 0, f"head_dim is {dim}; rotary embedding pairs halves: make it even.")
        chosen, experts, eos = self.num_experts_per_token, self.num_experts, self.eos_token_id
        exist = min(experts, 1) <= chosen <= experts
        _require(exist, f"A token cannot be sent to {chosen} of {experts} experts.")
        _require(isinstance(eos, int | None), f"eos_token_id is {eos!r}; expected one id or null.")

    @classmethod
    def from_json(cls, path: Path) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises:
            ValueError: if a setting is missing, or has a value that this engine does not compute.
        """
        raw = _read_json(path)
        name = (raw.get("architectures") or ["nameless model"])[0]
        known = " and ".join(ARCHITECTURES)
        _require(name in ARCHITECTURES, f"{path} is a {name}; this engine computes {known}.")
        raw |= raw.get("rope_parameters") or {}
        for key, value in ONLY.items():
            seen = raw.get(key, value)
            _require(seen == value, f"{path} has {key} {seen!r}; this engine computes {value!r}.")
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw["num_key_value_heads"],
                head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
                rope_theta=raw["rope_theta"],
                rms_norm_eps=raw["rms_norm_eps"],
                max_position_embeddings=raw["max_position_embeddings"],
                tie_word_embeddings=raw["tie_word_embeddings"],
                eos_token_id=raw["eos_token_id"],
                num_experts=raw["num_local_experts"] if "Mixtral" in name else 0,
                num_experts_per_token=raw["num_experts_per_tok"] if "Mixtral" in name else 0,
            )
        except KeyError as key:
            raise ValueError(f"{path} lacks the setting {key}; copy the whole file.") from key

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor in a checkpoint of this configuration."""
        hidden, up = self.hidden_size, (self.intermediate_size, self.hidden_size)
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = {f"self_attn.{name}_proj": (keys, hidden) for name in "kv"}
        layer |= {"self_attn.q_proj": (queries, hidden), "self_attn.o_proj": (hidden, queries)}
        if self.num_experts:
            layer["block_sparse_moe.gate"] = (self.num_experts, hidden)
            for expert in (f"block_sparse_moe.experts.{i}" for i in range(self.num_experts)):
                layer |= {f"{expert}.w1": up, f"{expert}.w2": up[::-1], f"{expert}.w3": up}
        else:
            layer |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": up[::-1]}
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, hidden)}
        for i in (f"model.layers.{i}" for i in range(self.num_layers)):
            shapes |= {f"{i}.{name}.weight": shape for name, shape in layer.items()}
            for norm in ("input", "post_attention"):
                shapes[f"{i}.{norm}_layernorm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = shapes[EMBEDDING]
        return shapes | {"model.norm.weight": (hidden,)}


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint in float32, by the names that Hugging Face gives them.

    Raises:
        ValueError: unless the files hold every element that the configuration asks for exactly
            once, finite and filled, and nothing else.
    """
    shapes = ModelConfig.from_json(folder / "config.json").tensor_shapes()
    names, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if index.exists():
        _require(not (folder / names[0]).exists(), f"{index} and {names[0]} exclude each other.")
        names = sorted({*_read_json(index).get("weight_map", {}).values()})
    weights: dict[str, np.ndarray] = {}
    for file in (folder / name for name in names):
        _require(file.exists(), f"{file} is missing; copy the whole checkpoint.")
        for name, tensor in _read(file):
            where = f"{name} in {file}"
            _require(name in shapes, f"{where} has no place in the model of config.json.")
            _require(name not in weights, f"{where} is in an earlier file too; keep one of them.")
            seen, expected = tensor.shape, shapes[name]
            _require(seen == expected, f"{where} has the shape {seen}; expected {expected}.")
            _check_filled(where, tensor, spare_rows=1 if name == EMBEDDING else 0)
            weights[name] = tensor
    missing = ", ".join(sorted(shapes.keys() - weights.keys())[:3])
    lost = len(shapes) - len(weights)
    _require(not lost, f"{folder} lacks {lost} of {len(shapes)} tensors, first {missing}.")
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again.") from error
    _require(isinstance(contents, dict), f"{path} holds no JSON object; copy it again.")
    return contents  # type: ignore[no-any-return]


def _read(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole file ({error}); copy it again.") from error
    for name, tensor in stored:
        dtype, known = tensor["dtype"], ", ".join(STORED)
        _require(dtype in STORED, f"{name} in {file} is stored as {dtype}; expected {known}.")
        values = np.frombuffer(tensor["data"], STORED[dtype]).reshape(tensor["shape"])
        if dtype == "BF16":  # a bfloat16 is the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.astype(np.float32)


def _check_filled(where: str, tensor: np.ndarray, spare_rows: int) -> None:
    """Refuse what an interrupted copy leaves: NaN, or zeros from some row to the last.

    A row of a matrix, or an element of a vector. Zeros that end earlier are let through, because
    transformers starts the padding token's embedding at zero. That may be the last row, so the
    embedding has `spare_rows` = 1. A vocabulary padded with more rows of zeros is refused.
    """
    rows = tensor.reshape(len(tensor), -1)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    filled, last = 1 + np.flatnonzero(rows.any(axis=1)).max(initial=-1), len(rows) - 1
    if len(broken):
        raise ValueError(f"{where} is NaN or infinite in rows {broken[0]} to {broken[-1]}.")
    if filled + spare_rows <= last:
        raise ValueError(f"{where} is zero in rows {filled} to {last}, the last; copy it again.")
