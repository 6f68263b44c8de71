"""Rules that weigh rows by where they lie around a centre: rfa, centered-clip, caf, smea.

All of them end at a weighted mean z = c + sum_i a_i (x_i - c) of rows and a centre c, and what they need on the way,
distances ||x_i - z|| and variances, follows from the n' x n' inner products of the rows about c. With the
coordinate-wise median as c no row hides the others: a_i is small where x_i - c is huge, and only their product counts.
So steps run on small matrices, and the array is passed over twice.
"""

from dataclasses import dataclass
from math import comb, frexp, ldexp
from typing import ClassVar, Literal

import numpy as np

from strategies.aggregators.rule import Rule
from strategies.aggregators.subsets import least_variance
from strategies.aggregators.weighted_rows import Array, WeightedRows
from strategies.checks import check_count, check_positive
from strategies.method import Rows, Vector
from strategies.vectors import column_blocks
from strategies.weights import middle


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Rule):
    """The point z of least sum_i max(||x_i - z||, smoothed): the geometric median, smoothed near the rows.

    Weiszfeld's steps start at the coordinate-wise median, whose distance to the middle row, ``typical``, sets the unit,
    so that neither the size of the rows nor that of a few huge ones matters. A step is
    z <- sum_i w_i x_i / sum_i w_i with w_i = 1 / max(||x_i - z||, nu * typical). It ends when the gradient of the sum,
    each row's part of which has length at most 1, is below tol * n'. A float64 row more than 1e100 times as large as
    the typical row is first drawn in to there.

    With declared weights each row's part counts by its weight, and a row with half of the weight is the result.

    Args:
        nu: smoothing, in units of ``typical``; above 0.
        tol: length of the mean gradient at which to stop; above 0.
        max_steps: most Weiszfeld steps, at least 1.

    Source:
        Pillutla, Kakade, Harchaoui: Robust aggregation for federated learning (IEEE TSP 2022), the smoothed
        Weiszfeld algorithm.
    """

    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["rfa"] = "rfa"
    nu: float = 1e-6
    tol: float = 1e-6
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive(nu=self.nu, tol=self.tol)
        check_count(max_steps=self.max_steps)

    def bound(self, n: float, f: float) -> float | None:
        """Return 4 (1 + f/(n - 2f))^2, which holds for the exact geometric median."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the smoothed geometric median of ``rows``; it needs no f."""
        if rows.mass is not None and 2 * rows.mass.max() >= rows.mass.sum():
            return rows.row(int(rows.mass.argmax()))
        rows, unit = tamed(rows)
        z = self._of_large(rows) if rows.large else self._of_small(rows)
        return _untamed(z, unit)

    def _of_small(self, seen: WeightedRows) -> Vector:
        """Step through the rows themselves."""
        rows, pull = seen.array(), _pull(seen)
        z = seen.medians().astype(np.float64)
        distances, _ = _weiszfeld(rows, z, None)
        typical = middle(distances, seen.counts)[1]
        if typical > 0.0:  # else more than half of the rows are z itself, which then is the geometric median
            for _ in range(self.max_steps):
                weights = pull / np.maximum(distances, self.nu * typical)
                distances, moved = _weiszfeld(rows, z, weights / weights.sum())
                if moved * weights.sum() <= self.tol * len(rows):  # a step is the gradient over the sum of weights
                    break
            seen.note(weights / weights.sum())
        return z.astype(rows.dtype)

    def _of_large(self, rows: WeightedRows) -> Vector:
        """Step through the inner products about the coordinate-wise median.

        Formed in float32 where that will do: it tells distances down to a thousandth of the others.
        """
        median = None if rows.mass is None else rows.medians()
        c, products = rows.products(median, exact=False)
        z, nearest = self._step(rows, c, products)
        if nearest < 0.03 and rows.dtype == np.float32:
            c, products = rows.products(median)
            z, _ = self._step(rows, c, products)
        return z

    def _step(self, rows: WeightedRows, c: Vector, products: Array) -> tuple[Vector, float]:
        """Return the result and its distance to the nearest row, in units of ``typical``."""
        distances = np.sqrt(np.diagonal(products))
        typical = middle(distances, rows.counts)[1]
        if typical == 0.0:
            return c, 1.0
        a, pull = np.zeros(len(rows)), _pull(rows)
        for _ in range(self.max_steps):
            weights = pull / np.maximum(distances, self.nu * typical)
            step = weights / weights.sum() - a
            moved = float(np.sqrt(max(0.0, quadratic(products, step))))
            a = a + step
            distances = distances_to(products, a)
            if moved * weights.sum() <= self.tol * len(rows):
                break
        nearest = float(distances.min()) / typical
        return rows.combine(a, center=c, share=1.0 - float(a.sum())), nearest


