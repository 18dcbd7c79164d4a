"""The forward pass of a Llama model in NumPy, reading and writing a paged KV cache."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inferlab.engine.attention import paged_decode_attention, paged_prefill_attention
from inferlab.engine.kv_cache import KVCache, slot_mapping


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

    @classmethod
    def from_json(cls, path: Path) -> "ModelConfig":
        """Read a Hugging Face `config.json`.

        Raises:
            ValueError: if the architecture is not one this engine computes.
        """
        raw: dict[str, Any] = json.loads(path.read_text())
        architecture = raw["architectures"][0]
        if architecture != "LlamaForCausalLM":
            raise ValueError(
                f"{path} is a {architecture}; this engine computes LlamaForCausalLM only."
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
        )


class SequenceChunk(NamedTuple):
    """The part of one sequence that a step computes."""

    token_ids: Sequence[int]  # the new tokens
    start: int  # position of the first of them: the number of tokens already in the cache
    block_table: Sequence[int]  # physical block ids, covering start + len(token_ids) tokens


class Batch(NamedTuple):
    """A step's chunks as flat arrays: single-token chunks first, because they attend together."""

    token_ids: np.ndarray  # [num_tokens]
    positions: np.ndarray  # [num_tokens]
    slots: np.ndarray  # [num_tokens] where each token's K and V go
    num_decodes: int  # the first num_decodes tokens are single-token chunks
    decode_tables: np.ndarray  # [num_decodes, max_blocks], padded with the null block 0
    prefills: list[tuple[int, SequenceChunk]]  # first row and chunk of each longer chunk
    last_rows: np.ndarray  # [num_chunks] row of each chunk's last token, in the caller's order


