"""Eight-bit floating point, and KV pages in it: a quarter of float32's bytes; built in week 5.

A stored code stands for `values[code] * scale`, with one scale for each layer and KV head. Mirrors
`vllm/model_executor/layers/quantization/kv_cache.py:BaseKVCacheMethod`, with one difference on
purpose: that class takes one scale for all heads of a layer.
"""

from dataclasses import dataclass

import numpy as np


class Fp8Format:
    """The 256 numbers of one sign bit, `exponent_bits` and `mantissa_bits`.

    Invariant: codes 0 to `largest_code` are finite and in the order of their values, so rounding is
    a search among the midpoints between neighbours, subnormals included.
    Source: Micikevicius et al., "FP8 formats for deep learning", 2022, section 3.
    """

    def __init__(self, exponent_bits: int, mantissa_bits: int, largest_code: int) -> None:
        exponents, mantissas = np.divmod(np.arange(128), 2**mantissa_bits)
        # Subnormals have no hidden 1, and the exponent of the smallest normal numbers.
        mantissas += (exponents > 0) * 2**mantissa_bits
        powers = np.maximum(exponents, 1) - (2 ** (exponent_bits - 1) - 1) - mantissa_bits
        magnitudes = np.ldexp(mantissas.astype(np.float32), powers)
        finite = magnitudes[: largest_code + 1]
        magnitudes[len(finite) :] = np.nan
        if len(finite) < 127:
            magnitudes[len(finite)] = np.inf  # E4M3 has no code left for it
        self.values = np.concatenate([magnitudes, -magnitudes])  # [256]: decodes a code
        self.largest = finite[-1]
        self._midpoints = (finite[:-1] + finite[1:]) / 2

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Codes (uint8) of the numbers nearest to float32 `x`, ties to even, in the shape of `x`.

        Too large becomes the largest finite number, infinity included, as in vLLM's `QuantFP8`: one
        infinite key would make NaN of every later output. NaN stays NaN, so that it is seen.
        """
        x = np.asarray(x, np.float32)
        magnitude = np.abs(x)
        codes = np.searchsorted(self._midpoints, magnitude)
        is_tie = self._midpoints[np.minimum(codes, len(self._midpoints) - 1)] == magnitude
        codes = codes + (is_tie & (codes % 2 == 1))  # a tie was put below: up to the even code
        codes = np.where(np.isnan(x), 127, codes)
        coded: np.ndarray = (codes + 128 * np.signbit(x)).astype(np.uint8)
        return coded


FORMATS = {"fp8_e4m3": Fp8Format(4, 3, 0x7E), "fp8_e5m2": Fp8Format(5, 2, 0x7B)}
"""By the names of vLLM's `--kv-cache-dtype`."""


@dataclass
class Fp8Pages:
    """One layer's K or V; attention reads it as it reads the array of a float32 cache.

    Invariant: `pages[table]` decodes the blocks of `table` and no others.
    """

    codes: np.ndarray  # [num_blocks, block_size, num_kv_heads, head_dim]
    scales: np.ndarray  # [num_kv_heads]
    format: Fp8Format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __getitem__(self, table: np.ndarray) -> np.ndarray:
        blocks: np.ndarray = self.format.values[self.codes[table]] * self.scales[:, None]
        return blocks


Pages = np.ndarray | Fp8Pages
"""What attention gathers blocks from: `pages[table]`."""


def kv_scales(keys: np.ndarray, values: np.ndarray, dtype: str) -> np.ndarray:
    """Scales `[2, num_layers, num_kv_heads]` that put each head's largest K and V at `dtype`'s.

    Args:
        keys: of a float32 `KVCache` that has run prompts like those to come and had room for all of
            them: what has been overwritten no longer counts. `values` likewise.
    """
    maxima = np.stack([np.abs(pages).max(axis=(1, 2, 4)) for pages in (keys, values)])
    scales: np.ndarray = maxima / FORMATS[dtype].largest
    scales[scales == 0] = 1  # a head of zeros
    return scales