@dataclass(frozen=True, kw_only=True)
class CenteredClipping(Rule):
    """v <- v + mean_i clip_tau(x_i - v), a few times: no row moves v further than tau / n' in a step.

    It starts from the caller's centre, its previous aggregate, and without one from the coordinate-wise median. With
    declared weights the mean is the weighted one: a row of weight w moves v by at most w tau in a step.

    Args:
        tau: the radius, above 0 and finite, in the units of what is aggregated; None for the median distance of the
            rows to v, anew in every step, which is at most the distance of some honest row.
        steps: how many, at least 1.

    Source:
        Karimireddy, He, Jaggi: Learning from history for Byzantine robust optimization (ICML 2021), equation (CC).
    """

    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["centered-clip"] = "centered-clip"
    tau: float | None = None
    steps: int = 3

    def __post_init__(self) -> None:
        check_positive(tau=self.tau)
        check_count(steps=self.steps)

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return v after the last step; it needs no f."""
        n = len(rows)
        rows, unit = tamed(rows)
        start = None if center is None else (center.astype(np.float64) / unit).astype(rows.dtype)
        if start is None and rows.mass is not None:
            start = rows.medians()
        counts, total = rows.counts, int(rows.counts.sum())
        c, products = rows.products(start, exact=False)
        tau = None if self.tau is None else self.tau / unit
        distances, a = np.sqrt(np.diagonal(products)), np.zeros(n)
        for _ in range(self.steps if distances.any() else 0):
            radius = middle(distances, counts)[0] if tau is None else tau
            factors = radius / np.maximum(distances, radius) if radius > 0.0 else (distances == 0.0).astype(float)
            factors *= counts
            a = (1.0 - factors.sum() / total) * a + factors / total
            distances = distances_to(products, a)
        v = rows.combine(a, center=c, share=1.0 - float(a.sum()))
        return _untamed(v, unit)


@dataclass(frozen=True, kw_only=True)
class CovarianceFilter(Rule):
    """CAF: weigh rows down along the direction of largest variance, again and again; the mean of least variance.

    Weights start at 1. While they sum to more than n' - 2f: take the weighted mean mu, the largest eigenvalue of the
    weighted covariance and its direction v; then w_i <- w_i (1 - t_i / max t), t_i = ((x_i - mu).v)^2, the maximum over
    rows that still have weight. So each step takes at least one row's weight, and n' steps are the most. (With the
    maximum over all rows, as in published code, a huge row that has no weight left keeps the others from losing
    theirs, and there is no end.) The result is the mean mu with the least of those eigenvalues.

    Source:
        Allouah, Guerraoui, Stephan: Towards trustworthy federated learning with untrusted participants (ICML 2025),
        Algorithm 2.
    """

    kind: Literal["caf"] = "caf"

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the weighted mean of least variance."""
        n = len(rows)
        rows, unit = tamed(rows)
        c, products = rows.products()
        weights, best, least = np.ones(n), np.zeros(n), np.inf
        for step in range(n):
            if step and weights.sum() <= n - 2 * f:
                break
            share = weights / weights.sum()
            variance, t = main_direction(products, share)
            if variance < least:
                least, best = variance, share
            most = t.max()
            if most <= 0.0:  # what still has weight is one point
                break
            weights = weights * (1.0 - t / most)
        mean = rows.combine(best, center=c, share=1.0 - float(best.sum()))
        return _untamed(mean, unit)


