"""What each operator of a step computes and moves: the terms of a roofline.

The counts are those of vLLM's own estimate (vllm/v1/metrics/perf.py:ModelMetrics), with which they
agree within 1 % for dense models. Two conventions of it are worth knowing: a chunk of a prompt is
charged for all its tokens times its whole context, although a causal kernel skips half of the last
square, and K and V of a prompt that is computed in this step are charged as read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from inferlab.analysis.model_shape import ModelShape

# A number, or a NumPy array of as many as there are steps.
Amount = Any


class StepShape(NamedTuple):
    """What a step computes, summed over its requests; each an amount, arrays of equal length.

    A request's context is all its tokens up to and including those of the step.
    """

    prefill_requests: Amount = 0
    prefill_tokens: Amount = 0
    prefill_context: Amount = 0
    decode_tokens: Amount = 0
    decode_context: Amount = 0
    pairs: Amount = 0  # of a token and a token it attends to: tokens × context, summed

    @property
    def tokens(self) -> Amount:
        return self.prefill_tokens + self.decode_tokens

    @property
    def sampled(self) -> Amount:
        """Tokens whose logits are computed: of a prompt's chunk one, as vLLM does."""
        return self.prefill_requests + self.decode_tokens

    @classmethod
    def of(cls, requests: Iterable[tuple[int, int, bool]]) -> "StepShape":
        """The sum over requests: tokens in this step, context, and whether they are a prompt's."""
        total = [0] * len(cls._fields)
        for tokens, context, is_prefill in requests:
            if is_prefill:
                total[0] += 1
                total[1] += tokens
                total[2] += context
            else:
                total[3] += tokens
                total[4] += context
            total[5] += tokens * context
        return cls(*total)

    @classmethod
    def decode(cls, num_requests: Amount, context: Amount) -> "StepShape":
        """A step in which each of `num_requests` computes one token; `context` is their sum."""
        return cls(decode_tokens=num_requests, decode_context=context, pairs=context)


@dataclass(frozen=True)
class Precision:
    """Bytes of an element of each kind, and the name of the arithmetic that computes with them.

    `weight` may be a fraction: 0.5 for int4, and a little more with its scales.
    """

    weight: float = 2.0
    kv: float = 2.0
    activation: float = 2.0
    arithmetic: str = "bf16"


BF16 = Precision()


class Operator(NamedTuple):
    """One of a step's operators, over all layers, on one of the GPUs that share the model."""

    name: str
    flop: Amount
    read_bytes: Amount
    written_bytes: Amount

    @property
    def bytes(self) -> Amount:
        return self.read_bytes + self.written_bytes

    @property
    def intensity(self) -> Amount:
        """FLOP per byte."""
        return self.flop / self.bytes


