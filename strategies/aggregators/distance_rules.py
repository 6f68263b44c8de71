"""Rules that choose rows by their distances to each other: krum, multi-krum, bulyan, mda, monna.

They need the n' x n' squared distances and, at the end, a mean of chosen rows: two passes over the array.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from strategies.aggregators.rule import Rule
from strategies.aggregators.subsets import least_diameter
from strategies.aggregators.weighted_rows import Array, WeightedRows
from strategies.method import Vector


def krum_scores(squares: Array, neighbours: int) -> Array:
    """Return the sum of each row's squared distances to its nearest other rows.

    Args:
        squares: squared distances, shape (n, n).
        neighbours: how many of the others count, at most n - 1.
    """
    squares = squares.copy()
    np.fill_diagonal(squares, -1.0)  # sorts itself first, where it is left out
    with np.errstate(over="ignore"):
        return cast(Array, np.sort(squares, axis=1)[:, 1 : 1 + neighbours].sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class Krum(Rule):
    """The row of least score: the sum of its squared distances to the n' - f - 2 nearest other rows.

    Of equal scores the lowest index wins.

    Source:
        Blanchard, El Mhamdi, Guerraoui, Stainer: Machine learning with adversaries (NeurIPS 2017), section 4.
    """

    kind: Literal["krum"] = "krum"

    def limit(self, n: int) -> int:
        """Return the largest f with 2f + 3 <= n (with more, f equal rows could vouch for each other)."""
        return (n - 3) // 2

    def bound(self, n: float, f: float) -> float | None:
        """Return 6 (n - f)/(n - 2f - 2): of the n - f - 2 neighbours at least n - 2f - 2 are honest."""
        return 6 * (n - f) / (n - 2 * f - 2)

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return a copy of the row of least score."""
        return rows.row(int(np.argmin(krum_scores(rows.squared_distances(), len(rows) - f - 2))))


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Rule):
    """The mean of the n' - f rows of least Krum score; of equal scores the lowest indices.

    Source:
        Blanchard, El Mhamdi, Guerraoui, Stainer: Machine learning with adversaries (NeurIPS 2017), section 5, with the
        largest m that may leave out all f.
    """

    kind: Literal["multi-krum"] = "multi-krum"

    def limit(self, n: int) -> int:
        """Return the largest f with 2f + 3 <= n, as for Krum."""
        return (n - 3) // 2

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the rows of least score."""
        scores = krum_scores(rows.squared_distances(), len(rows) - f - 2)
        return rows.mean_of(np.argsort(scores, kind="stable")[: len(rows) - f])


@dataclass(frozen=True, kw_only=True)
class Bulyan(Rule):
    """Krum chooses n' - 2f rows one after the other; then per coordinate the mean of the n' - 4f around their median.

    Every choice is among the rows left, m of them, with m - f - 2 neighbours in the score (one, where that is less).

    Source:
        El Mhamdi, Guerraoui, Rouault: The hidden vulnerability of distributed learning in Byzantium (ICML 2018),
        section 4, on Krum.
    """

    kind: Literal["bulyan"] = "bulyan"

    def limit(self, n: int) -> int:
        """Return the largest f with 4f + 3 <= n."""
        return (n - 3) // 4

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean around the median of what Krum chose."""
        squares = rows.squared_distances()
        left = list(range(len(rows)))
        chosen = []
        for _ in range(len(rows) - 2 * f):
            m = len(left)
            scores = krum_scores(squares[np.ix_(left, left)], min(m - 1, max(1, m - f - 2)))
            chosen.append(left.pop(int(np.argmin(scores))))
        return rows.mixed(np.eye(len(rows))[sorted(chosen)]).means_around_medians(2 * f)


@dataclass(frozen=True, kw_only=True)
class MinimumDiameterAveraging(Rule):
    """The mean of the n' - f rows whose largest distance to each other is least; of several such sets the first.

    The first by the numbers of its rows. The search is for few rows to leave out, not over all sets, and its work is
    bounded (see ``subsets.least_diameter``).

    Source:
        El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault: Genuinely distributed Byzantine machine learning (PODC 2020).
    """

    kind: Literal["mda"] = "mda"

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the set of least diameter."""
        return rows.mean_of(np.array(least_diameter(rows.squared_distances(), len(rows) - f)))


@dataclass(frozen=True, kw_only=True)
class MoNNA(Rule):
    """The mean of the n' - f rows nearest to one that is trusted, itself included; of equally near ones the first.

    It is made for peers that aggregate around their own vector. Row ``pivot`` must be known to be honest: if it is not,
    its sender chooses the result. Rows are in the order of workers, so with fewer than all workers in a round, or
    after bucketing, row 0 is another one every time.

    Args:
        pivot: number of the trusted row, from 0.

    Source:
        Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan: Robust collaborative learning with linear gradient
        overhead (ICML 2023), Algorithm 2.
    """

    kind: Literal["monna"] = "monna"
    pivot: int = 0

    def __post_init__(self) -> None:
        if self.pivot < 0:
            raise ValueError(f"pivot = {self.pivot}: must be at least 0")

    def limit(self, n: int) -> int:
        """Return the largest f below n/2; -1 where there is no row ``pivot``."""
        return (n - 1) // 2 if self.pivot < n else -1

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the rows around the pivot."""
        squares = rows.squared_distances()[self.pivot]
        squares[self.pivot] = -1.0  # first also among equal ones
        return rows.mean_of(np.argsort(squares, kind="stable")[: len(rows) - f])
