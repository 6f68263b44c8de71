"""Weights of clients, declared by the server: their cap, and the whole numbers by which rules count them.

Only ratios of weights matter. They are kept as whole numbers whose sum is at most ``TOTAL``, so that "exactly half of
the weight" is exact, and a weight of 3 means the same as three equal rows. Weights with a small common denominator (3,
0.5, 0.125) are kept exactly; others are rounded to multiples of 1 / ``TOTAL`` of their sum, and to at least one.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Masses = NDArray[np.int64]
"""The weight of each row as a whole number: shape (n',)."""

TOTAL = 2**30
"""Most that whole weights sum to, but for rounding up: the kernels add them in 32 bits."""


def whole_weights(weights: Sequence[float | Fraction]) -> tuple[int, ...]:
    """Return weights as whole numbers, at least 1, in the same ratios.

    Args:
        weights: at least one; finite, above 0.

    Returns:
        () where all are equal, as equal weights are none; else whole numbers without a common factor.

    Raises:
        ValueError: a weight is not finite or not above 0; one line.
    """
    if flaw := flaw_of(weights):
        raise ValueError(flaw)
    exact = [w if isinstance(w, Fraction) else Fraction(str(float(w))) for w in weights]
    if len(set(exact)) == 1:
        return ()
    unit = math.lcm(*(w.denominator for w in exact))
    numbers = [int(w * unit) for w in exact]
    divisor = math.gcd(*numbers)
    numbers = [number // divisor for number in numbers]
    total = sum(numbers)
    if total > TOTAL:
        numbers = [max(1, round(Fraction(number * TOTAL, total))) for number in numbers]
    return tuple(numbers)


def capped(weights: Sequence[float], cap: float) -> list[Fraction]:
    """Return the shares, which sum to 1, that weights have once none may exceed ``cap``.

    The shares are min(cap, c w_i), with the one c for which they sum to 1: lowering those above the cap raises the
    others in proportion, of which more may then reach it.

    Args:
        weights: finite, above 0.
        cap: the greatest share, in (0, 1].

    Raises:
        ValueError: a weight is not finite or not above 0, or n shares of at most ``cap`` cannot sum to 1; one line.
    """
    if flaw := flaw_of(weights):
        raise ValueError(flaw)
    n, most = len(weights), Fraction(str(float(cap)))
    if most * n < 1:
        if most * n < 1 - Fraction(1, 10**9):
            raise ValueError(f"{cap:g}: {n} shares of at most that cannot sum to 1; at least 1/{n} = {1 / n:.6g}")
        most = Fraction(1, n)  # 1/n as it was typed
    exact = [Fraction(str(float(w))) for w in weights]
    order = sorted(range(n), key=lambda i: exact[i], reverse=True)
    rest, factor, held = sum(exact), Fraction(0), 0
    for i in order:
        factor = (1 - held * most) / rest
        if factor * exact[i] <= most:
            break
        rest -= exact[i]
        held += 1
    shares = [most] * n
    for i in order[held:]:
        shares[i] = factor * exact[i]
    return shares


def heaviest(masses: Masses, f: int) -> int:
    """Return the sum of the f largest of the weights; of all, where f is more than there are."""
    return int(np.sort(masses)[max(0, len(masses) - f) :].sum())


def middle(values: NDArray[np.floating], masses: Masses) -> tuple[float, float]:
    """Return the least value with at least half of the weight at or below it, and the least with more than half.

    For equal weights these are the two middle values, which for an odd number of them are one.

    Args:
        values: shape (n',); may be inf.
        masses: their weights.
    """
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(masses[order])
    total = int(ends[-1])
    lower, upper = np.searchsorted(ends, (total - total // 2, total // 2 + 1))
    return float(values[order[lower]]), float(values[order[upper]])


def flaw_of(weights: Sequence[float | Fraction]) -> str | None:
    """Return why these are no weights, one line; None if they are."""
    for i, w in enumerate(weights):
        if not 0 < w < math.inf:
            return f"weights[{i}] = {w}: must be a finite number above 0"
    return None
