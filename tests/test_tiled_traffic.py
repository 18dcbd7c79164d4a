"""The instrumented product: what it computes, and that the formula counts what it moves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlab.analysis.tiled_traffic import (
    CountedMatrix,
    TiledLinear,
    tiled_intensity,
    tiled_matmul,
    tiled_traffic,
)

SIDE = st.integers(1, 24)
TILE = st.integers(1, 30)


def run(m: int, n: int, k: int, *tiles: int) -> tuple[CountedMatrix, CountedMatrix, CountedMatrix]:
    """Multiply small integers, exactly in float32."""
    random = np.random.default_rng([m, n, k])
    left = CountedMatrix(random.integers(-8, 9, (m, k)).astype(np.float32))
    right = CountedMatrix(random.integers(-8, 9, (k, n)).astype(np.float32))
    output = CountedMatrix(np.full((m, n), np.nan, np.float32))
    tiled_matmul(left, right, output, *tiles)
    np.testing.assert_array_equal(output.array, left.array @ right.array)
    return left, right, output


@given(SIDE, SIDE, SIDE, TILE, TILE, TILE)
def test_the_formula_counts_what_the_product_moves(
    m: int, n: int, k: int, tile_m: int, tile_n: int, tile_k: int
) -> None:
    left, right, output = run(m, n, k, tile_m, tile_n, tile_k)
    expected = tiled_traffic(m, n, k, tile_m, tile_n)
    assert (left.loaded + right.loaded, output.stored) == expected
    assert output.loaded == left.stored == right.stored == 0
    assert left.largest == (min(m, tile_m), min(k, tile_k))
    assert right.largest == (min(k, tile_k), min(n, tile_n))


def test_a_ragged_product() -> None:
    left, right, output = run(37, 23, 19, 8, 8, 8)
    assert left.loaded == 37 * 19 * 3
    assert right.loaded == 19 * 23 * 5
    assert output.stored == 37 * 23


def test_tiles_of_one_are_the_naive_product() -> None:
    assert tiled_traffic(5, 6, 7, 1, 1) == (2 * 5 * 6 * 7, 5 * 6)


def test_the_worked_case() -> None:
    assert tiled_traffic(1024, 1024, 1024, 1, 1).loaded == 2 * 2**30
    assert tiled_traffic(1024, 1024, 1024, 128, 128).loaded == 16 * 2**20
    whole = tiled_intensity(1024, 1024, 1024, 1024, 1024, 2)
    assert whole == pytest.approx(1024 / 3), "341 FLOP/B, not thousands"


@given(st.integers(1, 256), st.integers(1, 256))
def test_intensity_tends_to_the_harmonic_mean_of_the_sides(tile_m: int, tile_n: int) -> None:
    large = 256 * tile_m * tile_n
    found = tiled_intensity(large, large, 10**9, tile_m, tile_n, 1)
    assert found == pytest.approx(2 / (1 / tile_m + 1 / tile_n), rel=1e-3)


@given(SIDE, SIDE, SIDE, TILE, TILE)
def test_a_larger_tile_never_loads_more(m: int, n: int, k: int, tile_m: int, tile_n: int) -> None:
    small = tiled_traffic(m, n, k, tile_m, tile_n)
    assert tiled_traffic(m, n, k, 2 * tile_m, tile_n) <= small
    assert small.loaded >= m * k + k * n, "every element at least once"


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_one_row_caps_the_intensity_whatever_the_tile(tile_m: int, tile_n: int) -> None:
    assert tiled_intensity(1, 4096, 4096, tile_m, tile_n, 2) < 1


def test_shapes_that_do_not_fit_are_refused_before_anything_moves() -> None:
    left, right, output = (CountedMatrix(np.ones(shape)) for shape in ((2, 3), (4, 5), (2, 5)))
    with pytest.raises(ValueError, match=r"\(2, 3\) times \(4, 5\) does not make \(2, 5\)"):
        tiled_matmul(left, right, output, 1, 1, 1)
    wrong = CountedMatrix(np.ones((5, 2)))
    with pytest.raises(ValueError, match="expected"):
        tiled_matmul(left, CountedMatrix(np.ones((3, 5))), wrong, 1, 1, 1)
    assert left.loaded == wrong.stored == 0


def test_a_layer_adds_up_its_calls() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((10, 6)).astype(np.float32)
    layer = TiledLinear(weight, 4, 4, 4)
    for rows in (1, 5):
        x = random.standard_normal((rows, 10)).astype(np.float32)
        np.testing.assert_allclose(layer(x), x @ weight, rtol=1e-5, atol=1e-6)
    assert layer.weights_loaded == 10 * 6 * (1 + 2)
    assert layer.rows_loaded == (1 + 5) * 10 * 2
    assert layer.stored == (1 + 5) * 6
