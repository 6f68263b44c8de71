"""Clipping by hand."""

import numpy as np
import pytest

from strategies.clipping import clip, clip_rows
from strategies.operators import Rows
from strategies.vectors import BLOCK, norm, norms


@pytest.mark.parametrize(
    ("v", "lam", "expected"),
    [
        ([3.0, 4.0], 1.0, [0.6, 0.8]),
        ([3.0, 4.0], 5.0, [3.0, 4.0]),
        ([3.0, 4.0], 10.0, [3.0, 4.0]),
        ([3.0, 4.0], np.inf, [3.0, 4.0]),
        ([3.0, 4.0], 0.0, [0.0, 0.0]),
        ([0.0, 0.0], 0.0, [0.0, 0.0]),
        ([0.0, 0.0], 1.0, [0.0, 0.0]),
        ([3e200, 4e200], 5.0, [3.0, 4.0]),
        ([1.2e308, 1.6e308], 5.0, [3.0, 4.0]),
        ([3e-200, 4e-200], 5e-201, [3e-201, 4e-201]),
    ],
)
def test_clip(v: list[float], lam: float, expected: list[float]) -> None:
    np.testing.assert_allclose(clip(np.array(v), lam), expected, rtol=1e-14)


def test_clip_of_huge_float32_rows() -> None:
    out = clip(np.array([3e38, -3e38, 0.0], np.float32), np.sqrt(2.0))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [1.0, -1.0, 0.0], rtol=1e-6)


def test_clip_leaves_a_short_vector_alone() -> None:
    v = np.array([1.0, 2.0])
    assert np.shares_memory(clip(v, 3.0), v)


def test_clip_rows_says_which_were_clipped() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -7.0]])
    before = rows.copy()
    out, clipped = clip_rows(rows, 1.0)
    np.testing.assert_allclose(out, [[0.6, 0.8], [0.3, 0.4], [0.0, -1.0]])
    assert clipped.tolist() == [True, False, True]
    np.testing.assert_array_equal(rows, before)


def test_clip_rows_returns_the_rows_themselves_where_none_is_clipped() -> None:
    rows = np.ones((2, 2))
    out, clipped = clip_rows(rows, np.inf)
    assert out is rows
    assert not clipped.any()


def test_clip_rows_of_no_rows() -> None:
    out, clipped = clip_rows(np.zeros((0, 3)), 1.0)
    assert (out.shape, clipped.shape) == ((0, 3), (0,))


@pytest.mark.parametrize("lam", [-1.0, float("nan")])
def test_a_radius_that_is_none_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=f"lam = {lam}: must be at least 0"):
        clip(np.ones(2), lam)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 7, 8, 129, 1000])
def test_rows_are_measured_and_clipped_together_to_the_bits_of_each_alone(d: int, dtype: type) -> None:
    rng = np.random.default_rng(d)
    rows: Rows = (rng.normal(size=(9, d)) * 10.0 ** rng.integers(-3, 3, (9, 1))).astype(dtype)
    rows[0] = 0
    for given in (rows, np.asfortranarray(rows)):
        assert norms(given) == [norm(row) for row in given]
        out, clipped = clip_rows(given, 0.5)
        long = np.tile(given, (BLOCK // rows.size + 1, 1))  # too many to be worked on at once
        alone, cut = clip_rows(long, 0.5)
        assert out.tobytes() == alone[:9].tobytes()
        assert clipped.tolist() == cut[:9].tolist()


def test_norms_of_rows_beyond_what_squares_can_hold() -> None:
    rows = np.array([[1e300, 1e300], [0.0, 0.0], [3e-200, 4e-200], [3.0, 4.0]])
    assert norms(rows) == [norm(row) for row in rows]
    assert norms(rows)[1:] == pytest.approx([0.0, 5e-200, 5.0])
