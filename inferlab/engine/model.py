"""The forward pass of a Llama model in NumPy, reading and writing a paged KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inferlab.engine.attention import paged_decode_attention, paged_prefill_attention
from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.kv_cache import KVCache, slot_mapping
from inferlab.engine.layers import (
    DenseLinear,
    GatedMLP,
    Linear,
    fused_linear,
    rms_norm,
    rotary_table,
    rotate,
)
from inferlab.engine.moe import MixtureOfExperts


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
    ordered = [chunks[i] for i in order]
    lengths = np.array([len(chunk.token_ids) for chunk in ordered])
    ends = np.cumsum(lengths)
    num_decodes = int((lengths == 1).sum())
    tables = np.zeros((len(ordered), max(len(chunk.block_table) for chunk in ordered)), int)
    for row, chunk in enumerate(ordered):
        tables[row, : len(chunk.block_table)] = chunk.block_table
    # A token's position is its chunk's start plus its distance from the chunk's first row.
    starts = np.array([chunk.start for chunk in ordered])
    positions = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])
    last_rows = np.empty(len(chunks), int)
    last_rows[order] = ends - 1
    return Batch(
        token_ids=np.concatenate([chunk.token_ids for chunk in ordered]),
        positions=positions,
        slots=slot_mapping(np.repeat(tables, lengths, axis=0), positions, block_size),
        num_decodes=num_decodes,
        decode_tables=tables[:num_decodes],
        prefills=list(zip((ends - lengths).tolist(), ordered))[num_decodes:],
        last_rows=last_rows,
    )


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
        self.head: Linear = DenseLinear(weights[head].T)
        self.layers = [_decoder_layer(config, weights, i) for i in range(config.num_layers)]
        self._rotations = rotary_table(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LlamaModel":
        """Load a checkpoint folder (`config.json`, `model.safetensors`) into float32."""
        folder = Path(folder)
        return cls(ModelConfig.from_json(folder / "config.json"), load_weights(folder))

    def new_kv_cache(
        self,
        num_blocks: int,
        block_size: int,
        dtype: str = "float32",
        scales: np.ndarray | None = None,
    ) -> KVCache:
        config = self.config
        heads = config.num_kv_heads, config.head_dim
        return KVCache(config.num_layers, num_blocks, block_size, *heads, dtype, scales)

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        """Compute a step and return the hidden states `[num_tokens, hidden]` before the head.

        In every layer the K and V of the whole batch are written before any chunk attends: chunks
        of one step may share blocks.
        """
        hidden: np.ndarray = self.embedding[batch.token_ids]
        rotations = self._rotations[batch.positions]
        for layer, weights in enumerate(self.layers):
            normed = rms_norm(hidden, weights.input_norm, self.config.rms_norm_eps)
            qkv = weights.qkv(normed).reshape(len(normed), -1, self.config.head_dim)
            hidden = hidden + weights.output(self._attention(layer, qkv, rotations, batch, cache))
            normed = rms_norm(hidden, weights.post_attention_norm, self.config.rms_norm_eps)
            hidden = hidden + weights.mlp(normed)
        return hidden

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Logits `[num_rows, vocab_size]` of the hidden states `[num_rows, hidden]`."""
        normed = rms_norm(hidden, self.final_norm, self.config.rms_norm_eps)
        return self.head(normed)

    def _attention(
        self, layer: int, qkv: np.ndarray, rotations: np.ndarray, batch: Batch, cache: KVCache
    ) -> np.ndarray:
        """Attend with `qkv` `[num_tokens, heads of Q, K and V, head_dim]` and store its K and V."""
        num_heads, num_kv_heads = self.config.num_heads, self.config.num_kv_heads
        rotated = rotate(qkv[:, : num_heads + num_kv_heads], rotations)
        queries, keys = rotated[:, :num_heads], rotated[:, num_heads:]
        cache.write(layer, batch.slots, keys, qkv[:, num_heads + num_kv_heads :])
        pages = cache.pages(layer)
        output = np.empty_like(queries)
        if n := batch.num_decodes:
            lengths = batch.positions[:n] + 1
            output[:n] = paged_decode_attention(queries[:n], *pages, batch.decode_tables, lengths)
        for row, chunk in batch.prefills:
            rows = slice(row, row + len(chunk.token_ids))
            output[rows] = paged_prefill_attention(
                queries[rows], *pages, chunk.block_table, chunk.start
            )
        return output.reshape(len(output), -1)


def _gated_mlp(weights: Mapping[str, np.ndarray], gate: str, up: str, down: str) -> GatedMLP:
    return GatedMLP(fused_linear(weights, gate, up), fused_linear(weights, down))


def _mixture_of_experts(
    config: ModelConfig, weights: Mapping[str, np.ndarray], prefix: str
) -> MixtureOfExperts:
    experts = [f"{prefix}.experts.{expert}" for expert in range(config.num_experts)]
    return MixtureOfExperts(
        fused_linear(weights, f"{prefix}.gate"),
        [_gated_mlp(weights, f"{name}.w1", f"{name}.w3", f"{name}.w2") for name in experts],
        config.num_experts_per_token,
    )


def _decoder_layer(
    config: ModelConfig, weights: Mapping[str, np.ndarray], layer: int
) -> DecoderLayer:
    prefix = f"model.layers.{layer}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    return DecoderLayer(
        input_norm=weights[f"{prefix}.input_layernorm.weight"],
        qkv=fused_linear(weights, *(f"{attention}.{name}_proj" for name in "qkv")),
        output=fused_linear(weights, f"{attention}.o_proj"),
        post_attention_norm=weights[f"{prefix}.post_attention_layernorm.weight"],
        mlp=_mixture_of_experts(config, weights, f"{prefix}.block_sparse_moe")
        if config.num_experts
        else _gated_mlp(weights, f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj"),
    )
