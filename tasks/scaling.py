"""The scaling of a federation's columns, out of statistics that each party reports and of which some may lie.

A party reports for each column mean, variance, share missing and median; no extremes, which would be single records.
The scaling of a column is the median over the parties of each figure. With at most f liars among at least 2f + 1
reports, every figure lies within what honest parties reported. It is no pooled scaling: the variance between the
parties is not in it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foundation.text import one_line

LARGEST = 1e12
"""Numbers of a table are at most this, in absolute value; so are means, and variances at most its square."""
DIGITS = 6
"""Significant digits of reported statistics."""
FLOOR = 1e-6
"""A spread at most this, relative to the centre, is that of a constant column: it is divided by 1."""
_MOST_TEXT = 4 << 20
"""Characters of a text that is parsed."""


def _check(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]  # a number; NaN is in no range
        raise ValueError(f"{name} = {one_line(repr(value), 40)}: must be a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class ColumnStatistics:
    """What a party reports of one column, over its training rows.

    Args:
        mean: of the values that are there; in [-LARGEST, LARGEST].
        variance: of these, at least 0.
        missing: share of rows without a value, in [0, 1).
        median: of the values that are there.

    Raises:
        ValueError: a figure is no number or out of its range.
    """

    mean: float
    variance: float
    missing: float
    median: float

    def __post_init__(self) -> None:
        bounds = {"mean": (-LARGEST, LARGEST), "variance": (0, LARGEST**2), "missing": (0, 1)}
        for name, (low, high) in (bounds | {"median": bounds["mean"]}).items():
            _check(name, getattr(self, name), low, high)

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """Return the statistics of a column, rounded.

        Args:
            values: shape (m,); NaN where a value is missing, which some are not.
        """
        there = values[~np.isnan(values)]
        figures = there.mean(), there.var(), 1 - len(there) / len(values), np.median(there)
        return cls(*(float(f"{figure:.{DIGITS}g}") for figure in figures))


Statistics = Mapping[str, ColumnStatistics]
"""The statistics of a party by column; columns of which it has too few values are absent."""


@dataclass(frozen=True)
class ColumnScaling:
    """How the values v of a column become inputs: (v - centre) / spread, and ``fill`` in place of a missing v.

    Raises:
        ValueError: a figure is no number or out of its range.
    """

    centre: float
    spread: float
    fill: float

    def __post_init__(self) -> None:
        for name in ("centre", "fill"):
            _check(name, getattr(self, name), -LARGEST, LARGEST)
        _check("spread", self.spread, 1 / LARGEST, LARGEST)


NONE = ColumnScaling(centre=0.0, spread=1.0, fill=0.0)
"""A column as it is."""


@dataclass(frozen=True)
class Scaling:
    """The scaling of all numeric columns, and of the target of a regression.

    Args:
        columns: by name.
    """

    columns: Mapping[str, ColumnScaling]

    def to_json(self) -> str:
        """Return it as text; equal scalings give equal texts."""
        return json.dumps({name: asdict(self.columns[name]) for name in sorted(self.columns)})

    @classmethod
    def from_json(cls, text: object, columns: Sequence[str]) -> Self:
        """Return what ``to_json`` wrote.

        Args:
            text: from a file or another process.
            columns: that it must have, and no others.

        Raises:
            ValueError: one line that says what is wrong.
        """
        found = _by_column(_parsed(text), ColumnScaling, columns)
        if absent := [name for name in columns if name not in found]:
            raise ValueError(f'column "{absent[0]}": the scaling lacks it')
        return cls(found)


def read_statistics(report: object, columns: Sequence[str]) -> Statistics:
    """Return the statistics of a party, as it reported them.

    Args:
        report: from the party, as JSON has it.
        columns: that may be in it.

    Raises:
        ValueError: one line that says what is wrong: other columns, figures of other types or out of their range.
    """
    return _by_column(report, ColumnStatistics, columns)


def federated(reports: Sequence[Statistics], f: int, columns: Sequence[str]) -> Scaling:
    """Return the median over parties of the statistics of each column.

    Args:
        reports: of the parties that reported any; at most one for each.
        f: how many of the parties may lie.
        columns: of the scaling.

    Raises:
        ValueError: fewer than 2f + 1 parties reported a column; one line.
    """
    scaling = {}
    for name in columns:
        found = [report[name] for report in reports if name in report]
        if len(found) < 2 * f + 1:
            few = f"{len(found)} parties reported statistics, and at least 2f + 1 = {2 * f + 1} must, with f = {f}"
            fix = f"give its numbers, standardise = {{ {json.dumps(name)} = [CENTRE, SPREAD] }}, or leave it out"
            raise ValueError(f'column "{name}": {few}; {fix}')
        centre = median(column.mean for column in found)
        spread = math.sqrt(median(column.variance for column in found))
        if spread <= FLOOR * abs(centre) or spread < 1 / LARGEST:
            spread = 1.0
        scaling[name] = ColumnScaling(centre, spread, median(column.median for column in found))
    return Scaling(scaling)


def _parsed(text: object) -> object:
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        raise ValueError("is no text, or too long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def _by_column(data: object, kind: type[Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return one object of that kind for each column.

    Raises:
        ValueError: one line.
    """
    if not isinstance(data, dict):
        raise ValueError("is no JSON object")
    known, found = set(columns), {}
    for name, figures in data.items():
        if name not in known:
            raise ValueError(f'column "{one_line(name, 80)}": is none of the config')
        if not isinstance(figures, dict) or figures.keys() != set(kind.__annotations__):
            raise ValueError(f'column "{name}": must have {", ".join(kind.__annotations__)}')
        try:
            found[name] = kind(**figures)
        except ValueError as error:
            raise ValueError(f'column "{name}": {error}') from None
    return found
