"""Clipping by hand."""

import numpy as np
import pytest

from strategies.clipping import clip, clip_rows


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
