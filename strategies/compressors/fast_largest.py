"""Compiled loops of top-k: the k largest sizes in about one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.compilation import compiled
from strategies.compressors.coordinates import words
from strategies.compressors.fast_bits import U32, U64, bit_count, fixed, shared
from strategies.compressors.fast_choice import Words, take
from strategies.method import Vector

_SAMPLE = 4096
"""How many sizes give the bracket in which the k-th largest is looked for; four times as many for long vectors."""
_TAILS = 3.5
"""How many standard deviations of a sample's rank the bracket around the k-th largest size spans on each side."""


@compiled
def _at_least(bits: Any, start: Any, stop: Any, low: Any, high: Any, lows: Any, highs: Any) -> None:
    """Set a bit for every size that is at least ``low``, and for every one at least ``high``; 64 divides ``start``."""
    whole = stop // 32
    for w in range(start // 32, whole):
        block = bits[32 * w : 32 * w + 32]
        a = b = U32(0)
        for j in range(32):
            size, one = U32(block[j] & U32(0x7FFFFFFF)), U32(U32(1) << U32(j))
            a |= one if size >= low else U32(0)
            b |= one if size >= high else U32(0)
        lows[w], highs[w] = a, b
    for i in range(32 * whole, stop):
        size, one = U32(bits[i] & U32(0x7FFFFFFF)), U32(U32(1) << U32(i - 32 * whole))
        lows[whole] |= one if size >= low else U32(0)
        highs[whole] |= one if size >= high else U32(0)


@compiled
def _settle(sizes: Any, between: Any, smallest: Any, equals: Any, chosen: Any) -> None:
    at = U64(0)
    for w in range(len(between)):
        bits = between[w]
        while bits:
            size = sizes[at]
            at += U64(1)
            equal = U64(1) if size == smallest else U64(0)  # no branches: nobody can predict these
            taken = (U64(1) if size > smallest else U64(0)) | (equal if equals > 0 else U64(0))
            equals -= np.int64(equal)
            chosen[w] |= (bits & (~bits + U64(1))) * taken
            bits &= bits - U64(1)


def largest(x: Vector, k: int) -> Words:
    """Return the choice that ``choices.largest_k`` makes.

    A sample gives two bounds which the k-th largest size most likely lies between; one pass finds what is above the
    upper one, and what is between. If it does not lie there, all sizes count as between.
    """
    bits, share = fixed(x.view(np.uint32)), k / len(x)
    m = _SAMPLE if len(x) < 2**21 else 4 * _SAMPLE
    sample = words(_SAMPLE, 0, m) % U64(len(x))  # with repetitions
    spread = _TAILS * (m * share * (1.0 - share)) ** 0.5 + 2.0
    below, above = m - int(m * share + spread), m - int(m * share - spread)  # ranks, counted from the smallest
    seen = np.partition(bits[sample] & U32(0x7FFFFFFF), [max(0, below), min(m - 1, above)])
    low = int(seen[below]) if below > 0 else 0
    high = max(int(seen[above]), low + 1) if above < m else 2**32 - 1
    lows, highs = np.zeros((2, (len(x) + 63) // 64), np.uint64)
    for bounds in ((low, high), (0, 2**32 - 1)):
        lows[:], highs[:] = 0, 0
        limits = U32(bounds[0]), U32(bounds[1])
        pair = lows.view(np.uint32), highs.view(np.uint32)
        # Bound by default arguments, as the loop goes on; mypy infers no lambda that has them.
        shared(len(x), 64, lambda lo, hi, at=limits, to=pair: _at_least(bits, lo, hi, *at, *to))  # type: ignore[misc]
        between = lows & ~highs
        count, wanted = bit_count(between), k - bit_count(highs)
        if 0 <= wanted <= count:
            break
    if wanted:
        sizes = take(x, between, count).view(np.uint32)
        sizes &= U32(0x7FFFFFFF)
        smallest, equals = _kth_largest(sizes, wanted, bounds[0], min(bounds[1], 2**31))
        _settle(fixed(sizes), fixed(between), U32(smallest), equals, highs)
    return highs


@compiled
def _bins(sizes: Any, low: Any, down: Any, counts: Any) -> None:
    for i in range(len(sizes)):
        counts[U32(sizes[i] - low) >> down] += 1


def _kth_largest(sizes: NDArray[np.uint32], k: int, low: int, high: int) -> tuple[int, int]:
    """Return the k-th largest of numbers from low to below high, and how many of its equals are among the k largest.

    All that share its one of up to 4096 bins are few enough to be partitioned, unless they are alike.
    """
    down = max(0, (high - low).bit_length() - 12)
    counts = np.zeros(4097, np.int64)
    _bins(fixed(sizes), U32(low), U32(down), counts)
    reached = np.cumsum(counts[::-1])[::-1]  # how many are in this bin or above
    bin_ = int(np.flatnonzero(reached >= k)[-1])
    first = low + (bin_ << down)
    alike = sizes[(sizes >= first) & (sizes < first + (1 << down))]
    rank = k - int(reached[bin_] - counts[bin_])
    smallest = np.partition(alike, len(alike) - rank)[len(alike) - rank]
    return int(smallest), rank - int(np.count_nonzero(alike > smallest))


def prepare() -> None:
    """Compile all loops, or load them; equal sizes take the way through all of them."""
    largest(np.ones(3, np.float32), 2)
