"""Pre-aggregators: what is done to the received rows before a robust rule sees them.

A pre-aggregator maps n' rows of which f may be Byzantine to other rows of which f' may be. Bucketing averages random
groups, so that honest rows differ less, but every Byzantine row spoils a whole group; nearest-neighbour mixing averages
each row with those around it and keeps f; clipping shortens what is long, and keeps f. The rules of ``aggregators`` run
them in the order of their field ``pre``.

A pre-aggregator returns ``WeightedRows``: weights, not a new array. ``__call__`` writes the new rows out.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, overload

import numpy as np
from numpy.random import Generator

from strategies.aggregators.weighted_rows import Array, WeightedRows
from strategies.arrays import ArrayT, Random, check_finite, generator, read_rows, whole
from strategies.checks import check_count, check_positive
from strategies.weights import heaviest, middle


@dataclass(frozen=True, kw_only=True)
class _PreAggregator(ABC):
    """What all pre-aggregators share: the call on an array."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    takes_weights: ClassVar[bool] = False
    """Whether it has a meaning for rows with declared weights."""
    uses_f: ClassVar[bool] = True
    """Whether what it returns depends on f."""

    def tolerates(self, n: int) -> int:
        """Return the largest f that this step takes for n rows: fewer than half, unless a class says otherwise."""
        return (n - 1) // 2

    def after(self, n: int, f: int) -> tuple[int, int]:
        """Return (n', f') for n rows with f Byzantine: both unchanged, unless a class says otherwise."""
        return n, f

    def spread(self, f: int) -> int:
        """Return how many of the rows before it f Byzantine rows can spoil, whose weights then count against it."""
        return f

    def bound(self, n: float, f: float, kappa: float) -> float | None:
        """Return kappa of this step followed by a rule with the given one, see ``Rule.kappa``; None if not known."""
        return None

    @abstractmethod
    def mix(self, rows: WeightedRows, f: int, rng: Generator) -> WeightedRows:
        """Return what the rule sees in place of ``rows``, of which f may be Byzantine."""

    @overload
    def __call__(self, rows: ArrayT, f: int, rng: Random = None) -> tuple[ArrayT, int]: ...
    @overload
    def __call__(self, rows: Sequence[ArrayT], f: int, rng: Random = None) -> tuple[ArrayT, int]: ...
    def __call__(self, rows: Any, f: int, rng: Random = None) -> tuple[Any, int]:
        """Apply the step to an array.

        Args:
            rows: as a rule takes them: a matrix, shape (n, d), or a list of arrays; finite. Never modified.
            f: how many of them may be Byzantine.
            rng: for what the step draws, a generator or a seed; a step that draws nothing needs none.

        Returns:
            Rows of shape (n', d), of the type and on the device of ``rows``, and f'.

        Raises:
            ValueError: no such rows, f is out of bounds, or a step that draws and no ``rng``; one line.
        """
        received, form = read_rows(rows)
        n, f = len(received), whole(f)
        if not 0 <= f <= self.tolerates(n):
            raise ValueError(f"f = {f} of n = {n} rows: must be from 0 to {self.tolerates(n)}")
        check_finite(received)
        mixed = self.mix(WeightedRows(received), f, generator(rng, self._label)).array()
        return form.back(mixed, many=True), self.after(n, f)[1]

    @property
    def _label(self) -> str:
        return str(getattr(self, "kind", type(self).__name__))


