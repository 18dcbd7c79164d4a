"""The shape of a decoder: all that the cost of a step depends on, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, then a gated feed-forward part, in each layer.

    With several experts, each token goes through `experts_per_token` of them.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # of one expert, if there are several
    vocab_size: int
    num_experts: int = 1
    experts_per_token: int = 1
    has_tied_embedding: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """The shape that a checkpoint's `config.json` describes, in Hugging Face's names."""
        num_heads = config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            num_experts=config.get("num_local_experts", 1),
            experts_per_token=config.get("num_experts_per_tok", 1),
            has_tied_embedding=config.get("tie_word_embeddings", False),
        )

    @property
    def attention_weights(self) -> int:
        """Weights of the four projections of one layer."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (2 * query + 2 * key)

    @property
    def expert_weights(self) -> int:
        """Weights of the gate, up and down projections of one expert in one layer."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def router_weights(self) -> int:
        """Weights that choose the experts, of one layer; none where there is no choice."""
        return self.hidden_size * self.num_experts if self.num_experts > 1 else 0

    @property
    def embedding_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All weights, the norms' among them; biases are none of a Llama's."""
        layer = (
            self.attention_weights
            + self.num_experts * self.expert_weights
            + self.router_weights
            + 2 * self.hidden_size
        )
        embeddings = 1 if self.has_tied_embedding else 2
        return self.num_layers * layer + embeddings * self.embedding_weights + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """Weights that one token is multiplied with: its experts', and the head's."""
        layer = (
            self.attention_weights
            + self.experts_per_token * self.expert_weights
            + self.router_weights
        )
        return self.num_layers * layer + self.embedding_weights
