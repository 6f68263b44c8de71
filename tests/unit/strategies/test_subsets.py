"""The searches for the best n' - f of n' rows, against looking at every set."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from strategies.aggregators import subsets
from strategies.aggregators.subsets import least_diameter, least_variance
from strategies.aggregators.weighted_rows import Array
from strategies.vectors import squared_distances


def diameter(squares: Array, rows: list[int]) -> float:
    return float(squares[np.ix_(rows, rows)].max())


def first_of_least_diameter(squares: Array, k: int) -> list[int]:
    return list(min(itertools.combinations(range(len(squares)), k), key=lambda rows: diameter(squares, list(rows))))


@pytest.mark.parametrize("seed", range(12))
def test_least_diameter_is_the_first_of_all_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    points = rng.normal(size=(n, 2)) if seed % 2 else rng.integers(0, 4, (n, 2)).astype(float)  # the latter tie
    squares = squared_distances(points)
    for k in range(1, n + 1):
        assert least_diameter(squares, k) == first_of_least_diameter(squares, k)


@pytest.mark.parametrize("f", [5, 15, 24])
def test_least_diameter_of_50_rows_is_found_although_sets_are_too_many(f: int) -> None:
    points = np.random.default_rng(f).normal(size=(50, 3))
    points[:f] += 4.0
    squares = squared_distances(points)
    rows = least_diameter(squares, 50 - f)
    assert len(set(rows)) == 50 - f
    # No swap of one row for another makes it smaller.
    for out, into in itertools.product(rows, set(range(50)) - set(rows)):
        assert diameter(squares, [into if row == out else row for row in rows]) >= diameter(squares, rows)


def test_least_diameter_without_work_to_spend_is_within_twice_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = squared_distances(np.random.default_rng(0).normal(size=(10, 2)))
    least = diameter(squares, first_of_least_diameter(squares, 7))
    for nodes in (0, 1, 3, 10):
        monkeypatch.setattr(subsets, "MOST_NODES", nodes)
        rows = least_diameter(squares, 7)
        assert len(set(rows)) == 7
        assert diameter(squares, rows) <= 4.0 * least  # squared
    monkeypatch.setattr(subsets, "MOST_LEFT_OUT", 1)
    assert diameter(squares, least_diameter(squares, 7)) <= 4.0 * least


def test_least_diameter_takes_infinite_distances() -> None:
    squares = np.array([[0.0, np.inf, 1.0], [np.inf, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert least_diameter(squares, 3) == [0, 1, 2]
    assert least_diameter(squares, 2) == [0, 2]


@pytest.mark.parametrize("seed", range(6))
def test_least_variance_is_that_of_all_sets(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(8, 3))
    rows[0] *= 1e15
    for k in (1, 2, 5, 8):
        best = least_variance(rows @ rows.T, k)

        def variance(chosen: Iterable[int]) -> float:
            return float(np.linalg.eigvalsh(np.cov(rows[list(chosen)], rowvar=False, ddof=0))[-1])

        if k > 1:
            assert best == list(min(itertools.combinations(range(8), k), key=variance))
