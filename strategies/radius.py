"""The clipping radius lam = alpha ||x^k - x^{k-1}||, with alpha given or learnt from what the workers send.

The theory wants alpha to bound how much longer an honest difference is than the step that caused it, ||q_i|| / ||x^k -
x^{k-1}||: 2 L or D_Q L. Where L is unknown, or far above what gradients do along the path, the server can look: each
round it notes the lower median of the observed ratios, as they came and before any clipping, and takes alpha as
``FACTOR`` times the lower median of the last ``WINDOW`` notes.

That is a median of medians. A round can only inflate its own note if Byzantine clients are a strict majority of those
who replied, and the radius follows only if more than half of the noted rounds were such. A round's radius never
depends on its own replies, but for the first one that has nothing else to go by.

What this does not guard against: attackers who drive the model to where honest gradients change faster. Honest ratios
then grow, the radius with them, and the next attack may go further. On convex problems we saw no harm; on small
networks, under ALIE with an omniscient view, some seeds diverged that a fixed alpha of 2 survived.
"""

from collections.abc import Sequence
from math import inf
from typing import Literal

import numpy as np

from strategies.hyperparameters import AUTO as AUTO
from strategies.operators import Rows, Vector
from strategies.vectors import norm

Alpha = float | Literal["auto"]
"""A clipping multiplier: a number, or learnt. No clipping is None."""

WINDOW = 31
"""How many rounds are remembered."""
FACTOR = 2.0
"""How much longer than is typical a difference may be."""


def radius(
    alpha: Alpha | None, rows: Rows, step: float, ratios: Sequence[float] = (), scale: float = 1.0
) -> float | None:
    """Return the clipping radius of a round.

    Args:
        alpha: the multiplier.
        rows: the differences that came, shape (n', d); looked at only where alpha is "auto" and nothing was noted yet.
        step: ||x^k - x^{k-1}||.
        ratios: the notes so far, where alpha is "auto".
        scale: what alpha is multiplied by, given or learnt.

    Returns:
        At least 0 and finite; None where nothing is to be clipped: there is no alpha, it is "auto" with nothing to go
        by, or the radius is beyond all numbers.
    """
    if alpha is None or alpha == inf:
        return None
    if isinstance(alpha, str):
        notes = ratios or observe((), rows, step)
        alpha = FACTOR * _lower_median(notes) if notes else inf
    if step == 0 or alpha == 0:
        return 0.0  # whatever the other is: it may be inf
    lam = alpha * scale * step
    return lam if lam < inf else None


def observe(ratios: Sequence[float], rows: Rows, step: float) -> tuple[float, ...]:
    """Return the notes with this round's added, the oldest dropped; nothing is added if nothing came or x stayed.

    Args:
        ratios: the notes so far.
        rows: the differences as they came, not clipped; shape (n', d).
        step: ||x^k - x^{k-1}||.
    """
    if step == 0 or len(rows) == 0:
        return tuple(ratios)
    with np.errstate(over="ignore"):
        note = _lower_median([norm(row) for row in rows]) / step
    return (*ratios, note)[-WINDOW:]


def _lower_median(values: Sequence[float] | Vector) -> float:
    """Return the middle value, for an even number the lower of the two: a tie then does not count as a majority."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[(len(ordered) - 1) // 2])
