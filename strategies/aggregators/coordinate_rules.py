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

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 1.
    """

    kind: Literal["cm"] = "cm"

    def bound(self, n: int, f: int) -> float | None:
        """Return 4 (1 + f/(n - 2f))^2."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Return the coordinate-wise median of ``rows``; it needs no f."""
        return rows.medians()


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Rule):
    """Per coordinate, drop the f lowest and the f highest values and average the other n' - 2f.

    Source:
        Yin, Chen, Kannan, Bartlett: Byzantine-robust distributed learning (ICML 2018), Definition 2.
    """

    kind: Literal["cwtm"] = "cwtm"

    def bound(self, n: int, f: int) -> float | None:
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
