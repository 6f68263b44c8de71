"""Robust aggregation rules: one vector out of n' of which up to f may be anything at all.

Each rule is a frozen dataclass, called as a function of the rows, f and a generator for its random pre-steps. The base
class ``Rule`` checks (n', f) and runs the pre-steps; a rule itself is one method of a few lines.

Which share f/n' of Byzantine rows a rule takes: cm, cwtm and rfa fewer than half, krum 2f + 3 <= n'; mean accepts any
and defends against none. Bucketing by s divides the share by about s, which ``tolerates`` and ``breakdown`` include.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from strategies.algorithm import Rows, Vector
from strategies.presteps import PreStep
from strategies.vectors import column_blocks, coordinate_median, mean_of_rows, sorted_columns, squared_distances


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """What all rules share: the pre-steps and the check of (n', f).

    Args:
        kind: the rule's name in configs.
        pre: pre-steps, applied in this order before the rule.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    defends: ClassVar[bool] = True
    """Whether the rule limits what f rows can do to its output."""

    kind: str
    pre: tuple[PreStep, ...] = ()

    @abstractmethod
    def limit(self, n: int) -> int:
        """Return the largest f that the bare rule takes for n rows, without pre-steps; negative if none."""

    @abstractmethod
    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Apply the bare rule to checked rows of shape (n', d); return shape (d,), dtype of ``rows``."""

    def __call__(self, rows: Rows, f: int, rng: np.random.Generator) -> Vector:
        """Aggregate n' vectors of which up to ``f`` may be Byzantine.

        Args:
            rows: shape (n', d), finite; never modified.
            f: how many rows to defend against; at most ``tolerates(n')``.
            rng: for random pre-steps.

        Returns:
            Shape (d,), dtype of ``rows``; an array of its own.

        Raises:
            ValueError: rows of another shape or type, or more Byzantine rows than the rule can take.
        """
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"rows of shape {rows.shape}, {rows.dtype}: must be (n', d), both at least 1, float32 or float64"
            )
        n = len(rows)
        if not self._accepts(n, f):
            raise ValueError(f"f = {f} of n' = {n} rows: {self._name()} takes at most {self.tolerates(n)}")
        for step in self.pre:
            rows, f = step(rows, f, rng)
        return self.aggregate(rows, f)

    def tolerates(self, n: int) -> int:
        """Return the largest f for n rows that rule and pre-steps can take; -1 if they cannot take n rows at all."""
        return max((f for f in range(n + 1) if self._accepts(n, f)), default=-1)

    def breakdown(self, n: int) -> float:
        """Return the largest share f/n of n rows that rule and pre-steps can take; negative if they cannot take n."""
        return self.tolerates(n) / n

    def _accepts(self, n: int, f: int) -> bool:
        if f < 0 or n < 1:
            return False
        for step in self.pre:
            if f > step.tolerates(n):
                return False
            n, f = step.after(n, f)
        return f <= self.limit(n)

    def _name(self) -> str:
        return self.kind + "".join(f" after {step.kind}" for step in reversed(self.pre))


@dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """The mean of all rows: the baseline that one Byzantine row destroys. It ignores f, so accepts any."""

    defends: ClassVar[bool] = False
    kind: Literal["mean"] = "mean"

    def limit(self, n: int) -> int:
        """Return n: nothing is promised, whatever f is."""
        return n

    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Return the mean of ``rows``."""
        return mean_of_rows(rows)


@dataclass(frozen=True, kw_only=True)
class CoordinateMedian(Rule):
    """The median of every coordinate; for an even n' the mean of the two middle values.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 1.
    """

    kind: Literal["cm"] = "cm"

    def limit(self, n: int) -> int:
        """Return the largest f below n/2."""
        return (n - 1) // 2

    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Return the coordinate-wise median of ``rows``; it needs no f."""
        return coordinate_median(rows)


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """Per coordinate, drop the f lowest and the f highest values and average the other n' - 2f.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 2.
    """

    kind: Literal["cwtm"] = "cwtm"

    def limit(self, n: int) -> int:
        """Return the largest f below n/2, so that a value is left."""
        return (n - 1) // 2

    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Return the coordinate-wise mean of ``rows`` without the f extremes at either end."""
        n, d = rows.shape
        trimmed = np.empty(d, rows.dtype)
        for columns, block in sorted_columns(rows):
            trimmed[columns] = mean_of_rows(block[f : n - f])
        return trimmed


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Rule):
    """The point z of least sum_i ||x_i - z||, by smoothed Weiszfeld steps from the coordinate-wise median.

    Lengths are in units of ``typical``, the (upper) median distance of the rows from the start, which f < n'/2 rows
    cannot inflate. A step is z <- sum_i w_i x_i / sum_i w_i with w_i = 1 / max(||x_i - z||, nu * typical). It ends when
    the gradient of the sum, each row's part of which has length at most 1, is below tol * n'. A float64 row more than
    1e100 times as large as the typical row is first drawn in to there.

    Args:
        nu: smoothing, in units of ``typical``; above 0.
        tol: length of the mean gradient at which to stop; above 0.
        max_steps: most Weiszfeld steps, at least 1.

    Source:
        Pillutla, Kakade, Harchaoui: Robust aggregation for federated learning (IEEE TSP 2022), the smoothed
        Weiszfeld algorithm.
    """

    kind: Literal["rfa"] = "rfa"
    nu: float = 1e-6
    tol: float = 1e-6
    max_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("nu", "tol"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0 and finite")
        if self.max_steps < 1:
            raise ValueError(f"max_steps = {self.max_steps}: must be at least 1")

    def limit(self, n: int) -> int:
        """Return the largest f below n/2."""
        return (n - 1) // 2

    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Return the smoothed geometric median of ``rows``; it needs no f."""
        rows, unit = _tame(rows)
        z = coordinate_median(rows).astype(np.float64)
        distances, _ = _weiszfeld(rows, z, None)
        typical = float(np.sort(distances)[len(rows) // 2])
        if typical > 0.0:  # else more than half of the rows are z itself, which then is the geometric median
            for _ in range(self.max_steps):
                weights = 1.0 / np.maximum(distances, self.nu * typical)
                distances, moved = _weiszfeld(rows, z, weights / weights.sum())
                if moved * weights.sum() <= self.tol * len(rows):  # a step is the gradient over the sum of weights
                    break
        return (z * unit).astype(rows.dtype)


def _tame(rows: Rows) -> tuple[Rows, float]:
    """Bring rows whose squares would leave float64 to the unit of the typical row; return them and that unit."""
    peaks = np.max(np.abs(rows), axis=1).astype(np.float64)
    typical = float(np.sort(peaks)[len(rows) // 2])
    if peaks.max() < 1e100 and (typical > 1e-100 or typical == 0.0):
        return rows, 1.0
    unit = float(2.0 ** np.floor(np.log2(typical))) if typical > 0.0 else 1.0
    with np.errstate(over="ignore"):
        return np.clip(rows / unit, -1e100, 1e100), unit


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

    def aggregate(self, rows: Rows, f: int) -> Vector:
        """Return a copy of the row of least score."""
        squares = squared_distances(rows)
        np.fill_diagonal(squares, -1.0)  # sorts itself first, where it is left out
        others = np.sort(squares, axis=1)[:, 1:]
        with np.errstate(over="ignore"):
            scores = others[:, : len(rows) - f - 2].sum(axis=1)
        return np.array(rows[np.argmin(scores)])
