"""Running statistics of batch norm that clients answer: screened, combined by their median, averaged over rounds.

A client answers with mean and variance of its own batches, two numbers a channel, at the model that the server is about
to measure or save. Of m > 2f answers the coordinate-wise median lies within what honest clients answered. Older medians
keep 0.9 of their weight with each round, so that the average follows the model whether it is measured in every round or
in few. Nothing of this reaches the method: training uses the statistics of each batch.

Source: averaging with 0.9 is that of batch norm itself (Ioffe, Szegedy, ICML 2015), applied to medians.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.method import DECLINED, Vector

ACTION = "breakwater_batch_statistics"
"""Action of Flower's query that asks clients for them."""
QUESTION = f"query.{ACTION}"
"""The type of these messages, and the kind of round that their deadline is learnt for."""
KEPT = 0.9
"""The weight that statistics keep with each round, once there are newer ones."""
NO_STATISTICS = f"{DECLINED}: statistics"
"""The answer of a client whose owner does not allow it to report them."""


@dataclass(frozen=True, eq=False)
class NormStats:
    """The statistics that models are measured with.

    Args:
        values: means and variances, finite, float64, shape (two numbers a channel,).
        round: r, clients were asked last at x^r.
    """

    values: Vector
    round: int


def flaw_of(values: Vector, variances: NDArray[np.bool_]) -> str:
    """Return why an array is no answer, as ``kind: detail``; "" if it is one.

    Args:
        values: what a client sent.
        variances: which of the numbers are variances, shape (two numbers a channel,).
    """
    if values.dtype != np.float64:
        return f"wrong dtype: {values.dtype}, expected float64"
    if values.shape != variances.shape:
        return f"wrong shape: {values.shape}, expected {variances.shape}"
    if not np.isfinite(values).all():
        return f"not finite: {np.count_nonzero(~np.isfinite(values))} of {values.size} statistics"
    if (least := values[variances].min(initial=0.0)) < 0:
        return f"out of bounds: a variance is {least:.6g}, must be at least 0"
    return ""


def combined(answers: Sequence[Vector], variances: NDArray[np.bool_], byzantine: int) -> Vector | None:
    """Return the coordinate-wise median of m answers of which at most f may be lies; None for m <= 2f.

    With m > 2f at least f + 1 answers are on either side of each median, itself or its neighbours included, so that it
    lies between two honest ones.

    Args:
        answers: in any order, each finite and of the shape of ``variances``.
        variances: which of the numbers are variances; these are at least 0 in what is returned.
        byzantine: f.
    """
    m = len(answers)
    if m <= 2 * byzantine:
        return None
    ordered = np.sort(np.stack(answers), axis=0)
    below, above = ordered[(m - 1) // 2], ordered[m // 2]
    median: Vector = np.clip(below / 2 + above / 2, below, above)  # for odd m both are the one in the middle
    median[variances] = np.maximum(median[variances], 0)
    return median


def averaged(before: NormStats | None, values: Vector, round_: int) -> NormStats:
    """Return the statistics after an asking; the first one is taken whole.

    Args:
        before: those before it; None for the first.
        values: the medians.
        round_: r, they are of x^r.
    """
    if before is None:
        return NormStats(values, round_)
    kept = KEPT ** max(1, round_ - before.round)
    return NormStats(kept * before.values + (1 - kept) * values, round_)


def shortage(answers: int, byzantine: int, before: NormStats | None) -> str:
    """Return in one line that there are too few answers, and what is used instead."""
    instead = "those that model() made" if before is None else f"those of round {before.round}"
    lies = f", and up to {byzantine} may be lies" if byzantine else ""
    known = f"{answers} usable answer{'' if answers == 1 else 's'}{lies}"
    return f"batch norm: {known}; at least {2 * byzantine + 1} are needed (2 byzantine + 1): {instead} stay in use"
