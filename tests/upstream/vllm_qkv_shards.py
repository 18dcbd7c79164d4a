"""Which rows of q, k and v vLLM's `QKVParallelLinear` loads on each rank; for its interpreter."""

from unittest.mock import patch

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear

HEAD_DIM = 2


def main(cases):
    """For each (heads, KV heads, ranks): the rows of every rank, numbered through q, k and v."""
    with set_current_vllm_config(VllmConfig()):
        return [rows_of_all_ranks(*case) for case in cases]


def rows_of_all_ranks(num_heads, num_kv_heads, size):
    try:
        return [rows_of_rank(num_heads, num_kv_heads, rank, size) for rank in range(size)]
    except AssertionError as error:
        if "is not divisible by" not in str(error):
            raise
        return None


def rows_of_rank(num_heads, num_kv_heads, rank, size):
    sizes = [HEAD_DIM * heads for heads in (num_heads, num_kv_heads, num_kv_heads)]
    rows = torch.arange(sum(sizes), dtype=torch.float32)[:, None]
    place = {
        "get_tensor_model_parallel_rank": lambda: rank,
        "get_tensor_model_parallel_world_size": lambda: size,
    }
    with patch.multiple(linear, **place), patch.multiple(parameter, **place):
        layer = linear.QKVParallelLinear(
            1, HEAD_DIM, num_heads, num_kv_heads, bias=False, params_dtype=torch.float32
        )
        for name, matrix in zip("qkv", rows.split(sizes)):
            layer.weight_loader(layer.weight, matrix, name)
    return layer.weight[:, 0].int().tolist()
