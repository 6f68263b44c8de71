"""The search of attacks that try the server's own pipeline: which factor of a family of vectors hurts it most."""

from collections.abc import Callable, Sequence

import numpy as np

from attacks.view import View
from strategies.method import Rows, Vector
from strategies.vectors import norm

COARSE: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
"""Factors that a search begins with by default."""
REFINEMENTS = 4
"""How often such a search then halves the interval around the best factor; costs two runs of the rule each."""


def most_harmful(
    view: View, rows: Rows, make: Callable[[float], Vector], grid: Sequence[float] = COARSE, refinements: int = 0
) -> float:
    """Return the factor whose vectors move the server's aggregate furthest.

    The distance is from what the server makes of the honest vectors alone. All Byzantine rows are the same
    vector. Where the view has fewer honest rows than are aggregated, they are repeated to that number.

    The rule runs 1 + len(grid) + 2 refinements times.

    Args:
        view: what the attacker knows.
        rows: the honest rows in view, shape (at least 1, d).
        make: returns the vector of a factor, shape (d,).
        grid: factors to try, ascending.
        refinements: how often to try the two middles between the best factor and its neighbours.

    Returns:
        The best factor tried; the least of those that are equally good.
    """
    count, byzantine = view.counts
    count = max(1, count)
    honest = rows if count == len(rows) else rows[np.arange(count) % len(rows)]
    undisturbed = view.aggregate(honest).astype(np.float64)
    crowd = np.empty((count + byzantine, rows.shape[1]), rows.dtype)
    crowd[:count] = honest

    def harm(factor: float) -> float:
        crowd[count:] = make(factor)
        moved = norm(view.aggregate(crowd).astype(np.float64) - undisturbed)
        return np.inf if np.isnan(moved) else moved

    harms = [harm(factor) for factor in grid]
    best = max(harms)
    at = harms.index(best)
    below, factor, above = (0.0, *grid, 2 * grid[-1])[at : at + 3]
    for _ in range(refinements):
        lower, upper = (below + factor) / 2, (factor + above) / 2
        left, right = harm(lower), harm(upper)
        if max(left, right) <= best:
            below, above = lower, upper
        elif left >= right:
            best, above, factor = left, factor, lower
        else:
            best, below, factor = right, factor, upper
    return factor