def operators(
    model: ModelShape,
    step: StepShape,
    precision: Precision,
    num_gpus: int = 1,
    experts: Amount | None = None,
) -> list[Operator]:
    """The operators of a step, each with its FLOP and bytes, on one of `num_gpus`.

    Tensor parallelism divides heads, the feed-forward width and the vocabulary; what is added up
    between the GPUs is no operator here (see `all_reduce_bytes`).

    Args:
        experts: how many of each layer's the step needs; on average `distinct_experts`.

    Raises:
        ValueError: if the model cannot be divided so.
    """
    if model.num_heads % num_gpus or model.intermediate_size % num_gpus:
        raise ValueError(
            f"{num_gpus} GPUs cannot share a model of {model.num_heads} heads and a feed-forward "
            f"width of {model.intermediate_size}: both have to be divisible by the number of GPUs."
        )
    if experts is None:
        experts = distinct_experts(model, step.tokens)
    layers, width, head = model.num_layers, model.hidden_size, model.head_dim
    heads = model.num_heads // num_gpus
    kv_heads = max(1, model.num_kv_heads // num_gpus)  # fewer than GPUs: each has a copy of one
    qkv = (heads + 2 * kv_heads) * head
    return [
        matrix_product("qkv projection", step.tokens, width, qkv, layers, precision),
        attention(step, layers, heads, kv_heads, head, precision),
        matrix_product("output projection", step.tokens, heads * head, width, layers, precision),
        *_feed_forward(model, step.tokens, experts, model.intermediate_size // num_gpus, precision),
        output_head(step, width, model.vocab_size // num_gpus, precision),
    ]


def matrix_product(
    name: str, rows: Amount, inner: int, outer: int, layers: int, precision: Precision
) -> Operator:
    """A matrix of weights `[inner, outer]` times `rows` rows, once in each of `layers` layers.

    Rows are read and the product is written as activations, each once; the weights are read once
    however many rows there are. Source: `qkv_proj` and `out_proj` of vLLM's `AttentionMetrics`.
    """
    flop = 2 * rows * inner * outer
    read = rows * inner * precision.activation + inner * outer * precision.weight
    written = rows * outer * precision.activation
    return Operator(name, layers * flop, layers * read, layers * written)


def attention(
    step: StepShape, layers: int, heads: int, kv_heads: int, head_dim: int, precision: Precision
) -> Operator:
    """Scores and their sum with the values, once in each of `layers` layers.

    The queries are read as activations; K and V of every context as the cache keeps them, but those
    of a prompt that is computed in this step as activations. Written are the K and V of the step's
    tokens. What attention returns is charged where the output projection reads it.

    Args:
        heads: query heads, each of which computes; `kv_heads` of them are read and written.
        head_dim: elements of a head.
    """
    query = step.tokens * heads * head_dim * precision.activation
    keys_and_values = 2 * kv_heads * head_dim
    of_prompts = step.prefill_context * keys_and_values * precision.activation
    of_decodes = step.decode_context * keys_and_values * precision.kv
    new = step.tokens * keys_and_values * precision.kv
    flop = 4 * heads * head_dim * step.pairs
    return Operator(
        "attention", layers * flop, layers * (query + of_prompts + of_decodes), layers * new
    )


def output_head(step: StepShape, width: int, vocab_size: int, precision: Precision) -> Operator:
    """Logits of the tokens that are sampled from: `[width, vocab_size]` times their rows.

    The weights have the activations' format: formats of fewer bits leave the head as it is.
    """
    flop = 2 * step.sampled * width * vocab_size
    read = (step.sampled + vocab_size) * width * precision.activation
    written = step.sampled * vocab_size * precision.activation
    return Operator("head", flop, read, written)


def _feed_forward(
    model: ModelShape, tokens: Amount, experts: Amount, width: int, precision: Precision
) -> list[Operator]:
    """Up and gate, the activation between, and down; `width` is one GPU's share of an expert."""
    layers, hidden, activation = model.num_layers, model.hidden_size, precision.activation
    rows = tokens * model.experts_per_token
    weights = experts * hidden * width * precision.weight
    return [
        Operator(
            "up and gate projection",
            layers * 4 * rows * hidden * width,
            layers * (rows * hidden * activation + 2 * weights),
            layers * 2 * rows * width * activation,
        ),
        Operator(
            "activation",
            0 * rows,
            layers * 2 * rows * width * activation,
            layers * rows * width * activation,
        ),
        Operator(
            "down projection",
            layers * 2 * rows * hidden * width,
            layers * (rows * width * activation + weights),
            layers * rows * hidden * activation,
        ),
    ]


def distinct_experts(model: ModelShape, tokens: Amount) -> Amount:
    """Experts of a layer that `tokens` tokens choose together, on average, if all are as likely.

    Each token leaves an expert out with probability 1 - k/E, and the weights of an expert are read
    once however many chose it. vLLM counts min(tokens × k, E), as if no two tokens agreed.
    """
    missed = (1 - model.experts_per_token / model.num_experts) ** tokens
    return model.num_experts * (1 - missed)


def all_reduce_bytes(model: ModelShape, tokens: Amount, precision: Precision) -> Amount:
    """Bytes of the array that is added up between GPUs, twice in each layer."""
    return tokens * model.hidden_size * precision.activation
