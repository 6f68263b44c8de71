"""What a round shows about each client: how far its vector lies from the aggregate, and how well it agrees with it.

Nothing here changes what a method does. The numbers go to the metrics of the round; a person, or
``server.monitor.suspects``, looks at many rounds of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.operators import Combined, Rows

MOST = 2**20
"""Numbers that are looked at in a round; of larger arrays randomly placed stretches of columns are."""
_STRETCH = 1024
_GROUP = 8
"""Stretches that are looked at together."""
FARTHEST = 1e6
"""Distances are cut off there, and at its inverse."""


@dataclass(frozen=True)
class Evidence:
    """What one round shows. Sequences have one entry for each of ``workers``; None where there is no number.

    Args:
        workers: whose vectors the rule saw, in its order.
        distance: ||v_i - aggregate|| in units of the median over the workers, in [1/FARTHEST, FARTHEST].
        cosine: of v_i and the aggregate, in [-1, 1]; None where either is 0.
        kept: min(1, lam / ||v_i||), what clipping left of v_i's length; empty where nothing is clipped.
        weight: of v_i in the rule, before any clipping by the rule itself, summing to about 1; empty for a rule that
            looks at every coordinate separately.
        same: groups of workers that sent exactly the same vector, other than 0.
    """

    workers: Sequence[int]
    distance: Sequence[float | None]
    cosine: Sequence[float | None]
    kept: Sequence[float | None] = ()
    weight: Sequence[float | None] = ()
    same: Sequence[Sequence[int]] = ()

    def of(self, workers: Sequence[int]) -> "Evidence":
        """Return the entries of these workers, in this order; None for those that the rule did not see."""
        if workers == self.workers:
            return self
        at = {worker: row for row, worker in enumerate(self.workers)}

        def chosen(values: Sequence[float | None]) -> list[float | None]:
            return [values[at[worker]] if worker in at else None for worker in workers] if values else []

        wanted = set(workers)
        same = [group for every in self.same if len(group := [i for i in every if i in wanted]) > 1]
        distance, cosine, kept, weight = map(chosen, (self.distance, self.cosine, self.kept, self.weight))
        return Evidence(list(workers), distance, cosine, kept, weight, same)


def examine(workers: Sequence[int], combined: Combined, rng: Generator) -> Evidence | None:
    """Compare every row with what was made of them.

    Args:
        workers: of the rows, in their order.
        combined: the rows as they were before clipping, and the aggregate of what they were clipped to.
        rng: places the stretches of long rows; a client must not know which of its numbers are looked at.

    Returns:
        None where nothing was aggregated.
    """
    rows, center = combined.rows, combined.center
    if rows is None or center is None or len(rows) == 0:
        return None
    n, lam = len(rows), combined.lam
    # In units of their own where squares would leave float64, so that no hostile row takes the others' digits.
    own = _unit(center[None])[0]
    units = np.maximum(_unit(rows), own)
    plain = bool((units == 1.0).all())
    squares, apart, along, length = np.zeros(n), np.zeros(n), np.zeros(n), 0.0
    for at in _groups(_stretches(rows, rng)):
        block, middle = _gathered(rows, at).astype(np.float64), _gathered(center[None], at)[0] / own
        if not plain:
            block /= units[:, None, None]
        square, share = np.einsum("isj,isj->si", block, block), np.einsum("isj,sj->si", block, middle)
        own_square = np.einsum("sj,sj->s", middle, middle)
        block -= middle if plain else (own / units)[:, None, None] * middle
        far_square = np.einsum("isj,isj->si", block, block)
        for s in range(len(at)):  # one after the other, so that the digits do not depend on the groups
            squares += square[s]
            along += share[s]
            length += float(own_square[s])
            apart += far_square[s]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        norms, far = np.sqrt(squares) * units, np.sqrt(apart) * units
        cosines = np.clip(along / (np.sqrt(squares) * np.sqrt(length)), -1.0, 1.0)
        kept = None if lam is None else np.minimum(1.0, lam / norms * _share(rows))
    return Evidence(
        workers=list(workers),
        distance=_relative(far),
        cosine=[value if math.isfinite(value) else None for value in cosines.tolist()],
        kept=() if kept is None else [value if math.isfinite(value) else 1.0 for value in kept.tolist()],
        weight=() if combined.weights is None else combined.weights.astype(np.float64).tolist(),
        same=_equal(rows, norms, workers),
    )


def _unit(rows: Rows) -> NDArray[np.float64]:
    """Return 1 for rows whose squares are safe in float64, else the largest number of the row; shape (n',)."""
    if rows.dtype == np.float32:
        return np.ones(len(rows))
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return np.where((peaks > 1e-100) & (peaks < 1e100) | (peaks == 0.0), 1.0, peaks)


def _relative(far: NDArray[np.float64]) -> list[float | None]:
    """Return distances in units of their median; where more than half of the rows are the aggregate, those have 1."""
    typical = float(np.sort(far)[(len(far) - 1) // 2])
    if typical in (0.0, np.inf):
        return [1.0 if value == typical else FARTHEST if typical == 0.0 else 1.0 / FARTHEST for value in far]
    with np.errstate(over="ignore"):
        found: list[float | None] = np.clip(far / typical, 1.0 / FARTHEST, FARTHEST).tolist()
        return found


def _share(rows: Rows) -> float:
    """Return by how much a norm over the stretches falls short of the whole norm, on average."""
    n, d = rows.shape
    return float(np.sqrt(min(1.0, _count(n, d) * _STRETCH / d))) if n * d > MOST else 1.0


def _count(n: int, d: int) -> int:
    return max(1, MOST // (n * _STRETCH))


def _stretches(rows: Rows, rng: Generator) -> Iterator[slice]:
    """Cut all columns into slices, or where they are too many choose some: one at random in each of equal parts."""
    n, d = rows.shape
    if n * d <= MOST:
        width = max(256, 2**17 // n)
        yield from (slice(lo, min(lo + width, d)) for lo in range(0, d, width))
        return
    count = _count(n, d)
    part = d // count
    for number, offset in enumerate(rng.integers(0, max(1, part - _STRETCH + 1), count)):
        lo = number * part + int(offset)
        yield slice(lo, min(lo + _STRETCH, d))


def _gathered(rows: Rows, stretches: Sequence[slice]) -> NDArray[np.floating]:
    """Return stretches of one length, shape (n', how many, length)."""
    if len(stretches) == 1:
        return rows[:, None, stretches[0]]
    return np.stack([rows[:, columns] for columns in stretches], axis=1)


def _groups(stretches: Iterable[slice]) -> Iterator[list[slice]]:
    """Gather neighbours of length _STRETCH, a few at a time, for fewer calls of NumPy; longer slices stay alone."""
    group: list[slice] = []
    for each in stretches:
        if group and (each.stop - each.start != _STRETCH or len(group) == _GROUP):
            yield group
            group = []
        group.append(each)
        if each.stop - each.start != _STRETCH:
            yield group
            group = []
    if group:
        yield group


def _equal(rows: Rows, norms: NDArray[np.float64], workers: Sequence[int]) -> list[list[int]]:
    """Return the groups of equal rows, zeros left out."""
    alike: dict[float, list[list[int]]] = {}  # by the norm, of which rounding may differ a little between equal rows
    for row, size in enumerate(norms.tolist()):
        if not size:
            continue
        groups = alike.setdefault(float(f"{size:.6e}"), [])
        group = next((group for group in groups if np.array_equal(rows[row], rows[group[0]])), [])
        if not group:
            groups.append(group)
        group.append(row)
    return sorted([workers[row] for row in group] for groups in alike.values() for group in groups if len(group) > 1)
