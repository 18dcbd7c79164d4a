"""One model over several ranks: tensor, expert and context parallelism; weeks 13 and 14.

Every rank runs the whole engine on its share of the weights. The schedulers see the same requests
and sample from the same logits, so they decide alike and only activations travel; SGLang's ranks
do the same (sglang/srt/managers/scheduler.py:Scheduler), vLLM schedules once and broadcasts.

Mirrors vllm/model_executor/layers/linear.py. One difference on purpose: vLLM divides the embedding
over the vocabulary too (VocabParallelEmbedding), for one more all-reduce a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from inferlab.engine.attention import SoftmaxState
from inferlab.engine.checkpoint import ModelConfig, load_weights
from inferlab.engine.layers import Linear
from inferlab.engine.llm import LLM
from inferlab.engine.model import LlamaModel
from inferlab.engine.moe import MixtureOfExperts
from inferlab.engine.process_group import ProcessGroup
from inferlab.engine.request import Completion, SamplingParams

# A checkpoint stores a linear layer as [output, input], so a column of the layer is a row there.
COLUMN_PARALLEL = ("q_proj", "gate_proj", "up_proj", "w1", "w3", "lm_head")
ROW_PARALLEL = ("o_proj", "down_proj", "w2")
EXPERTS = ("w1", "w2", "w3")


@dataclass
class ColumnParallelLinear:
    """Each rank computes some of the outputs; gathered, every rank has all of them.

    Inside a layer nothing is gathered: a rank's outputs of qkv, or of gate and up, are just the
    inputs that its part of the following row-parallel layer takes.
    Source: vllm/model_executor/layers/linear.py:ColumnParallelLinear, with `gather_output`.
    """

    part: Linear  # [num_tokens, input] to [num_tokens, output / size]
    group: ProcessGroup

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate(self.group.all_gather(self.part(x)), axis=-1)


@dataclass
class RowParallelLinear:
    """Each rank takes some of the inputs, so that the output is the sum over the ranks.

    Source: vllm/model_executor/layers/linear.py:RowParallelLinear.
    """

    part: Linear  # [num_tokens, input / size] to [num_tokens, output], a partial sum
    group: ProcessGroup

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.group.all_reduce(self.part(x))


def shard_config(config: ModelConfig, size: int, expert_parallel: bool = False) -> ModelConfig:
    """The shape of the model that each of `size` ranks computes.

    Raises:
        ValueError: if the heads, the KV heads, the FFN or experts, or the vocabulary cannot be
            divided.
    """
    counts = {"attention heads": config.num_heads, "vocabulary entries": config.vocab_size}
    if expert_parallel:
        counts["experts"] = config.num_experts
    else:
        counts["FFN columns"] = config.intermediate_size
    for name, count in counts.items():
        if count % size or not count:
            raise ValueError(
                f"{count} {name} cannot be divided over {size} ranks; "
                "choose a number of ranks that divides them."
            )
    if config.num_kv_heads % size and size % config.num_kv_heads:
        raise ValueError(
            f"{config.num_kv_heads} KV heads cannot be divided over {size} ranks, nor copied "
            "evenly to them: one of the two numbers has to be a multiple of the other."
        )
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=max(1, config.num_kv_heads // size),
        intermediate_size=config.intermediate_size // (1 if expert_parallel else size),
        tie_word_embeddings=False,  # the head is divided, the embedding is not
    )


def shard_weights(
    weights: Mapping[str, np.ndarray],
    config: ModelConfig,
    rank: int,
    size: int,
    expert_parallel: bool = False,
) -> dict[str, np.ndarray]:
    """What `rank` of `size` holds of each tensor of a checkpoint: norms and embedding entirely.

    Gate and up are divided before they are fused: the first half of the fused matrix is the gate
    alone. With fewer KV heads than ranks, neighbouring ranks hold copies of one KV head, the one
    that their query heads read (vllm/model_executor/layers/linear.py:QKVParallelLinear).
    """
    divided = {*COLUMN_PARALLEL, *ROW_PARALLEL} - set(EXPERTS if expert_parallel else ())
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    shards = {}
    for name, weight in {**weights, "lm_head.weight": weights[head]}.items():
        layer = name.split(".")[-2]
        num_parts = 1
        if layer in divided:
            num_parts = size
        elif layer in ("k_proj", "v_proj"):
            num_parts = min(size, config.num_kv_heads)
        parts = np.split(weight, num_parts, axis=int(layer in ROW_PARALLEL))
        shards[name] = parts[rank * num_parts // size].copy()
    return shards


def tensor_parallel_model(
    group: ProcessGroup, checkpoint: str | Path, expert_parallel: bool = False
) -> LlamaModel:
    """This rank's share of a checkpoint: two all-reduces a layer and a gather of the logits.

    With `expert_parallel` an expert is whole and on one rank. Every rank has all tokens, so none
    has to be sent to its expert: a rank adds what its experts make of them, as vLLM does unless
    the tokens are divided too (vllm/model_executor/layers/fused_moe/runner/moe_runner.py).
    """
    config = ModelConfig.from_json(Path(checkpoint) / "config.json")
    shape = shard_config(config, group.size, expert_parallel)
    weights = load_weights(Path(checkpoint))
    weights = shard_weights(weights, config, group.rank, group.size, expert_parallel)
    model = LlamaModel(shape, weights)
    for layer in model.layers:
        layer.output = RowParallelLinear(layer.output, group)
        if expert_parallel:
            assert isinstance(layer.mlp, MixtureOfExperts)
            own = np.split(np.arange(config.num_experts), group.size)[group.rank]
            layer.mlp.experts = [
                expert if i in own else np.zeros_like for i, expert in enumerate(layer.mlp.experts)
            ]
        layer.mlp = RowParallelLinear(layer.mlp, group)  # its last layer is `down`
    model.head = ColumnParallelLinear(model.head, group)
    return model


def merge_over_ranks(group: ProcessGroup, state: SoftmaxState) -> np.ndarray:
    """Attention `[..., head_dim]` over the keys of all ranks, from each rank's own `state`.

    The same merge as between tiles. Sums that were sent without their maximum would overflow:
    float32 ends at exp(88). Source: vllm/v1/attention/ops/dcp.py:cp_lse_ag_out_rs.
    """
    gathered = group.all_gather(np.concatenate(state, axis=-1))
    states = [SoftmaxState(s[..., :1], s[..., 1:2], s[..., 2:]) for s in gathered]
    merged = reduce(SoftmaxState.merge, states)
    output: np.ndarray = merged.output / merged.total
    return output


def generate(
    group: ProcessGroup,
    divide: Callable[[ProcessGroup, str | Path], LlamaModel],
    checkpoint: str | Path,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    **options: Any,
) -> list[Completion]:
    """`LLM(checkpoint, **options).generate(prompts, params)` with the model divided over `group`.

    For example `spawn(generate, 2, tensor_parallel_model, checkpoint, prompts)[0]`: every rank
    returns the same completions. `divide` may also be `PipelineStage`, or for experts
    `partial(tensor_parallel_model, expert_parallel=True)`.
    """
    llm = LLM(checkpoint, model=divide(group, checkpoint), **options)
    return llm.generate(prompts, params)
