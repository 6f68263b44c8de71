"""Rand-k against a transcription of its description in plain Python integers."""

import numpy as np
import pytest

from strategies.algorithm import Packet, Vector
from strategies.compressors import RandK, indices

WORD = 2**64


def slow_word(seed: int, i: int) -> int:
    """Return word i, from 0, of the SplitMix64 stream."""
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def slow_indices(seed: int, d: int, k: int) -> list[int]:
    """Draw one coordinate after the other, passing over those seen, until k (or the d - k to leave out) are there."""
    seen: set[int] = set()
    i = 0
    while len(seen) < min(k, d - k):
        word = slow_word(seed, i)
        i += 1
        if word < WORD // d * d:
            seen.add(word % d)
    return sorted(seen if 2 * k <= d else set(range(d)) - seen)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 1), (7, 3), (7, 4), (123, 12), (123, 123), (1000, 499), (1000, 501)])
@pytest.mark.parametrize("seed", [0, 1, 2**63, WORD - 1, 0xDEADBEEF])
def test_masks_are_those_of_the_description(seed: int, d: int, k: int) -> None:
    assert indices(seed, d, k).tolist() == slow_indices(seed, d, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reading_is_scaling_on_the_mask(dtype: type) -> None:
    d, k, seed = 30, 7, 99
    values: Vector = np.random.default_rng(0).normal(size=k).astype(dtype)
    expected = [0.0] * d
    for j, value in zip(slow_indices(seed, d, k), values.tolist(), strict=True):
        expected[j] = value * d / k
    out = RandK(k=k).decompress(Packet("rand-k", d, values, seed))
    np.testing.assert_allclose(out, np.array(expected), rtol=1e-6)