@dataclass(frozen=True, kw_only=True)
class SmallestVarianceAveraging(Rule):
    """SMEA: the mean of the n' - f rows whose covariance has the smallest largest eigenvalue; the first of several.

    The first by the numbers of its rows. All sets are looked at, so it refuses an f that gives more than ``MOST_SETS``.

    Source:
        Allouah, Guerraoui, Gupta, Pinot, Stephan: On the privacy-robustness-utility trilemma in distributed learning
        (ICML 2023), section 4 (smallest maximum eigenvalue averaging).
    """

    kind: Literal["smea"] = "smea"

    def limit(self, n: int) -> int:
        """Return the largest f below n/2 with at most ``MOST_SETS`` sets of n - f rows."""
        return max((f for f in range((n + 1) // 2) if comb(n, f) <= MOST_SETS), default=-1)

    def bound(self, n: float, f: float) -> float | None:
        """Return 4 f/(n - f) (1 + f/(n - 2f))^2; it also holds for the largest eigenvalue of the covariance alone."""
        return 4 * f / (n - f) * (1 + f / (n - 2 * f)) ** 2

    def refusal(self, n: int, f: int) -> str:
        """Say how many sets there are where it is they that are too many."""
        return f": {comb(n, f)} sets of n' - f, more than {MOST_SETS}" if 2 * f < n else ""

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of the set of least variance."""
        rows, unit = tamed(rows)
        _, products = rows.products()
        mean = rows.mean_of(np.array(least_variance(products, len(rows) - f)))
        return _untamed(mean, unit)


MOST_SETS = 20_000
"""Sets of rows that smea looks at: a second or so. 5 of 20 give 15,504."""


def _pull(rows: WeightedRows) -> Array:
    """Return how strongly each row draws: its mass in units of the mean mass, shape (n',); ones without masses."""
    counts = rows.counts
    pull: Array = counts * len(rows) / counts.sum()
    return pull


def quadratic(products: Array, a: Array) -> float:
    """Return a.(products a), the squared length of sum_i a_i (x_i - c)."""
    return float(np.einsum("i,ij,j->", a, products, a))


def distances_to(products: Array, a: Array) -> Array:
    """Return ||x_i - z||, shape (n',), for z = c + sum_i a_i (x_i - c)."""
    along = np.einsum("ij,j->i", products, a)
    squares: Array = np.diagonal(products) - 2.0 * along + float(np.einsum("i,i->", along, a))
    return np.sqrt(np.maximum(squares, 0.0))


def main_direction(products: Array, share: Array) -> tuple[float, Array]:
    """Return the largest eigenvalue of the covariance under weights ``share`` (summing to 1), and every row's part.

    Returns:
        The eigenvalue, and ((x_i - mu).v)^2 for its direction v; 0 for rows without weight.
    """
    has = share > 0.0
    w = share[has]
    inner = products[np.ix_(has, has)]
    along = np.einsum("ij,j->i", inner, w)
    inner = inner - along[:, None] - along + float(np.einsum("i,i->", along, w))  # about the mean
    root = np.sqrt(w)
    # Of n' x n' numbers: below what any BLAS shares among threads.
    values, vectors = np.linalg.eigh(root[:, None] * inner * root)
    t = np.zeros(len(share))
    t[has] = max(float(values[-1]), 0.0) * vectors[:, -1] ** 2 / w
    return float(values[-1]), t


def tamed(rows: WeightedRows) -> tuple[WeightedRows, float]:
    """Bring float64 rows whose squares would leave float64 to the unit of the typical row; return them and that unit.

    Rows more than 1e100 units long are scaled to there; they keep their direction.
    """
    if rows.dtype == np.float32:
        return rows, 1.0
    factors, unit = taming(rows.peaks())
    if unit == 1.0:
        return rows, 1.0
    rows.taken.unit = unit
    return rows.mixed(np.diag(factors), np.full(len(rows), unit)), unit


def taming(peaks: Array) -> tuple[Array, float]:
    """Return factors, shape (n',), and the unit, by which ``tamed`` multiplies and divides rows with these peaks.

    Ones where their squares stay within float64.
    """
    largest = float(peaks.max())
    typical = float(np.sort(peaks)[len(peaks) // 2]) or largest
    if largest < 1e100 and (typical > 1e-100 or typical == 0.0):
        return np.ones(len(peaks)), 1.0
    unit = ldexp(0.5, frexp(max(typical, 1e-300))[1])
    with np.errstate(over="ignore"):
        return np.minimum(1.0, 1e100 / np.maximum(peaks / unit, 1.0)), unit


def _untamed(v: Vector, unit: float) -> Vector:
    """Return v without the unit; what rounding has lifted beyond the largest number there is becomes that."""
    if unit == 1.0:
        return v
    largest = np.finfo(v.dtype).max
    with np.errstate(over="ignore"):
        return np.clip(v * v.dtype.type(unit), -largest, largest)


def _weiszfeld(rows: Rows, z: Vector, weights: Vector | None) -> tuple[Vector, float]:
    """Move z, in place, to the weighted mean of the rows; return the distances to it, shape (n',), and how far it went.

    One pass over the rows does both, as it is memory that takes the time. Without weights z stays.
    """
    squares, moved = np.zeros(len(rows)), 0.0
    for columns in column_blocks(rows):
        block = rows[:, columns].astype(np.float64)
        if weights is not None:
            target = np.einsum("i,ij->j", weights, block)
            moved += float(np.sum((target - z[columns]) ** 2))
            z[columns] = target
        block -= z[columns]
        squares += np.einsum("ij,ij->i", block, block)
    return np.sqrt(squares), float(np.sqrt(moved))
