"""Clipping: clip_lam(v) = min(1, lam / ||v||) v, what bounds the harm of a round with too many Byzantine clients.

The server clips every difference it receives to the radius lam, honest or not, so that no sampled cohort, not even an
entirely Byzantine one, moves its estimate further than lam.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from strategies.operators import Rows, Vector
from strategies.vectors import BLOCK, line_blocks, norm, norms


def clip(v: Vector, lam: float) -> Vector:
    """Return clip_lam(v), shape (d,); see ``clip_rows``. A v that is short enough is not copied."""
    return cast(Vector, clip_rows(v[None], lam)[0][0])


def clip_rows(rows: Rows, lam: float | None) -> tuple[Rows, NDArray[np.bool_]]:
    """Return clip_lam(v) = min(1, lam / ||v||) v for every row v, with clip(0) = 0.

    Args:
        rows: shape (n', d), finite; never modified.
        lam: the radius, at least 0; None for no clipping.

    Returns:
        The clipped rows, shape (n', d), dtype of ``rows``, of norm at most lam (1 + 4 eps); ``rows`` itself where none
        was clipped. And which rows were clipped, shape (n',).

    Raises:
        ValueError: lam is negative or NaN.

    Source:
        Malinovsky, Richtarik, Horvath, Gorbunov: Byzantine robustness and partial participation can be achieved at once
        (NeurIPS 2024), Algorithm 1.
    """
    if lam is None:
        return rows, np.zeros(len(rows), np.bool_)
    if not lam >= 0:
        raise ValueError(f"lam = {lam}: must be at least 0")
    sizes = np.array(norms(rows))
    clipped = sizes > lam
    if not clipped.any():
        return rows, clipped
    result = np.array(rows)
    if rows.size <= BLOCK and sizes.max() < np.inf:  # at once what a block holds
        result[clipped] = rows[clipped].astype(np.float64) / sizes[clipped, None] * lam
        return result, clipped
    for i in np.flatnonzero(clipped):
        _shorten(rows[i], float(sizes[i]), lam, result[i])
    return result, clipped


def _shorten(v: Vector, size: float, lam: float, out: Vector) -> None:
    """Write v / size * lam to ``out``, a block at a time.

    In float64, also for float32: lam / ||v|| may be smaller than a float32 can hold.
    """
    peak = 1.0
    if not np.isfinite(size):
        peak = max(abs(float(v.max())), abs(float(v.min())))
        size = norm(v / peak)
    for block in line_blocks(len(v)):
        out[block] = v[block].astype(np.float64) / peak / size * lam