@dataclass(frozen=True, kw_only=True)
class Bucketing(_PreAggregator):
    """Means of random groups of s rows; the last group may be smaller and is divided by its own size.

    With declared weights a group's row is the weighted mean of its rows, and its weight is their sum. So a smaller last
    group then counts less, while without weights, or with equal ones, it counts as much as the others.

    Args:
        s: rows in a bucket, at least 1. A share delta of Byzantine rows becomes up to s * delta of the buckets.

    Source:
        Karimireddy, He, Jaggi: Byzantine-robust learning on heterogeneous datasets via bucketing (ICLR 2022),
        Algorithm 1.
    """

    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["bucketing"] = "bucketing"
    s: int = 2

    def __post_init__(self) -> None:
        check_count(s=self.s)

    def tolerates(self, n: int) -> int:
        """Return n: any f, the rule after it decides."""
        return n

    def after(self, n: int, f: int) -> tuple[int, int]:
        """Return (n', f') for n rows with f Byzantine: ceil(n/s) buckets, of which f may be spoilt."""
        buckets = -(-n // self.s)
        return buckets, min(f, buckets)

    def spread(self, f: int) -> int:
        """Return s f: in the worst case each Byzantine row shares its bucket with the heaviest of the others."""
        return self.s * f

    def mix(self, rows: WeightedRows, f: int, rng: Generator) -> WeightedRows:
        """Return the means of the buckets of a random permutation."""
        n, counts = len(rows), rows.counts
        weights, order = np.zeros((-(-n // self.s), n)), rng.permutation(n)
        weights[np.arange(n) // self.s, order] = counts[order]
        sums = weights.sum(axis=1)
        return rows.mixed(weights, sums, None if rows.mass is None else sums.astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class NearestNeighbourMixing(_PreAggregator):
    """Every row becomes the mean of its n - f nearest rows, itself included; of equally near ones the first.

    With declared weights: the weighted mean of its nearest rows, as far as all weight but that of the f heaviest rows
    reaches; of the last of them only the part that still fits. A row's weight stays.

    Source:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by mixing (AISTATS 2023).
    """

    takes_weights: ClassVar[bool] = True
    kind: Literal["nnm"] = "nnm"

    def bound(self, n: float, f: float, kappa: float) -> float | None:
        """Return 8 f/(n - f) (1 + kappa)."""
        return 8 * f / (n - f) * (1 + kappa)

    def mix(self, rows: WeightedRows, f: int, rng: Generator) -> WeightedRows:
        """Return the means of neighbours; nothing is drawn."""
        n, counts = len(rows), rows.counts
        squares = rows.squared_distances()
        np.fill_diagonal(squares, -1.0)  # a row is its own nearest, also among equal ones
        nearest = np.argsort(squares, axis=1, kind="stable")
        reach, each = int(counts.sum()) - heaviest(counts, f), counts[nearest]
        left = reach - (np.cumsum(each, axis=1) - each)  # when it is the row's turn
        weights = np.zeros((n, n))
        np.put_along_axis(weights, nearest, np.clip(left, 0, each).astype(np.float64), axis=1)
        return rows.mixed(weights, np.full(n, float(reach)))


@dataclass(frozen=True, kw_only=True)
class StaticClipping(_PreAggregator):
    """Rows longer than c are shortened to length c.

    Before ``mean`` it bounds what a row can do, and does not remove it: a share delta of Byzantine rows moves the mean
    by up to delta (c + length of the honest mean), also where all honest rows agree.

    Args:
        c: the radius, above 0 and finite, in the units of what is aggregated; or "median" for the median length of the
            rows, by their weights where these are declared, which fewer than half of them cannot move out of the range
            of the others' lengths.

    Source:
        Sun, Kairouz, Suresh, McMahan: Can you really backdoor federated learning? (arXiv 1911.07963), section 4.
    """

    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["static-clip"] = "static-clip"
    c: float | Literal["median"] = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.c, str):
            if self.c != "median":
                raise ValueError(f'c = {self.c!r}: must be a number above 0, or "median"')
        else:
            check_positive(c=self.c)

    def tolerates(self, n: int) -> int:
        """Return n, as the rule after it decides; the largest f below n/2 where the radius is the median."""
        return (n - 1) // 2 if self.c == "median" else n

    def mix(self, rows: WeightedRows, f: int, rng: Generator) -> WeightedRows:
        """Return the clipped rows; nothing is drawn."""
        norms = rows.norms()
        if not isinstance(self.c, str):
            return _clipped(rows, norms, self.c)
        lower, upper = middle(norms, rows.counts)
        return _clipped(rows, norms, 0.5 * lower + 0.5 * upper)


@dataclass(frozen=True, kw_only=True)
class AdaptiveRobustClipping(_PreAggregator):
    """The floor(2 f (n - f) / n) longest rows are shortened to the length of the longest of the others.

    Source:
        Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan: Adaptive gradient clipping for robust federated learning
        (ICLR 2025; arXiv 2405.14432), Algorithm 2.
    """

    kind: Literal["arc"] = "arc"

    def mix(self, rows: WeightedRows, f: int, rng: Generator) -> WeightedRows:
        """Return the clipped rows; nothing is drawn."""
        n, norms = len(rows), rows.norms()
        return _clipped(rows, norms, float(np.sort(norms)[n - 2 * f * (n - f) // n - 1]))


def middle_of(norms: Array) -> float:
    """Return the median, shape (n,) of what may be inf; for an even n the mean of the two middle values."""
    ordered = np.sort(norms)
    return 0.5 * float(ordered[(len(norms) - 1) // 2]) + 0.5 * float(ordered[len(norms) // 2])


def _clipped(rows: WeightedRows, norms: Array, radius: float) -> WeightedRows:
    """Return the rows with those longer than ``radius`` scaled to it; a row too long for float64 becomes 0."""
    long = norms > radius
    if not long.any():
        return rows
    factors = np.ones(len(rows))
    factors[long] = radius / norms[long]
    return rows.mixed(np.diag(factors))


PreAggregator = Bucketing | NearestNeighbourMixing | StaticClipping | AdaptiveRobustClipping
"""Any pre-aggregator, distinguished by ``kind``."""
