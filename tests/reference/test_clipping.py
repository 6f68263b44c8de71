"""Clipping against its definition in Python's own numbers, long vectors included."""

import math

import numpy as np
import pytest

from strategies.clipping import clip
from strategies.method import Vector
from strategies.vectors import norm


def slow_clip(v: list[float], lam: float) -> list[float]:
    length = math.hypot(*v)
    factor = 1.0 if length <= lam else lam / length
    return [factor * a for a in v]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 2, 17, 100_000])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e5, math.inf])
def test_clip_is_its_definition(dtype: type, d: int, size: float, lam: float) -> None:
    v: Vector = (np.random.default_rng(d).normal(size=d) * size).astype(dtype)
    expected = slow_clip(v.astype(float).tolist(), lam)
    np.testing.assert_allclose(clip(v, lam), expected, rtol=4 * float(np.finfo(dtype).eps) + 1e-14, atol=1e-44)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm_of_a_long_vector_is_exact_to_rounding(dtype: type) -> None:
    v: Vector = np.random.default_rng(0).normal(size=1_000_000).astype(dtype)
    exact = math.sqrt(math.fsum(a * a for a in v.astype(float).tolist()))
    assert norm(v) == pytest.approx(exact, rel=1e-14)
