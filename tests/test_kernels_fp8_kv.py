"""The FP8 kernels and `inferlab.engine.fp8`, code for code; interpreted where there is no GPU."""

import sys

import numpy as np
import pytest

from inferlab.engine import paged_decode_attention
from inferlab.engine.fp8 import FORMATS, Fp8Pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")
E4M3 = FORMATS["fp8_e4m3"]
HEAD_DIM = 32


def written(kv: np.ndarray, slots: np.ndarray, scales: np.ndarray, num_blocks: int) -> np.ndarray:
    """Codes `[num_blocks, 16, num_kv_heads, head_dim]` after the kernel has run."""
    import torch

    from inferlab import kernels
    from inferlab.kernels.fp8_kv import fp8_write

    cache = torch.zeros((num_blocks, 16, *kv.shape[1:]), dtype=torch.uint8, device=kernels.DEVICE)
    tensors = [torch.from_numpy(array).to(kernels.DEVICE) for array in (kv, slots, scales)]
    fp8_write(tensors[0], tensors[1], tensors[2], cache)
    codes: np.ndarray = cache.cpu().numpy()
    return codes


def read(codes: np.ndarray, slots: np.ndarray, scales: np.ndarray) -> np.ndarray:
    import torch

    from inferlab import kernels
    from inferlab.kernels.fp8_kv import fp8_read

    tensors = (torch.from_numpy(array).to(kernels.DEVICE) for array in (codes, slots, scales))
    found: np.ndarray = fp8_read(*tensors).cpu().numpy()
    return found


def encoded(numbers: np.ndarray) -> np.ndarray:
    """The kernel's codes of a whole number of rows, with a scale of 1."""
    rows = numbers.astype(np.float32).reshape(-1, 1, HEAD_DIM)
    slots = np.arange(len(rows), dtype=np.int32)
    blocks = -(-len(rows) // 16)
    codes = written(rows, slots, np.ones(1, np.float32), blocks)
    return codes.reshape(-1, HEAD_DIM)[: len(rows)].reshape(-1)


def test_codes_at_every_boundary_are_numpys() -> None:
    values = np.sort(E4M3.values[:127])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    around = [np.nextafter(points, np.float32(direction)) for direction in (-1, 1e9)]
    special = [np.nan, -np.nan, np.inf, -np.inf, 448.1, 464, 1e30, -1e30, 0.0, -0.0]
    numbers = np.concatenate([points, *around, special]).astype(np.float32)
    numbers = np.concatenate([numbers, -numbers])
    numbers = np.concatenate([numbers, np.ones(-len(numbers) % HEAD_DIM, np.float32)])
    assert np.array_equal(encoded(numbers), E4M3.encode(numbers))


def test_codes_of_random_bits_are_numpys() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 32 * HEAD_DIM, dtype=np.uint32)
    numbers = bits.view(np.float32)
    assert np.array_equal(encoded(numbers), E4M3.encode(numbers))


def test_all_256_codes_are_read_as_what_they_stand_for() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 8, 1, HEAD_DIM)
    back = read(codes, np.arange(8, dtype=np.int32), np.ones(1, np.float32)).reshape(-1)
    assert np.array_equal(back, E4M3.values, equal_nan=True)
    assert np.array_equal(np.signbit(back), np.signbit(E4M3.values)) or np.isnan(back).any()
    assert np.array_equal(np.signbit(back[[0, 128]]), [False, True]), "zeros keep their sign"


def test_padding_is_neither_written_nor_read() -> None:
    kv = np.full((4, 2, HEAD_DIM), 3.0, dtype=np.float32)
    slots = np.array([5, -1, 17, -9], dtype=np.int32)
    scales = np.array([1.0, 0.5], dtype=np.float32)
    codes = written(kv, slots, scales, 2)
    assert np.flatnonzero(codes.reshape(32, -1).any(axis=1)).tolist() == [5, 17]
    back = read(codes, slots, scales)
    assert (back[[0, 2]] == 3).all()
    assert (back[[1, 3]] == 0).all()


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (2, 2), (1, 3)])
def test_attention_over_codes_is_numpys(kv_heads: int, group: int) -> None:
    import torch

    from inferlab import kernels
    from inferlab.kernels.fp8_kv import fp8_decode

    rng = np.random.default_rng(kv_heads + 10 * group)
    lengths = np.array([1, 16, 37], dtype=np.int32)
    tables = np.array([[3, 0, 0], [1, 0, 0], [6, 2, 5]], dtype=np.int32)
    codes = np.full((2, 7, 16, kv_heads, HEAD_DIM), 127, dtype=np.uint8)  # NaN where no token is
    for table, length in zip(tables, lengths):
        for position in range(length):
            place = table[position // 16], position % 16
            codes[:, *place] = E4M3.encode(rng.standard_normal((2, kv_heads, HEAD_DIM)) * 50)
    scales = rng.uniform(0.005, 0.1, (2, kv_heads)).astype(np.float32)
    queries = rng.standard_normal((3, kv_heads * group, HEAD_DIM), dtype=np.float32)
    keys, values = (Fp8Pages(own, scale, E4M3) for own, scale in zip(codes, scales))
    expected = paged_decode_attention(queries, keys, values, tables, lengths)
    arrays = (queries, *codes, *scales, tables, lengths)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(kernels.DEVICE) for array in arrays)
    assert np.abs(fp8_decode(*tensors).cpu().numpy() - expected).max() < 1e-5
