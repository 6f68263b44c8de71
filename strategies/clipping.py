"""Clipping: clip_lam(v) = min(1, lam / ||v||) v, what bounds the harm of a round with too many Byzantine clients.

The server clips every difference it receives to the radius lam, honest or not, so that no sampled cohort, not even an
entirely Byzantine one, moves its estimate further than lam.
"""

import numpy as np
from numpy.typing import NDArray

from strategies.algorithm import Rows, Vector
from strategies.vectors import norm


def clip(v: Vector, lam: float) -> Vector:
    """Return clip_lam(v) = min(1, lam / ||v||) v, with clip(0) = 0.

    Args:
        v: shape (d,), finite, of any size that floats can have; never modified.
        lam: the radius, at least 0; inf never clips.

    Returns:
        Shape (d,), dtype of ``v``, of norm at most lam up to rounding: lam * (1 + 4 eps). A v that is short enough is
        returned as it is, not copied.

    Raises:
        ValueError: lam is negative or NaN.

    Source:
        Malinovsky, Richtarik, Horvath, Gorbunov: Byzantine robustness and partial participation can be achieved at once
        (NeurIPS 2024), Algorithm 1.
    """
    if not lam >= 0:
        raise ValueError(f"lam = {lam}: must be at least 0")
    size = norm(v)
    if size <= lam:
        return v
    # In float64, also for float32: lam / ||v|| may be smaller than a float32 can hold.
    direction = v.astype(np.float64)
    if not np.isfinite(size):
        direction /= np.max(np.abs(direction))
        size = norm(direction)
    direction /= size
    direction *= lam
    return direction.astype(v.dtype, copy=False)


def clip_rows(rows: Rows, lam: float) -> tuple[Rows, NDArray[np.bool_]]:
    """Clip every row to the radius lam.

    Args:
        rows: shape (n', d), finite; never modified.
        lam: the radius, at least 0; inf never clips.

    Returns:
        The clipped rows, shape (n', d), dtype of ``rows`` (``rows`` itself where none was clipped), and which rows were
        clipped, shape (n',).
    """
    clipped = np.zeros(len(rows), np.bool_)
    result = rows
    for i, row in enumerate(rows):
        short = clip(row, lam)
        if short is not row:
            if result is rows:
                result = rows.copy()
            result[i] = short
            clipped[i] = True
    return result, clipped
