"""Rules that leave out rows which fail a test, and average the others: dnc, signguard, cge.

None of them is (f, kappa)-robust: for each there are f rows that pass its test beside equal honest rows, and move the
mean. They withstand the attacks that they were made for.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np

from strategies.aggregators.center_rules import main_direction, tamed, taming
from strategies.aggregators.clusters import largest_cluster
from strategies.aggregators.preaggregators import middle_of
from strategies.aggregators.rule import Rule
from strategies.aggregators.weighted_rows import Array, WeightedRows
from strategies.checks import check_count, check_positive
from strategies.method import Vector


@dataclass(frozen=True, kw_only=True)
class DivideAndConquer(Rule):
    """DnC: leave out the rows that lie furthest along the direction of largest variance; the mean of the others.

    A pass draws ``sub`` coordinates without replacement, and scores every row, on these coordinates, by the square of
    its part along the top singular vector of the rows minus their mean. The ceil(c f) rows of largest score are left
    out, of equal scores the later ones; none where all rows are equal there. The result is the mean of the rows that no
    pass has left out. If none remains, it is the coordinate-wise median of all rows.

    A pass looks in one direction: attackers who are near the mean along it remain, wherever else they are, and honest
    rows go in their place. So do attackers within the spread of the honest rows.

    Args:
        iters: passes, at least 1. More leave out more rows, up to iters * ceil(c f).
        c: rows left out by a pass, in units of f; above 0.
        sub: coordinates that a pass looks at, at least 1; all of them, in one pass, where there are no more.

    Source:
        Shejwalkar, Houmansadr: Manipulating the Byzantine (NDSS 2021), Algorithm 2.
    """

    kind: Literal["dnc"] = "dnc"
    iters: int = 1
    c: float = 1.0
    sub: int = 10_000

    def __post_init__(self) -> None:
        check_count(iters=self.iters, sub=self.sub)
        check_positive(c=self.c)

    def struck(self, f: int) -> int:
        """Return ceil(c f), how many rows a pass leaves out."""
        return ceil(self.c * f - 1e-9)  # 1.1 * 10 is a little more than 11

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the rows that are left."""
        n, d = len(rows), rows.rows.shape[1]
        good = np.ones(n, bool)
        for _ in range(0 if f == 0 else 1 if d <= self.sub else self.iters):
            if d <= self.sub:
                products = tamed(rows.columns(slice(None)))[0].products()[1]
            else:
                products = self._drawn_products(rows)
            _, scores = main_direction(products, np.full(n, 1.0 / n))
            good[_highest(scores, self.struck(f))] = False
        return rows.mean_of(np.flatnonzero(good)) if good.any() else rows.medians()

    def _drawn_products(self, rows: WeightedRows) -> Array:
        """Return the inner products on ``sub`` random columns, gathered a few at a time."""
        drawn = np.sort(rows.rng.choice(rows.rows.shape[1], self.sub, replace=False, shuffle=False))
        parts = [drawn[start : start + _COLUMNS] for start in range(0, self.sub, _COLUMNS)]
        factors, unit = np.ones(len(rows)), 1.0
        if rows.dtype == np.float64:
            factors, unit = taming(np.max([rows.columns(part).peaks() for part in parts], axis=0))
        products = np.zeros((len(rows), len(rows)))
        for part in parts:
            seen = rows.columns(part)
            if unit != 1.0:
                seen = seen.mixed(np.diag(factors), np.full(len(rows), unit))
            products += seen.products()[1]
        return products


@dataclass(frozen=True, kw_only=True)
class SignGuard(Rule):
    """SignGuard: the mean of rows of usual length and usual signs, clipped to the median length.

    With M the median of the lengths, rows longer than 0.1 M and shorter than 3 M pass the first test. The second looks
    at a random window of floor(d/10) neighbouring coordinates (one, if that is none): the shares of positive, zero and
    negative numbers in it, each divided by its largest share over the rows (plus 1e-8), are a point for each row, and
    the rows of the largest cluster pass (``clusters.largest_cluster``). The result is the mean of the rows that pass
    both, clipped to the median length, the lower one for an even n'. If none does, it is the coordinate-wise median of
    those that pass the first, or of all.

    It needs no f. It does not see where the signs are: any permutation of an honest gradient passes, and so does its
    negative where as many numbers are positive as negative. Rows must not have a common offset.

    Source:
        Xu, Huang, Song, Lan: Byzantine-robust federated learning through collaborative malicious gradient filtering
        (ICDCS 2022), Algorithm 2, plain SignGuard.
    """

    uses_f: ClassVar[bool] = False
    kind: Literal["signguard"] = "signguard"

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the clipped rows that pass both tests."""
        n, d = len(rows), rows.rows.shape[1]
        norms = rows.norms()
        lower, middle = float(np.sort(norms)[(n - 1) // 2]), middle_of(norms)
        with np.errstate(over="ignore"):
            usual = (norms > 0.1 * middle) & (norms < 3.0 * middle)
        width = max(1, d // 10)
        start = int(rows.rng.integers(0, d - width + 1))
        chosen = usual & largest_cluster(_sign_points(rows.columns(slice(start, start + width))))
        if not chosen.any():
            left = rows.mixed(np.eye(n)[usual]) if usual.any() else rows
            rows.taken.weights = None  # lengths may have looked at single rows
            return left.medians()
        factors = np.zeros(n)
        factors[chosen] = lower / np.maximum(norms[chosen], lower) if lower > 0.0 else 0.0
        return rows.combine(factors, float(chosen.sum()))


@dataclass(frozen=True, kw_only=True)
class ComparativeGradientElimination(Rule):
    """CGE: the mean of the n' - f shortest rows; of equally long ones the first.

    A row that is no longer than the others is never left out, so it needs rows that are short near the optimum,
    gradients or momenta, without a common offset, and few attackers: f/n' below about mu / (mu + 2L) in theory. The
    paper writes the sum, which is n' - f times the mean.

    Source:
        Gupta, Liu, Vaidya: Byzantine fault-tolerant distributed machine learning using norm-based comparative gradient
        elimination (arXiv 2008.04699); Liu, Gupta, Vaidya: Approximate Byzantine fault-tolerance in distributed
        optimization (PODC 2021).
    """

    kind: Literal["cge"] = "cge"

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the shortest rows."""
        return rows.mean_of(np.argsort(rows.norms(), kind="stable")[: len(rows) - f])


_COLUMNS = 1024
"""Columns gathered at a time."""
_ROUNDING = 1e-9
"""Scores closer than this, in units of the largest, are equal but for rounding."""


def _highest(scores: Array, count: int) -> list[int]:
    """Return the rows of the highest scores, of equal ones the later; none where all scores are 0."""
    slack, left = _ROUNDING * float(scores.max()), scores.copy()
    if slack <= 0.0:
        return []
    struck: list[int] = []
    for _ in range(min(count, len(scores))):
        struck.append(int(np.flatnonzero(left >= left.max() - slack)[-1]))
        left[struck[-1]] = -np.inf
    return struck


def _sign_points(window: WeightedRows) -> Array:
    """Return the shares of positive, zero and negative numbers relative to the largest such share, shape (n', 3)."""
    shares = window.signs() / window.rows.shape[1]
    points: Array = shares / (shares.max(axis=0) + 1e-8)
    return points
