"""Sorting networks: which lines a kernel compares and exchanges, as data.

A network sorts n lines by a fixed list of compare-exchanges (i, j), i < j: the smaller value to i, the larger to j. As
the list does not depend on the values, a whole block of columns goes through it at once.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MEDIAN, TRIMMED_MEAN, MEAN_AROUND_MEDIAN = 0, 1, 2
"""What is made of the sorted values of a column."""


def exchanges(n: int) -> list[tuple[int, int, int]]:
    """Return Batcher's odd-even merge sort of n lines: (i, j, p), in order.

    ``p`` is the length of the sorted runs that the step merges, 1, 2, 4, ...: before it, lines in aligned groups of p
    are sorted. For an n that is no power of two, exchanges with lines that do not exist are left out.

    Source:
        Batcher: Sorting networks and their applications (AFIPS 1968); Knuth, The art of computer programming 3, 5.2.2,
        Algorithm M.
    """
    lengths = [2**e for e in range((n - 1).bit_length())]
    return [
        (i, i + k, p)
        for p in lengths
        for k in reversed(lengths[: lengths.index(p) + 1])
        for start in range(k % p, n - k, 2 * k)
        for i in range(start, min(start + k, n - k))
        if i // (2 * p) == (i + k) // (2 * p)
    ]


@lru_cache(maxsize=64)
def network(n: int, first: int, last: int, group: int = 8) -> NDArray[np.int64]:
    """Return the exchanges that put lines first .. last - 1 of n in their ranks, after the kernels' sorting on load.

    The kernels load lines in sorted groups of eight, and four of the rest in one of four; lines with weights in groups
    of four. Exchanges that no wanted line depends on are left out.

    Args:
        n: lines.
        first: the first wanted rank.
        last: one beyond the last.
        group: lines in a sorted group, 8 or 4.

    Returns:
        Shape (exchanges, 3): lines i and j, and which of them is needed: 1 for i, 2 for j, 3 for both. Never empty: an
        exchange of line 0 with itself does nothing.
    """
    eights = n // 8 * 8 if group == 8 else 0
    fours = eights + (n - eights) // 4 * 4
    wanted = set(range(first, last))
    kept = []
    for i, j, p in reversed(exchanges(n)):
        on_load = (p < 8 and j < eights) or (p < 4 and eights <= i and j < fours)
        needed = (i in wanted) + 2 * (j in wanted)
        if needed:
            wanted |= {i, j}
            if not on_load:
                kept.append((i, j, needed))
    return np.array(kept[::-1] or [(0, 0, 3)], np.int64)
