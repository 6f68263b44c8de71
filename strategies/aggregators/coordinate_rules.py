"""Rules that look at every coordinate on its own: mean, median, trimmed mean, mean around the median."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.aggregators.rule import Rule
from strategies.aggregators.weighted_rows import WeightedRows
from strategies.method import Vector


@dataclass(frozen=True, kw_only=True)
class Mean(Rule):
    """The mean of all rows: the baseline that one Byzantine row destroys. It ignores f, so accepts any."""

    defends: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["mean"] = "mean"

    def limit(self, n: int) -> int:
        """Return n: nothing is promised, whatever f is."""
        return n

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the mean of ``rows``."""
        return rows.mean()


@dataclass(frozen=True, kw_only=True)
class CoordinateMedian(Rule):
    """The median of every coordinate; for an even n' the mean of the two middle values.

    With declared weights, W(v) the weight of the rows whose value is at most v: the middle of the least v with
    W(v) >= 1/2 and the least v with W(v) > 1/2.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 1.
    """

    takes_weights: ClassVar[bool] = True
    uses_f: ClassVar[bool] = False
    kind: Literal["cm"] = "cm"

    def bound(self, n: float, f: float) -> float | None:
        """Return 4 (1 + f/(n - 2f))^2."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the coordinate-wise median of ``rows``; it needs no f."""
        return rows.medians()


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """Per coordinate, drop the f lowest and the f highest values and average the other n' - 2f.

    With declared weights, as much weight is dropped at either end as the f heaviest rows have; a value at a cut counts
    with the part of its weight that is left.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 2.
    """

    takes_weights: ClassVar[bool] = True
    kind: Literal["cwtm"] = "cwtm"

    def bound(self, n: float, f: float) -> float | None:
        """Return 6 r (1 + r) for r = f/(n - 2f)."""
        return 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f))

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the coordinate-wise mean of ``rows`` without the f extremes at either end."""
        return rows.trimmed_means(f)


@dataclass(frozen=True, kw_only=True)
class MeanAroundMedian(Rule):
    """Per coordinate, the mean of the n' - f values nearest to the median; of two equally near ones the lower.

    Source:
        Xie, Koyejo, Gupta: Generalized Byzantine-tolerant SGD (arXiv 1802.10116), section 4.3.
    """

    kind: Literal["meamed"] = "meamed"

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the coordinate-wise mean of the values of ``rows`` around the median."""
        return rows.means_around_medians(f)
