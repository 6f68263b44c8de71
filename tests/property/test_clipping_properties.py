"""||clip_lam(v)|| <= lam, the direction stays, short vectors stay, nothing is modified."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.clipping import clip, clip_rows
from strategies.method import Vector


@st.composite
def vectors(draw: st.DrawFn) -> Vector:
    """Vectors of either type and of any size that floats have."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return draw(hnp.arrays(dtype, st.integers(1, 12), elements={"allow_nan": False, "allow_infinity": False}))


RADII = st.one_of(st.floats(1e-30, 1e30), st.sampled_from([0.0, math.inf, 1.0]))


def exact_norm(v: Vector) -> float:
    return math.hypot(*v.tolist())


@given(v=vectors(), lam=RADII)
def test_the_result_is_no_longer_than_lam(v: Vector, lam: float) -> None:
    before = v.copy()
    v.flags.writeable = False
    out = clip(v, lam)
    assert (out.shape, out.dtype) == (v.shape, v.dtype)
    assert exact_norm(out) <= lam * (1 + 4 * float(np.finfo(v.dtype).eps))
    np.testing.assert_array_equal(v, before)


@given(v=vectors(), lam=RADII)
def test_a_long_vector_is_clipped_to_lam_in_its_own_direction(v: Vector, lam: float) -> None:
    length = exact_norm(v)
    out = clip(v, lam)
    if length <= lam * (1 - 1e-9):
        np.testing.assert_array_equal(out, v)
    elif math.isfinite(length) and length > lam * (1 + 1e-9):
        expected = v.astype(np.float64) / length * lam
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 * lam)


@given(v=vectors(), lam=RADII)
def test_clipping_twice_is_clipping_once(v: Vector, lam: float) -> None:
    once = clip(v, lam)
    np.testing.assert_allclose(clip(once, lam), once, rtol=1e-6, atol=1e-44)


@given(rows=hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e3, 1e3)), lam=RADII)
def test_rows_are_clipped_one_by_one(rows: np.ndarray, lam: float) -> None:
    out, clipped = clip_rows(rows, lam)
    for row, short, was_clipped in zip(rows, out, clipped, strict=True):
        np.testing.assert_array_equal(short, clip(row, lam))
        assert was_clipped == (not np.shares_memory(clip(row, lam), row))
