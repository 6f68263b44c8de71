"""Mean shift with a flat kernel on a few points of low dimension: which of them form the largest cluster."""

import numpy as np
from numpy.typing import NDArray

from strategies.aggregators.weighted_rows import Array

_MOST_STEPS = 300
_STILL = 1e-3
"""A centre that moves by at most this share of the width has arrived."""


def largest_cluster(points: Array) -> NDArray[np.bool_]:
    """Return which points belong to the largest cluster that mean shift finds; of equally large ones the densest.

    The kernel's width is the mean over the points of the distance to their floor(n/2)-th nearest, the point itself
    being the first; where it is 0, clusters are groups of equal points. Centres start on the grid of that width, and
    move to the mean of the points within the width until they rest. Of centres within the width of each other the one
    with most points stays. A point belongs to the nearest centre; to none if that is further away than the width.

    Args:
        points: shape (n, k), n at least 1.

    Returns:
        Shape (n,).

    Source:
        Comaniciu, Meer: Mean shift (IEEE TPAMI 2002), with the width of the method's usual estimate at quantile 1/2.
    """
    n = len(points)
    width = float(np.sort(_distances(points, points), axis=1)[:, max(1, n // 2) - 1].mean())
    if width == 0.0:
        return _largest_heap(points)
    centres, found = _shift(points, _seeds(points, width), width)
    order = sorted(range(len(centres)), key=lambda i: (int(found[i]), *centres[i].tolist()), reverse=True)
    kept: list[int] = []
    for i in order:
        if found[i] and all(_distances(centres[i : i + 1], centres[j : j + 1])[0, 0] > width for j in kept):
            kept.append(i)
    if not kept:
        return np.zeros(n, bool)
    apart = _distances(points, centres[kept])
    nearest = np.where(apart.min(axis=1) <= width, apart.argmin(axis=1), len(kept))
    cluster = int(np.argmax(np.bincount(nearest, minlength=len(kept))[: len(kept)]))
    member: NDArray[np.bool_] = nearest == cluster
    return member


def _seeds(points: Array, width: float) -> Array:
    """Return the points of the grid that are nearest to a point; the points themselves where that spares none."""
    seeds = np.unique(np.round(points / width), axis=0) * width
    return points if len(seeds) == len(points) else seeds


def _largest_heap(points: Array) -> NDArray[np.bool_]:
    """Return the largest group of equal points: clusters of width 0, which rounding would keep a mean out of."""
    values, heap, sizes = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    most = max(range(len(sizes)), key=lambda i: (int(sizes[i]), *values[i].tolist()))
    member: NDArray[np.bool_] = heap.reshape(-1) == most
    return member


def _shift(points: Array, centres: Array, width: float) -> tuple[Array, NDArray[np.intp]]:
    """Move centres until they rest; return them, and how many points were within the width before the last move."""
    centres = centres.copy()
    found, moving = np.zeros(len(centres), np.intp), np.arange(len(centres))
    for _ in range(_MOST_STEPS):
        near = _distances(centres[moving], points) <= width
        found[moving] = near.sum(axis=1)
        moving, near = moving[found[moving] > 0], near[found[moving] > 0]
        means = np.einsum("ij,jk->ik", near.astype(np.float64), points) / found[moving][:, None]
        steps = np.sqrt(((means - centres[moving]) ** 2).sum(axis=1))
        centres[moving] = means
        moving = moving[steps > _STILL * width]
        if not len(moving):
            break
    return centres, found


def _distances(a: Array, b: Array) -> Array:
    """Return the distances of all pairs, shape (len(a), len(b))."""
    distances: Array = np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2))
    return distances
