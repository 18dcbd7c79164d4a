"""Split-KV decode in Triton against the NumPy softmax states and the attention they make.

Where there is no GPU the kernels run in the interpreter.
"""

import sys
from functools import reduce
from typing import NamedTuple

import numpy as np
import pytest

from inferlab.engine import paged_decode_attention
from inferlab.engine.attention import SoftmaxState

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton has wheels for Linux only")

BLOCK_SIZE, HEADS, HEAD_DIM = 16, 4, 32
LENGTHS = np.array([1, BLOCK_SIZE, 5 * BLOCK_SIZE + 3, 2 * BLOCK_SIZE + 1])


class Pages(NamedTuple):
    """The arguments of the kernels, in their order."""

    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    tables: np.ndarray
    lengths: np.ndarray


def pages(kv_heads: int, scale: float = 1.0) -> Pages:
    """Sequences in scrambled blocks; every slot that no token has holds NaN, K and V."""
    rng = np.random.default_rng(kv_heads)
    shape = (20, BLOCK_SIZE, kv_heads, HEAD_DIM)
    keys, values = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    ids = iter(rng.permutation(np.arange(1, 20)))
    tables = np.zeros((len(LENGTHS), 6), dtype=np.int32)
    for row, length in zip(tables, LENGTHS):
        for i in range(-(-length // BLOCK_SIZE)):
            row[i] = next(ids)
            filled = min(BLOCK_SIZE, length - i * BLOCK_SIZE)
            keys[row[i], :filled] = rng.standard_normal((filled, kv_heads, HEAD_DIM)) * scale
            values[row[i], :filled] = rng.standard_normal((filled, kv_heads, HEAD_DIM))
    queries = rng.standard_normal((len(LENGTHS), HEADS, HEAD_DIM), dtype=np.float32)
    return Pages(queries, keys, values, tables, LENGTHS.astype(np.int32))


def partials(arguments: Pages, num_splits: int) -> list[np.ndarray]:
    import torch

    from inferlab import kernels
    from inferlab.kernels.split_kv_decode import split_kv_partials

    tensors = (torch.from_numpy(array).to(kernels.DEVICE) for array in arguments)
    return [state.cpu().numpy() for state in split_kv_partials(*tensors, num_splits)]


def merged(state: list[np.ndarray]) -> np.ndarray:
    import torch

    from inferlab import kernels
    from inferlab.kernels.split_kv_decode import merge_splits

    tensors = (torch.from_numpy(np.ascontiguousarray(part)).to(kernels.DEVICE) for part in state)
    output: np.ndarray = merge_splits(*tensors).cpu().numpy()
    return output


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("num_splits", [1, 2, 3, 8])
def test_split_attention_equals_its_oracle(kv_heads: int, num_splits: int) -> None:
    arguments = pages(kv_heads)
    output = merged(partials(arguments, num_splits))
    np.testing.assert_allclose(output, paged_decode_attention(*arguments), atol=1e-5)


def test_a_partial_state_is_that_of_its_keys_alone() -> None:
    """Each split against the plain formula over its own tokens, in float64."""
    arguments, num_splits = pages(2), 3
    maxima, totals, outputs = partials(arguments, num_splits)
    for sequence, length in enumerate(LENGTHS):
        num_blocks = -(-length // BLOCK_SIZE)
        share = -(-num_blocks // num_splits) * BLOCK_SIZE
        places = arguments.tables[sequence, :num_blocks]
        for head in range(HEADS):
            keys, values = (
                cache[places][:, :, head // 2].reshape(-1, HEAD_DIM)[:length].astype(float)
                for cache in (arguments.keys, arguments.values)
            )
            scores = keys @ arguments.queries[sequence, head].astype(float) / HEAD_DIM**0.5
            for split in range(num_splits):
                mine = slice(split * share, (split + 1) * share)
                place = sequence, head, split
                if not len(scores[mine]):
                    assert (maxima[place], totals[place]) == (-np.inf, 0)
                    assert not outputs[place].any()
                    continue
                weights = np.exp(scores[mine] - scores[mine].max())
                np.testing.assert_allclose(maxima[place], scores[mine].max(), atol=1e-5)
                np.testing.assert_allclose(totals[place], weights.sum(), rtol=1e-5)
                np.testing.assert_allclose(outputs[place], weights @ values[mine], atol=1e-4)
    assert np.isinf(maxima).sum() == HEADS * 4, "the two sequences of one block leave two each"


@pytest.mark.parametrize("num_splits", [1, 3, 8])
def test_the_merge_kernel_equals_the_merge_of_softmax_states(num_splits: int) -> None:
    """Random states, among them splits that hold no key: the last of each row, and the first."""
    rng = np.random.default_rng(num_splits)
    shape = (3, HEADS, num_splits)
    maxima = (rng.standard_normal(shape) * 20).astype(np.float32)
    totals = rng.uniform(1, 50, shape).astype(np.float32)
    outputs = rng.standard_normal((*shape, HEAD_DIM)).astype(np.float32)
    if num_splits > 1:
        for empty in (np.s_[0, :, -1], np.s_[1, :, 0]):
            maxima[empty], totals[empty], outputs[empty] = -np.inf, 0, 0
    states = [
        SoftmaxState(maxima[..., [i]], totals[..., [i]], outputs[..., i, :])
        for i in range(num_splits)
    ]
    whole = reduce(SoftmaxState.merge, states)
    expected = whole.output / whole.total
    np.testing.assert_allclose(merged([maxima, totals, outputs]), expected, rtol=1e-5, atol=1e-6)
    order = rng.permutation(num_splits)
    shuffled = [maxima[..., order], totals[..., order], outputs[..., order, :]]
    np.testing.assert_allclose(merged(shuffled), expected, rtol=1e-5, atol=1e-6)


def test_scores_of_ten_thousand_overflow_a_plain_exponential_and_not_this() -> None:
    """Scores of ±1e4 in different splits: exp(1e4) is infinite, exp(-1e4) is 0."""
    arguments = pages(HEADS)
    queries = np.zeros_like(arguments.queries)
    queries[..., 0] = HEAD_DIM**0.5
    keys = np.nan_to_num(arguments.keys)
    keys[..., 0] = np.where(np.arange(20) % 2, 1e4, -1e4)[:, None, None]
    arguments = arguments._replace(queries=queries, keys=keys)
    maxima, totals, outputs = state = partials(arguments, num_splits=6)
    assert set(maxima[2].round().flatten()) == {1e4, -1e4}, "one sequence has splits of both kinds"
    with np.errstate(all="ignore"):
        plain = np.exp(maxima)
        naive = (plain[..., None] * outputs).sum(2) / (plain * totals).sum(2)[..., None]
    assert not np.isfinite(naive[2]).any(), "control: without the maximum nothing is left"
    np.testing.assert_allclose(merged(state), paged_decode_attention(*arguments), atol=1e-5)
    assert np.isfinite(merged(state)).all()


def test_half_precision_pages_are_summed_in_float32() -> None:
    arguments = pages(2)
    half = Pages(*(a.astype(np.float16) if a.dtype == np.float32 else a for a in arguments))
    widened = Pages(*(a.astype(np.float32) if a.dtype == np.float16 else a for a in half))
    output = merged(partials(half, 4))
    np.testing.assert_allclose(output, paged_decode_attention(*widened), atol=1e-5)
