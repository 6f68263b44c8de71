"""Arithmetic on vectors and rows that keeps its meaning when some of the numbers are hostile.

A Byzantine row may be 1e30 long, or hold the largest float there is, beside honest rows of 1e-3. The helpers here
neither overflow on the large rows nor lose the small ones, sum in float64 whatever they are given, and never call BLAS,
whose result may depend on the number of threads: a run must be the same bit for bit in every process.

Everything expects finite input (a compressor's ``validate`` has seen to that) and modifies none of it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from strategies.operators import Rows, Vector

BLOCK = 2**17
"""Numbers worked on at a time: a block in float64 (1 MB) stays in the processor's cache."""

_LINE = 2**14
"""The same for a single vector."""

_SMALLEST_SQUARE = 1e-280
"""A sum of squares below this has lost digits to underflow."""


def column_blocks(rows: Rows) -> Iterator[slice]:
    """Cut the coordinates into consecutive slices, so that a temporary is small however long the rows are."""
    n, d = rows.shape
    width = max(256, BLOCK // n)
    for start in range(0, d, width):
        yield slice(start, min(start + width, d))


def norm(v: Vector) -> float:
    """Return ||v||, exact to rounding from the smallest to the largest float.

    Args:
        v: shape (d,).

    Returns:
        The Euclidean norm; inf only where it exceeds the range of float64.
    """
    with np.errstate(over="ignore"):
        square = _square(v, 1.0)
    if _SMALLEST_SQUARE <= square < np.inf:
        return float(np.sqrt(square))
    peak = max(abs(float(v.max(initial=0.0))), abs(float(v.min(initial=0.0))))
    if peak == 0.0:
        return 0.0
    return peak * float(np.sqrt(_square(v, peak)))


def norms(rows: Rows) -> list[float]:
    """Return ``norm`` of every row; of rows that a block holds at once, to the same bits.

    Args:
        rows: shape (n', d).
    """
    if not 0 < rows.size <= BLOCK or rows.shape[1] > _LINE:
        return [norm(row) for row in rows]
    with np.errstate(over="ignore"):
        wide = rows.astype(np.float64, order="C")
        wide *= wide
        squares = wide.sum(axis=1)  # which sums each row as it does a vector
    safe = (squares >= _SMALLEST_SQUARE) & (squares < np.inf)
    found: list[float] = np.sqrt(squares).tolist()
    return found if safe.all() else [size if ok else norm(row) for size, ok, row in zip(found, safe, rows, strict=True)]


def _square(v: Vector, unit: float) -> float:
    """Return ||v / unit||^2, summed in float64 a block at a time, so that no long copy of v is made."""
    square = 0.0
    for block in line_blocks(len(v)):
        w = v[block].astype(np.float64)
        if unit != 1.0:
            w /= unit
        w *= w
        square += float(np.sum(w))
    return square


def line_blocks(d: int) -> Iterator[slice]:
    """Cut the coordinates of one vector into consecutive slices that stay in the processor's cache."""
    for start in range(0, d, _LINE):
        yield slice(start, start + _LINE)


def distance(x: Vector, y: Vector | None) -> float:
    """Return ||x - y||; 0 where there is no y."""
    return 0.0 if y is None else norm(x - y)


def bounded_sum(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a + b; what is out of range becomes the largest number there is, as sums of hostile vectors may be.

    Args:
        a: shape (d,) or (n', d), finite.
        b: the same dtype, finite; broadcast against ``a``.
    """
    with np.errstate(over="ignore"):
        total = a + b
    largest = np.finfo(total.dtype).max
    return np.clip(total, -largest, largest)


def mean_of_rows(rows: Rows) -> Vector:
    """Return the mean of n' rows, summed in float64, which does not overflow where its result does not.

    Args:
        rows: shape (n', d), n' at least 1.

    Returns:
        Shape (d,), dtype of ``rows``.
    """
    n = len(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        mean: Vector = np.add.reduce(rows, axis=0, dtype=np.float64) / n
    if not np.isfinite(mean).all():
        largest = np.finfo(rows.dtype).max  # which n shares of the largest number may exceed by their rounding
        with np.errstate(over="ignore"):
            mean = np.clip(np.add.reduce(rows / n, axis=0, dtype=np.float64), -largest, largest)
    return mean.astype(rows.dtype, copy=False)


def sort_columns(block: Rows) -> Rows:
    """Return a new array of shape (n', width) whose columns are those of ``block``, each sorted on its own."""
    # One column's values side by side in memory: 5 times as fast as sorting along the strided axis.
    lines = np.array(block.T, order="C")
    lines.sort(axis=1)
    return lines.T


def coordinate_median(rows: Rows) -> Vector:
    """Return the median of every coordinate; for an even n' the mean of the two middle values.

    Args:
        rows: shape (n', d).

    Returns:
        Shape (d,), dtype of ``rows``.
    """
    n, d = rows.shape
    median = np.empty(d, rows.dtype)
    for columns in column_blocks(rows):
        median[columns] = mean_of_rows(sort_columns(rows[:, columns])[(n - 1) // 2 : n // 2 + 1])
    return median


def squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Return ||x_i - x_j||^2 for all pairs of rows, never negative and exactly 0 between equal rows.

    The differences are formed first and squared in float64. The shortcut by inner products,
    ||x_i||^2 + ||x_j||^2 - 2 x_i.x_j, cancels: rows far from 0, or one huge row, would leave noise or negative numbers.

    Args:
        rows: shape (n', d).

    Returns:
        Shape (n', n'), symmetric with a zero diagonal; inf where the square exceeds the range of float64.
    """
    n = len(rows)
    squares = np.zeros((n, n))
    with np.errstate(over="ignore"):
        for columns in column_blocks(rows):
            block = rows[:, columns].astype(np.float64)
            for i in range(n - 1):
                difference = block[i + 1 :] - block[i]
                squares[i, i + 1 :] += np.einsum("ij,ij->i", difference, difference)
    return squares + squares.T
