"""How many bytes the KV cache of a model takes, and how many sequences that leaves room for."""


def kv_bytes_per_token(
    num_layers: int, num_kv_heads: int, head_dim: int, bytes_per_element: float
) -> float:
    """Bytes of K and V that one token leaves behind, over all layers.

    One K and one V vector of `head_dim` elements for each KV head of each layer. Grouped-query
    attention enters through `num_kv_heads`, KV quantization through `bytes_per_element`.
    """
    return 2 * num_layers * num_kv_heads * head_dim * bytes_per_element


def latent_kv_bytes_per_token(
    num_layers: int, latent_dim: int, rope_dim: int, bytes_per_element: float
) -> float:
    """Bytes per token of multi-head latent attention: one compressed vector a layer, no heads.

    Source: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
    """
    return num_layers * (latent_dim + rope_dim) * bytes_per_element


def max_concurrent_sequences(
    memory_bytes: float, weight_bytes: float, bytes_per_token: float, tokens_per_sequence: int
) -> int:
    """Sequences of `tokens_per_sequence` tokens whose KV fits beside the weights; at least 0."""
    free = memory_bytes - weight_bytes
    return max(0, int(free // (bytes_per_token * tokens_per_sequence)))
