"""What attacks compute of the honest messages: float64, block by block, and safe for numbers of any size.

A diverging model, or another attacker, may fill the rows with the largest floats there are. Squares of those overflow,
so such rows are first scaled by their largest entry. Sums are NumPy's and never BLAS's, see ``strategies.vectors``.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.method import Rows, Vector
from strategies.vectors import column_blocks, mean_of_rows

_CALM = 1e100
"""Rows whose largest number is between this and its inverse can be squared and summed."""


def calm(rows: Rows) -> tuple[Rows, float]:
    """Return rows that can be squared, and the unit that they are measured in; their own where that is no problem."""
    peak = float(max(np.max(rows), -np.min(rows)))
    if peak == 0.0 or not isfinite(peak) or 1 / _CALM < peak < _CALM:
        return rows, 1.0
    return rows.astype(np.float64) / peak, peak


def mean_and_deviation(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mu and sigma per coordinate.

    Args:
        rows: shape (n', d), n' at least 1; must be ``calm``.

    Returns:
        Mean and standard deviation (over n' - 1; 0 for a single row), shape (d,) each.
    """
    n, d = rows.shape
    mu, sigma = np.empty(d), np.zeros(d)
    for columns in column_blocks(rows):
        block = rows[:, columns].astype(np.float64)
        mu[columns] = block.mean(axis=0)
        if n > 1:
            sigma[columns] = block.std(axis=0, ddof=1)
    return mu, sigma


def shift(rows: Rows) -> Callable[[float], Vector]:
    """Return the function z -> mu - z sigma, per coordinate, dtype of ``rows``."""
    measured, unit = calm(rows)
    mu, sigma = mean_and_deviation(measured)
    return lambda z: fit((mu - z * sigma) * unit, rows.dtype)


def against_mean(rows: Rows, eps: float) -> Vector:
    """Return -eps mu, dtype of ``rows``."""
    return fit(-eps * mean_of_rows(rows).astype(np.float64), rows.dtype)


def fit(v: Vector, dtype: np.dtype[Any]) -> Vector:
    """Cast a float64 vector to ``dtype``; what is out of its range becomes its largest number, as inf is screened."""
    largest = np.finfo(dtype).max
    return np.clip(v, -largest, largest).astype(dtype, copy=False)