def make_batch(chunks: Sequence[SequenceChunk], block_size: int) -> Batch:
    """Lay the chunks of a step out in one flat batch."""
    order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].token_ids) > 1)
    decodes = [chunks[i] for i in order if len(chunks[i].token_ids) == 1]
    tables = np.zeros((len(decodes), max((len(c.block_table) for c in decodes), default=0)), int)
    for row, chunk in enumerate(decodes):
        tables[row, : len(chunk.block_table)] = chunk.block_table
    prefills, last_rows, end = [], np.zeros(len(chunks), int), 0
    for i in order:
        if len(chunks[i].token_ids) > 1:
            prefills.append((end, chunks[i]))
        end += len(chunks[i].token_ids)
        last_rows[i] = end - 1
    ordered = [chunks[i] for i in order]
    return Batch(
        token_ids=np.concatenate([np.asarray(c.token_ids) for c in ordered]),
        positions=np.concatenate([c.start + np.arange(len(c.token_ids)) for c in ordered]),
        slots=np.concatenate(
            [slot_mapping(c.block_table, block_size, c.start, len(c.token_ids)) for c in ordered]
        ),
        num_decodes=len(decodes),
        decode_tables=tables,
        prefills=prefills,
        last_rows=last_rows,
    )


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one decoder layer, transposed to `[input, output]`, fused as in vLLM."""

    input_norm: np.ndarray  # [hidden]
    qkv: np.ndarray  # [hidden, (num_heads + 2 * num_kv_heads) * head_dim]
    output: np.ndarray  # [num_heads * head_dim, hidden]
    post_attention_norm: np.ndarray  # [hidden]
    gate_up: np.ndarray  # [hidden, 2 * intermediate]
    down: np.ndarray  # [intermediate, hidden]


class LlamaModel:
    """A Llama decoder in float32; source: vllm/model_executor/models/llama.py:LlamaModel."""

    def __init__(self, config: ModelConfig, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.embedding = weights["model.embed_tokens.weight"]
        self.final_norm = weights["model.norm.weight"]
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.head = np.ascontiguousarray(weights[head].T)
        self.layers = [_layer_weights(weights, i) for i in range(config.num_layers)]
        self._cosines, self._sines = rotary_tables(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LlamaModel":
        """Load a checkpoint folder (`config.json`, `model.safetensors`) into float32."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        stored = load_file(folder / "model.safetensors")
        weights = {name: array.astype(np.float32) for name, array in stored.items()}
        return cls(ModelConfig.from_json(folder / "config.json"), weights)

    def new_kv_cache(self, num_blocks: int, block_size: int) -> KVCache:
        config = self.config
        return KVCache(
            config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim
        )

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        """Compute a step and return the hidden states `[num_tokens, hidden]` before the head.

        In every layer the K and V of the whole batch are written before any chunk attends: chunks
        of one step may share blocks.
        """
        hidden: np.ndarray = self.embedding[batch.token_ids]
        for layer, weights in enumerate(self.layers):
            normed = rms_norm(hidden, weights.input_norm, self.config.rms_norm_eps)
            hidden = hidden + self._attention(layer, normed, batch, cache) @ weights.output
            normed = rms_norm(hidden, weights.post_attention_norm, self.config.rms_norm_eps)
            hidden = hidden + swiglu(normed @ weights.gate_up) @ weights.down
        return hidden

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits `[num_rows, vocab_size]` of the hidden states `[num_rows, hidden]`."""
        normed = rms_norm(hidden, self.final_norm, self.config.rms_norm_eps)
        logits: np.ndarray = normed @ self.head
        return logits

    def _attention(
        self, layer: int, normed: np.ndarray, batch: Batch, cache: KVCache
    ) -> np.ndarray:
        config = self.config
        qkv = (normed @ self.layers[layer].qkv).reshape(len(normed), -1, config.head_dim)
        num_rotated = config.num_heads + config.num_kv_heads
        rotated = self._rotate(qkv[:, :num_rotated], batch.positions)
        queries, keys = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
        cache.write(layer, batch.slots, keys, qkv[:, num_rotated:])
        output = np.empty_like(queries)
        pages = cache.keys[layer], cache.values[layer]
        if n := batch.num_decodes:
            lengths = batch.positions[:n] + 1
            output[:n] = paged_decode_attention(queries[:n], *pages, batch.decode_tables, lengths)
        for row, chunk in batch.prefills:
            rows = slice(row, row + len(chunk.token_ids))
            output[rows] = paged_prefill_attention(
                queries[rows], *pages, chunk.block_table, chunk.start
            )
        return output.reshape(len(normed), -1)

    def _rotate(self, heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotary position embedding of `heads` `[num_tokens, heads, head_dim]`, halves paired."""
        cosines, sines = self._cosines[positions][:, None], self._sines[positions][:, None]
        first, second = np.split(heads, 2, axis=-1)
        return np.concatenate(
            [first * cosines - second * sines, second * cosines + first * sines], axis=-1
        )


def _layer_weights(weights: dict[str, np.ndarray], layer: int) -> LayerWeights:
    def fused(*names: str) -> np.ndarray:
        stacked = [weights[f"model.layers.{layer}.{name}.weight"] for name in names]
        return np.ascontiguousarray(np.concatenate(stacked).T)

    return LayerWeights(
        input_norm=weights[f"model.layers.{layer}.input_layernorm.weight"],
        qkv=fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output=fused("self_attn.o_proj"),
        post_attention_norm=weights[f"model.layers.{layer}.post_attention_layernorm.weight"],
        gate_up=fused("mlp.gate_proj", "mlp.up_proj"),
        down=fused("mlp.down_proj"),
    )


def rotary_tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[max_position_embeddings, head_dim / 2]` of the rotation angles."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Root-mean-square normalisation of the rows of `x`, scaled by `weight`."""
    normed: np.ndarray = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
    return normed


def swiglu(gate_up: np.ndarray) -> np.ndarray:
    """SiLU of the first half times the second half: `[rows, 2 * n]` to `[rows, n]`."""
    gate, up = np.split(gate_up, 2, axis=-1)
    activated: np.ndarray = gate / (1 + np.exp(-gate)) * up
    return activated
