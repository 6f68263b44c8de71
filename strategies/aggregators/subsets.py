"""Search for the best n' - f of n' rows, on n' x n' matrices, with bounded work."""

from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from strategies.aggregators.weighted_rows import Array

MOST_NODES = 50_000
"""Nodes of a search tree after which ``least_diameter`` takes the best that it has: a second or two."""
MOST_LEFT_OUT = 400
"""Depth of that tree from which on it does not search."""
_SETS_AT_ONCE = 256
_ROUNDING = 1e-12


def least_diameter(squares: Array, k: int) -> list[int]:
    """Return the k rows whose largest squared distance is least; of several such sets the first by row numbers.

    Whether k rows within a given distance exist is whether at most n - k rows cover all pairs that are further apart: a
    vertex cover, whose search tree has far fewer nodes than there are sets. The least such distance is found by
    bisection over the distances that occur. Should the search need more than MOST_NODES nodes in all, the best set that
    it has found is taken; it starts with the k rows around one row, whose diameter is at most twice the least, and with
    more than MOST_LEFT_OUT rows to leave out it stays there.

    Args:
        squares: squared distances, shape (n, n), symmetric, zero diagonal; inf is allowed.
        k: rows wanted, 1 .. n.

    Returns:
        Row numbers in ascending order.
    """
    n = len(squares)
    if k == n:
        return list(range(n))
    around = np.sort(np.argsort(squares, axis=1, kind="stable")[:, :k], axis=1)
    diameters = [float(squares[np.ix_(rows, rows)].max()) for rows in around]
    best: list[int] = around[int(np.argmin(diameters))].tolist()
    if n - k > MOST_LEFT_OUT:
        return best
    levels = np.unique(squares)
    search = _Cover(MOST_NODES)
    low, high = 0, int(np.searchsorted(levels, min(diameters)))  # levels[high] is reached, nothing below levels[low] is
    while low < high:
        middle = (low + high) // 2
        cover = search.cover(_graph(squares > levels[middle]), n - k)
        if search.spent:
            return best
        if cover is None:
            low = middle + 1
        else:
            best, high = _without(n, cover, k), middle
    return _first(squares <= levels[high], k, search) or best


def least_variance(products: Array, k: int) -> list[int]:
    """Return the k rows whose covariance has the smallest largest eigenvalue; of several such sets the first.

    Every set is looked at, most of them only by two lower bounds of that eigenvalue: the mean eigenvalue, and half the
    largest squared distance.

    Args:
        products: inner products about any centre, shape (n, n).
        k: rows wanted, 1 .. n.

    Returns:
        Row numbers in ascending order.
    """
    n = len(products)
    if k <= 1 or k == n:
        return list(range(k))
    diagonal = np.diagonal(products)
    squares = np.maximum(diagonal[:, None] + diagonal - 2.0 * products, 0.0)
    sets = combinations(range(n), k)
    best, least = list(range(k)), np.inf
    while chunk := list(islice(sets, _SETS_AT_ONCE)):
        chosen = np.array(chunk)
        apart = squares[chosen[:, :, None], chosen[:, None, :]]
        bounds = np.maximum(apart.max(axis=(1, 2)) / 2.0, apart.sum(axis=(1, 2)) / (2.0 * k * (k - 1)))
        chosen = chosen[bounds <= least * (1.0 + 1e-9)]
        if not len(chosen):
            continue
        inner = products[chosen[:, :, None], chosen[:, None, :]]
        means = inner.mean(axis=2)
        inner = inner - means[:, :, None] - means[:, None, :] + means.mean(axis=1)[:, None, None]
        largest = np.linalg.eigvalsh(inner)[:, -1]  # k x k: below what any BLAS shares among threads
        bar = float(largest.min())
        at = int(np.argmax(largest <= bar + _ROUNDING * abs(bar)))  # the first of those that are equal but for rounding
        if largest[at] + _ROUNDING * abs(bar) < least:
            best, least = chosen[at].tolist(), float(largest[at])
    return best


def _graph(far: NDArray[np.bool_]) -> list[int]:
    """Return each row's partners as the bits of a number."""
    return [sum(1 << int(j) for j in np.flatnonzero(row)) for row in far]


def _without(n: int, cover: int, k: int) -> list[int]:
    """Return the first k rows outside of a cover."""
    return [i for i in range(n) if not cover >> i & 1][:k]


def _first(near: NDArray[np.bool_], k: int, search: "_Cover") -> list[int] | None:
    """Return the first set of k rows that are all near each other, or None where the search ran out of nodes."""
    n = len(near)
    partners = _graph(near)
    candidates, chosen = (1 << n) - 1, list[int]()
    for i in range(n):
        if len(chosen) == k:
            break
        if not candidates >> i & 1:
            continue
        # With i: what is left are rows after it that are near to all chosen ones; enough of them must fit together.
        rest = candidates & partners[i] & ~((2 << i) - 1)
        wanted = k - len(chosen) - 1
        room = rest.bit_count() - wanted
        if room < 0:
            continue
        far = [rest & ~partners[j] & ~(1 << j) if rest >> j & 1 else 0 for j in range(n)]
        cover = search.cover(far, room)
        if search.spent:
            return None
        if cover is not None:
            chosen.append(i)
            candidates = rest
    return chosen


class _Cover:
    """A bounded search for a small vertex cover.

    Args:
        nodes: how many nodes of search trees may be looked at, over all calls.
    """

    def __init__(self, nodes: int) -> None:
        self._left = nodes

    @property
    def spent(self) -> bool:
        """Whether the nodes ran out: what was returned last says nothing."""
        return self._left < 0

    def cover(self, graph: list[int], size: int) -> int | None:
        """Return vertices, as bits, at most ``size``, of which every edge has one; None if there are none.

        The partner of a vertex with one edge is as good as itself, and a cycle may be broken anywhere. Otherwise either
        the vertex of most edges is in the cover, or all its partners are; the latter only if they are not too many.
        """
        self._left -= 1
        if self._left < 0:
            return None
        degrees = [partners.bit_count() for partners in graph]
        most = max(degrees)
        if most == 0:
            return 0
        edges = sum(degrees) // 2
        if edges > size * most:
            return None
        if 1 in degrees:
            return self._take(graph, graph[degrees.index(1)], size)
        v = degrees.index(most)
        with_v = self._take(graph, 1 << v, size)
        if with_v is not None or most == 2 or most > size:
            return with_v
        return self._take(graph, graph[v], size)

    def _take(self, graph: list[int], taken: int, size: int) -> int | None:
        count = taken.bit_count()
        if count > size:
            return None
        left = [0 if taken >> i & 1 else partners & ~taken for i, partners in enumerate(graph)]
        rest = self.cover(left, size - count)
        return None if rest is None else rest | taken
