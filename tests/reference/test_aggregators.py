"""Rules and pre-steps against their definitions, written as plain loops over Python numbers."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, GeometricMedian, Krum, Mean, Rule, TrimmedMean
from strategies.algorithm import Rows
from strategies.presteps import Bucketing, NearestNeighbourMixing

Lists = list[list[float]]


def slow_mean(rows: Lists, f: int) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_median(rows: Lists, f: int) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def slow_trimmed_mean(rows: Lists, f: int) -> list[float]:
    result = []
    for column in zip(*rows, strict=True):
        kept = sorted(column)[f : len(rows) - f]
        result.append(math.fsum(kept) / len(kept))
    return result


def slow_krum(rows: Lists, f: int) -> list[float]:
    best, least = rows[0], math.inf
    for i, row in enumerate(rows):
        squares = sorted(math.dist(row, other) ** 2 for j, other in enumerate(rows) if j != i)
        score = math.fsum(squares[: len(rows) - f - 2])
        if score < least:
            best, least = row, score
    return best


def slow_geometric_median(rows: Lists, f: int) -> list[float]:
    """Descend by halving steps along every axis and to every row until nothing smaller than 1e-9 helps."""

    def cost(z: list[float]) -> float:
        return math.fsum(math.dist(row, z) for row in rows)

    z = min(rows, key=cost)
    step = max(math.dist(row, z) for row in rows)
    while step > 1e-9:
        size = math.hypot(*(g := gradient(rows, z)))
        towards = [[a - step * b / size for a, b in zip(z, g, strict=True)]] if size > 0 else []
        for axis in range(len(z)):
            for sign in (-step, step):
                towards.append([a + sign * (i == axis) for i, a in enumerate(z)])
        best = min(towards, key=cost)
        if cost(best) < cost(z):
            z = best
        else:
            step /= 2
    return z


def gradient(rows: Lists, z: list[float]) -> list[float]:
    """Return the gradient of the sum of distances; rows at z itself do not count."""
    g = [0.0] * len(z)
    for row in rows:
        if (distance := math.dist(row, z)) > 0:
            g = [a + (b - c) / distance for a, b, c in zip(g, z, row, strict=True)]
    return g


def slow_nnm(rows: Lists, f: int) -> Lists:
    mixed = []
    for i, row in enumerate(rows):
        order = sorted(range(len(rows)), key=lambda j: -1.0 if j == i else math.dist(row, rows[j]))
        mixed.append(slow_mean([rows[j] for j in order[: len(rows) - f]], 0))
    return mixed


REFERENCES = [
    (Mean(), slow_mean, 1e-6),
    (CoordinateMedian(), slow_median, 1e-6),
    (TrimmedMean(), slow_trimmed_mean, 1e-6),
    (Krum(), slow_krum, 0.0),
    (GeometricMedian(), slow_geometric_median, 1e-4),
]


def sample(n: int, d: int, dtype: type, seed: int) -> Rows:
    """Draw rows of which the last third is far away."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    rows[n - n // 3 :] += 50.0
    return rows.astype(dtype)


@pytest.mark.parametrize(("rule", "slow", "tolerance"), REFERENCES, ids=[rule.kind for rule, _, _ in REFERENCES])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 4), (4, 3), (5, 2), (8, 5), (13, 3), (20, 6)])
def test_rule_is_its_definition(rule: Rule, slow, tolerance: float, dtype: type, n: int, d: int) -> None:  # type: ignore[no-untyped-def]  # any of the above
    for f in range(rule.tolerates(n) + 1):
        rows = sample(n, d, dtype, seed=n + f)
        result = rule(rows, f, np.random.default_rng(0))
        assert result.dtype == dtype
        np.testing.assert_allclose(result, slow(rows.astype(float).tolist(), f), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_nnm_is_its_definition(dtype: type, n: int) -> None:
    for f in range((n - 1) // 2 + 1):
        rows = sample(n, 4, dtype, seed=n)
        mixed, _ = NearestNeighbourMixing()(rows, f, np.random.default_rng(0))
        assert mixed.dtype == dtype
        np.testing.assert_allclose(mixed, slow_nnm(rows.astype(float).tolist(), f), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("s", [1, 2, 3, 7, 20])
def test_bucketing_is_its_definition(dtype: type, s: int) -> None:
    rows = sample(7, 3, dtype, seed=s)
    mixed, _ = Bucketing(s=s)(rows, 2, np.random.default_rng(4))
    shuffled = rows.astype(float)[np.random.default_rng(4).permutation(7)].tolist()
    expected = [slow_mean(shuffled[i : i + s], 0) for i in range(0, 7, s)]
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", [rule for rule, _, _ in REFERENCES], ids=lambda rule: rule.kind)
def test_cutting_long_rows_into_blocks_changes_nothing(rule: Rule) -> None:
    # A row of several blocks is a short one repeated: so must the result be.
    short = sample(9, 50, np.float64, seed=3)
    long = np.tile(short, (1, 1000))
    result = rule(long, 2, np.random.default_rng(0))
    np.testing.assert_allclose(result, np.tile(rule(short, 2, np.random.default_rng(0)), 1000), atol=1e-6)


def test_reference_of_the_geometric_median_descends() -> None:
    """The slow search itself is right: at its result the gradient vanishes."""
    rows = sample(9, 3, np.float64, seed=1).tolist()
    z = slow_geometric_median(rows, 0)
    assert math.hypot(*gradient(rows, z)) < 1e-4
    costs = [sum(math.dist(row, point) for row in rows) for point in (z, slow_mean(rows, 0))]
    assert all(a < b for a, b in pairwise(costs))
