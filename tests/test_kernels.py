"""Triton kernels against their NumPy oracles; in the interpreter where there is no GPU."""

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("block_size", [8, 16])
def test_paged_decode_equals_its_oracle(kv_heads: int, block_size: int) -> None:
    import torch

    from inferlab import kernels
    from inferlab.engine import paged_decode_attention
    from inferlab.kernels.paged_decode import paged_decode

    rng = np.random.default_rng(kv_heads)
    lengths = np.array([1, block_size, block_size + 1, 3 * block_size - 1])
    key_cache = np.full((12, block_size, kv_heads, 32), 1e6, dtype=np.float32)
    value_cache = np.full_like(key_cache, np.nan)
    ids = iter(rng.permutation(np.arange(1, 12)))
    tables = np.zeros((4, 3), dtype=np.int32)
    for row, length in zip(tables, lengths):
        for i in range(-(-length // block_size)):
            row[i] = next(ids)
            filled = min(block_size, length - i * block_size)
            key_cache[row[i], :filled] = rng.standard_normal((filled, kv_heads, 32))
            value_cache[row[i], :filled] = rng.standard_normal((filled, kv_heads, 32))
    queries = rng.standard_normal((4, 4, 32), dtype=np.float32)
    expected = paged_decode_attention(queries, key_cache, value_cache, tables, lengths)
    arrays = (queries, key_cache, value_cache, tables, lengths.astype(np.int32))
    output = paged_decode(*(torch.from_numpy(array).to(kernels.DEVICE) for array in arrays))
    np.testing.assert_allclose(output.cpu().numpy(), expected, atol=1e-5)
    half = [torch.from_numpy(array).to(kernels.DEVICE, torch.float16) for array in arrays[:1]]
    pages = [
        torch.from_numpy(np.nan_to_num(a)).clamp(max=100).to(kernels.DEVICE, torch.float16)
        for a in arrays[1:3]
    ]
    integers = [torch.from_numpy(array).to(kernels.DEVICE) for array in arrays[3:]]
    rounded = paged_decode(*half, *pages, *integers).float().cpu().numpy()
    np.testing.assert_allclose(rounded, expected, atol=5e-3)


def test_triton_imported_too_early_is_one_sentence() -> None:
    import os
    import subprocess

    from inferlab import kernels

    if not kernels.INTERPRETED:
        pytest.skip("with a GPU there is no interpreter to choose")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", "import triton; import inferlab.kernels"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert "Restart Python and import inferlab.kernels first" in run.stderr
