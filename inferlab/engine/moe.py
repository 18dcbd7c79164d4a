"""Mixtral's feed-forward block: a router, and the experts that each token is sent to.

Week 14 builds it; `inferlab.kernels.grouped_gemm` is its kernel. Mirrors transformers'
`MixtralSparseMoeBlock` and `vllm/model_executor/layers/fused_moe`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from inferlab.engine.layers import Linear


class Routing(NamedTuple):
    """Where the tokens of a step go."""

    logits: np.ndarray  # [num_tokens, num_experts]
    experts: np.ndarray  # [num_tokens, top_k] expert ids, the most probable first
    weights: np.ndarray  # [num_tokens, top_k]; the weights of a token sum to 1


def route(logits: np.ndarray, top_k: int) -> Routing:
    """Choose `top_k` experts for each row of router logits `[num_tokens, num_experts]`.

    Of equally probable experts the one with the lowest id is taken, as in vLLM's kernel; torch
    promises no order. The weights are normalised after the choice: a token's output is then a mean
    of its experts' outputs, however little probability they had together.

    Raises:
        ValueError: if there are fewer experts than `top_k`, or `top_k` is below 1.

    Source: vllm/model_executor/layers/fused_moe/router/fused_topk_router.py:fused_topk.
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(
            f"top_k is {top_k}; a token is sent to between 1 and {logits.shape[-1]} experts here."
        )
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    experts = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    chosen = np.take_along_axis(probabilities, experts, axis=-1)
    return Routing(logits, experts, chosen / chosen.sum(axis=-1, keepdims=True))


class Permutation(NamedTuple):
    """One row for each pair of a token and an expert, the rows of an expert together."""

    rows: np.ndarray  # [num_pairs, hidden]; within an expert in the order of the tokens
    order: np.ndarray  # [num_pairs]; row i belongs to the pair order[i] = token * top_k + choice
    offsets: np.ndarray  # [num_experts + 1]; expert e has rows offsets[e] to offsets[e + 1]


def permute(x: np.ndarray, experts: np.ndarray, num_experts: int) -> Permutation:
    """Copy the rows of `x` `[num_tokens, hidden]` to their `experts` `[num_tokens, top_k]`.

    Source: vllm/model_executor/layers/fused_moe/moe_permute_unpermute.py:moe_permute.
    """
    order = np.argsort(experts, axis=None, kind="stable")
    counts = np.bincount(experts.ravel(), minlength=num_experts)
    return Permutation(x[order // experts.shape[1]], order, np.append(0, counts.cumsum()))


def grouped_forward(rows: np.ndarray, offsets: np.ndarray, experts: Sequence[Linear]) -> np.ndarray:
    """Apply expert e to rows `offsets[e]` to `offsets[e + 1]`; one without rows is not called."""
    outputs = [
        expert(rows[first:end])
        for expert, first, end in zip(experts, offsets, offsets[1:])
        if end > first
    ]
    return np.concatenate(outputs) if outputs else rows


def unpermute(rows: np.ndarray, order: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each token's weighted sum `[num_tokens, hidden]` of the experts' rows `[num_pairs, hidden]`.

    A token's terms are added in the order of its experts, so its neighbours do not change the sum.

    Source: vllm/model_executor/layers/fused_moe/moe_permute_unpermute.py:moe_unpermute.
    """
    pairs = np.empty_like(rows)
    pairs[order] = rows
    total: np.ndarray = (pairs.reshape(*weights.shape, -1) * weights[..., None]).sum(axis=1)
    return total


@dataclass
class MixtureOfExperts:
    """A feed-forward layer `[num_tokens, hidden]` to `[num_tokens, hidden]` made of experts.

    Invariant: a step calls an expert once, with its tokens alone, or not at all if it has none.
    """

    gate: Linear  # [hidden] to [num_experts]: the router
    experts: Sequence[Linear]  # each [hidden] to [hidden]
    top_k: int
    on_route: Callable[[Routing], None] | None = None
    """Called with each step's routing before it is computed; the chapters watch the load by it."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        routing = route(self.gate(x), self.top_k)
        if self.on_route is not None:
            self.on_route(routing)
        rows, order, offsets = permute(x, routing.experts, len(self.experts))
        return unpermute(grouped_forward(rows, offsets, self.experts), order, routing.weights)
