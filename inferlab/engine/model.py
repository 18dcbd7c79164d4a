"""The forward pass of a Llama model in NumPy, reading and writing a paged KV cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inferlab.engine.attention import paged_decode_attention, paged_prefill_attention
from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.kv_cache import KVCache, slot_mapping


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


Linear = Callable[[np.ndarray], np.ndarray]
"""A linear layer: `[num_tokens, input]` to `[num_tokens, output]`.

Quantised and sharded layers put themselves in a dense one's place, so the forward pass is written
once.
"""


@dataclass
class DenseLinear:
    """The plain linear layer of a checkpoint."""

    weight: np.ndarray  # [input, output]: transposed once, when the model is loaded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        product: np.ndarray = x @ self.weight
        return product


@dataclass
class GatedMLP:
    """The feed-forward half of a layer: `down(silu(gate) * up)`, gate and up fused as in vLLM."""

    gate_up: Linear  # [hidden] to [2 * intermediate]
    down: Linear  # [intermediate] to [hidden]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.down(swiglu(self.gate_up(x)))


@dataclass
class DecoderLayer:
    """Weights of one decoder layer; its linear layers can be put in place of one another."""

    input_norm: np.ndarray  # [hidden]
    qkv: Linear  # [hidden] to [(num_heads + 2 * num_kv_heads) * head_dim], fused as in vLLM
    output: Linear  # [num_heads * head_dim] to [hidden]
    post_attention_norm: np.ndarray  # [hidden]
    mlp: Linear  # [hidden] to [hidden]: a `GatedMLP`, or a mixture of them


class LlamaModel:
    """A Llama decoder in float32; source: vllm/model_executor/models/llama.py:LlamaModel."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.config = config
        self.embedding = weights["model.embed_tokens.weight"]
        self.final_norm = weights["model.norm.weight"]
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.head: Linear = DenseLinear(np.ascontiguousarray(weights[head].T))
        self.layers = [_decoder_layer(weights, i) for i in range(config.num_layers)]
        self._cosines, self._sines = rotary_tables(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LlamaModel":
        """Load a checkpoint folder (`config.json`, `model.safetensors`) into float32."""
        folder = Path(folder)
        return cls(ModelConfig.from_json(folder / "config.json"), load_weights(folder))

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
            hidden = hidden + weights.output(self._attention(layer, normed, batch, cache))
            normed = rms_norm(hidden, weights.post_attention_norm, self.config.rms_norm_eps)
            hidden = hidden + weights.mlp(normed)
        return hidden

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits `[num_rows, vocab_size]` of the hidden states `[num_rows, hidden]`."""
        normed = rms_norm(hidden, self.final_norm, self.config.rms_norm_eps)
        return self.head(normed)

    def _attention(
        self, layer: int, normed: np.ndarray, batch: Batch, cache: KVCache
    ) -> np.ndarray:
        config = self.config
        qkv = self.layers[layer].qkv(normed).reshape(len(normed), -1, config.head_dim)
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


def fused_linear(weights: Mapping[str, np.ndarray], *names: str) -> DenseLinear:
    """One linear layer from the `[output, input]` matrices `names`, their outputs side by side."""
    stacked = np.concatenate([weights[f"{name}.weight"] for name in names])
    return DenseLinear(np.ascontiguousarray(stacked.T))


def _decoder_layer(weights: Mapping[str, np.ndarray], layer: int) -> DecoderLayer:
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return DecoderLayer(
        input_norm=weights[f"{prefix}.input_layernorm.weight"],
        qkv=fused_linear(weights, *(f"{attention}.{name}_proj" for name in "qkv")),
        output=fused_linear(weights, f"{attention}.o_proj"),
        post_attention_norm=weights[f"{prefix}.post_attention_layernorm.weight"],
        mlp=GatedMLP(
            fused_linear(weights, f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            fused_linear(weights, f"{mlp}.down_proj"),
        ),
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
