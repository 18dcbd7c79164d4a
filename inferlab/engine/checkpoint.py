"""A checkpoint folder on disk: what its configuration says and what its weights file holds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = ("LlamaForCausalLM", "MixtralForCausalLM")


@dataclass(frozen=True)
class ModelConfig:
    """The part of a checkpoint's `config.json` that the forward pass needs."""

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

    @classmethod
    def from_json(cls, path: Path) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises:
            ValueError: if the architecture is not one this engine computes.
        """
        raw: dict[str, Any] = json.loads(path.read_text())
        architecture = raw["architectures"][0]
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path} is a {architecture}; this engine computes {' and '.join(ARCHITECTURES)}."
            )
        rope = raw.get("rope_parameters") or raw
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            rope_theta=rope["rope_theta"],
            rms_norm_eps=raw["rms_norm_eps"],
            max_position_embeddings=raw["max_position_embeddings"],
            tie_word_embeddings=raw["tie_word_embeddings"],
            eos_token_id=raw["eos_token_id"],
            num_experts=raw.get("num_local_experts", 0),
            num_experts_per_token=raw.get("num_experts_per_tok", 0),
        )


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint in float32, by the names that Hugging Face gives them."""
    from safetensors.numpy import load_file

    stored = load_file(folder / "model.safetensors")
    return {name: array.astype(np.float32) for name, array in stored.items()}
