"""The parts of a decoder layer: linear layers, the gated MLP, normalisation, rotary positions.

Built in week 3; mirrors vllm/model_executor/layers. Attention and the experts have modules of their
own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from inferlab.engine.checkpoint import ModelConfig

Linear = Callable[[np.ndarray], np.ndarray]
"""A linear layer: `[num_tokens, input]` to `[num_tokens, output]`.

Quantised and sharded layers put themselves in a dense one's place, so the forward pass is written
once.
"""


@dataclass
class DenseLinear:
    """The plain linear layer of a checkpoint."""

    weight: np.ndarray  # [input, output]: a view of the checkpoint's [output, input]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        # Transposed: with few tokens, OpenBLAS takes a third less time for it than for x @ weight.
        product: np.ndarray = (self.weight.T @ x.T).T
        return product


@dataclass
class GatedMLP:
    """The feed-forward half of a layer: `down(silu(gate) * up)`, gate and up fused as in vLLM."""

    gate_up: Linear  # [hidden] to [2 * intermediate]
    down: Linear  # [intermediate] to [hidden]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.down(swiglu(self.gate_up(x)))


def fused_linear(weights: Mapping[str, np.ndarray], *names: str) -> DenseLinear:
    """One linear layer from the `[output, input]` matrices `names`, their outputs side by side."""
    stacked = np.concatenate([weights[f"{name}.weight"] for name in names])
    return DenseLinear(stacked.T)


def rotary_table(config: ModelConfig) -> np.ndarray:
    """Cosine and sine of each rotation angle, `[max_position_embeddings, 2, 1, head_dim / 2]`."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**exponents).astype(np.float32)
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, :, None]


def rotate(heads: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Rotary position embedding of `heads` `[num_tokens, num_heads, head_dim]`, halves paired.

    `rotations` `[num_tokens, 2, 1, head_dim / 2]` holds the rows of `rotary_table` for the tokens.
    """
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    cosines, sines = rotations[:, 0], rotations[:, 1]
    rotated = np.empty_like(heads)
    rotated[..., :half] = first * cosines - second * sines
    rotated[..., half:] = second * cosines + first * sines
    return rotated


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Root-mean-square normalisation of the rows of `x`, scaled by `weight`."""
    mean_square = (x * x).sum(axis=-1, keepdims=True) / x.shape[-1]
    normed: np.ndarray = x / np.sqrt(mean_square + eps) * weight
    return normed


def swiglu(gate_up: np.ndarray) -> np.ndarray:
    """SiLU of the first half times the second half: `[rows, 2 * n]` to `[rows, n]`."""
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[:, :half], gate_up[:, half:]
    activated: np.ndarray = gate / (1 + np.exp(-gate)) * up
    return activated


def parts_of(whole: object) -> Iterator[object]:
    """The arrays and settings of a layer or a model, whatever its linear layers are replaced by.

    Private attributes are left out: they hold what can be computed, such as rotation tables.
    """
    if isinstance(whole, list):
        for item in whole:
            yield from parts_of(item)
    elif hasattr(whole, "__dict__"):
        for name, value in vars(whole).items():
            if not name.startswith("_"):
                yield from parts_of(value)
    else:
        yield whole
