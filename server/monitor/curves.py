"""Curves of runs, and of several seeds together: the median and the range, on common points.

For pictures and tables alone; nothing of a run depends on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.method import Evaluation
from strategies.strategy import RoundRecord

Numbers = NDArray[np.float64]

X = Literal["round", "bytes_up", "bytes_down", "seconds"]
"""What a curve can be drawn against: rounds, bytes that came from or went to all clients so far, seconds so far."""
LABELS = {"accuracy": "accuracy", "trigger": "trigger success", "gap": "f(x) \N{MINUS SIGN} f*", "loss": "loss"}
"""What people read for each measure, wherever it is shown but on terminals."""
SHARES = frozenset({"accuracy", "trigger"})
"""The measures from 0 to 1, shown in per cent."""
LOWER_IS_BETTER = frozenset({"loss", "gap"})
"""The measures that a diverged run has infinite; the others keep their last value."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One measure of one run.

    Args:
        x: ascending, shape (points,).
        y: the measure there, same shape; infinite where the run had diverged.
        holds: the last value holds for all later x too, as for a run that has diverged and ended.
    """

    x: Numbers
    y: Numbers
    holds: bool = False


@dataclass(frozen=True, eq=False)
class Band:
    """Several runs together.

    Args:
        x: ascending, shape (points,).
        median: of the runs that have a value there; same shape, as the others. May be infinite.
        low: the lowest value of any run.
        high: the highest.
        runs: how many runs have a value there.
    """

    x: Numbers
    median: Numbers
    low: Numbers
    high: Numbers
    runs: NDArray[np.int64]

    def part(self, at: NDArray[Any]) -> "Band":
        """Return the points at these places."""
        return Band(self.x[at], self.median[at], self.low[at], self.high[at], self.runs[at])


def curve(
    rounds: Iterable[RoundRecord], x: X, y: str, *, start: Evaluation | None = None, diverged: bool = False
) -> Curve:
    """Return the points of a run at which a measure was taken.

    Args:
        rounds: of the run, in their order.
        x: what to draw against.
        y: "loss", "accuracy" or "gap".
        start: the measures of x^0; they become the point at x = 0.
        diverged: the run ended for that reason: what it lacks is infinite (loss, gap) or its last value (accuracy).
    """
    infinite = diverged and y in LOWER_IS_BETTER
    at, points = 0.0, []
    first = getattr(start, y, None)
    if first is not None and np.isfinite(first):
        points.append((0.0, float(first)))
    for record in rounds:
        at = float(record.round) if x == "round" else at + getattr(record, "round_s" if x == "seconds" else x)
        value = getattr(record.headline, y, None)
        if value is not None and (infinite or np.isfinite(value)):
            points.append((at, float(value) if np.isfinite(value) else np.inf))
    if infinite and points and np.isfinite(points[-1][1]):  # its model had no finite number left
        points.append((max(at, points[-1][0]), np.inf))
    xs, ys = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Curve(xs, ys, holds=diverged)


def band(curves: Sequence[Curve], *, log: bool = False, points: int = 400) -> Band:
    """Return the median and the range of runs.

    Each run is interpolated linearly between its own points, and counts only between its first and its last one
    (beyond the last where it ``holds``). Runs that were measured at the same x are taken as they are.

    Args:
        curves: one a run; empty ones are left out.
        log: interpolate the logarithm of y, for a log scale; values of 0 or less then count as the smallest double.
        points: at how many points at most, where the runs were measured at different x.
    """
    curves = [c for c in curves if c.x.size]
    if not curves:
        nothing = np.empty(0)
        return Band(nothing, nothing, nothing, nothing, np.empty(0, dtype=np.int64))
    x = np.unique(np.concatenate([c.x for c in curves]))
    if x.size > points and any(not np.array_equal(c.x, curves[0].x) for c in curves):
        x = np.unique(np.concatenate([np.linspace(x[0], x[-1], points), [c.x[-1] for c in curves]]))
    rows = np.stack([_at(c, x, log) for c in curves])
    there = ~np.isnan(rows)
    some = there.any(axis=0)
    x, rows, there = x[some], rows[:, some], there[:, some]
    spreads = [spread(column[known]) for column, known in zip(rows.T, there.T, strict=True)]
    median, low, high = np.array(spreads).T
    return Band(x, median, low, high, there.sum(axis=0))


def spread(values: Sequence[float] | Numbers) -> tuple[float, float, float]:
    """Return median, lowest and highest of at least one number.

    Args:
        values: may be infinite, but not NaN; between two middle ones the median is their mean.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    first, second = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(first if first == second else (first + second) / 2), float(ordered[0]), float(ordered[-1])


def _at(c: Curve, x: Numbers, log: bool) -> Numbers:
    """Return a run's values at x; NaN where it has none."""
    y = c.y
    if log:
        y = np.log(np.maximum(y, np.finfo(np.float64).tiny))
    right = np.searchsorted(c.x, x, side="left").clip(0, c.x.size - 1)
    left = np.where(c.x[right] > x, right - 1, right).clip(0)
    width = c.x[right] - c.x[left]
    share = np.where(width > 0, (x - c.x[left]) / np.where(width > 0, width, 1.0), 0.0)
    with np.errstate(invalid="ignore"):  # infinite values, replaced below
        values = y[left] + share * (y[right] - y[left])
    values = np.where((share > 0) & ~np.isfinite(y[right]), y[right], values)
    values = np.where(share == 0, y[left], values)
    values = np.exp(values) if log else values
    values = np.where(x < c.x[0], np.nan, values)
    return np.where(x > c.x[-1], c.y[-1] if c.holds else np.nan, values)
