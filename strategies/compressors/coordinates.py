"""Coordinates from a seed, by integer arithmetic that is written out here in full.

Two machines agree on them whatever their NumPy versions, so a packet names k coordinates with 8 bytes. What is drawn
here is part of the protocol and never changes: see docs/wire.md.
"""

from functools import lru_cache
from typing import cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.compressors import choices, packing
from strategies.compressors.choices import Choice

_ROUNDS = 6
"""How often ``_permuted`` mixes."""
_SHORT = 2**12
"""Up to this d masks are kept, as drawing one takes longer than what is done with it."""
_PERMUTATION = 0x5045524D  # "PERM"
"""Makes the words of the permutation others than those of the rotation and of masks."""


def indices(seed: int, d: int, k: int) -> NDArray[np.intp]:
    """Return the coordinates of ``mask`` in ascending order, shape (k,)."""
    return choices.places(mask(seed, d, k), k)


def mask(seed: int, d: int, k: int) -> Choice:
    """Return k distinct coordinates out of 0 .. d-1: a pure function of its arguments.

    Coordinates are drawn with replacement until k different ones have been seen. Every draw treats all d alike, so
    every set of k is equally likely. Where k > d/2 the same procedure draws the d - k coordinates to leave out. The
    expected number of draws is below 1.4 k.

    Args:
        seed: in [0, 2^64).
        d: how many coordinates there are.
        k: how many to draw, 0 <= k <= d.
    """
    if (loops := packing.loops_for(d)) is not None:
        return cast(Choice, loops.mask(seed, d, k))
    return _short_mask(seed, d, k) if d <= _SHORT else _drawn(seed, d, k)


@lru_cache(maxsize=256)  # 1 MiB
def _short_mask(seed: int, d: int, k: int) -> Choice:
    """Return ``mask``, read-only: in one process a worker, the server and whoever looks on read a packet each."""
    choice = _drawn(seed, d, k)
    choice.flags.writeable = False
    return choice


def _drawn(seed: int, d: int, k: int) -> Choice:
    """Return ``mask`` as d truth values."""
    inverted = 2 * k > d
    wanted = d - k if inverted else k
    marked = np.zeros(d, np.bool_)
    found = start = 0
    while found < wanted:
        missing = wanted - found  # no batch is larger, so that the set holds the first `wanted` distinct draws
        marked[_below(d, words(seed, start, missing))] = True
        start += missing
        found = int(np.count_nonzero(marked))
    return ~marked if inverted else marked


@lru_cache(maxsize=1)
def shared_mask(seed: int, d: int, k: int) -> Choice:
    """Return ``mask``, read-only and kept for the next caller: a server reads n packets of one mask."""
    choice = mask(seed, d, k)
    choice.flags.writeable = False
    return choice


def part(seed: int, d: int, n: int, i: int) -> Choice:
    """Return the coordinates of worker i when a random permutation splits 0 .. d-1 among n workers.

    Part p is the positions from floor(p d/n) to before floor((p+1) d/n), so sizes differ by one at most. Worker i has
    part (i + r) mod n, r uniform from the seed: whatever the permutation, a coordinate is any worker's with probability
    exactly 1/n.

    Args:
        seed: in [0, 2^64).
        d: how many coordinates there are.
        n: how many workers, at least 1.
        i: 0 .. n-1.

    Returns:
        Places in the order of the permutation, as uint32 if d < 2^32; none for some where d < n.
    """
    start, stop = part_bounds(seed, d, n, i)
    return _permuted(seed, d, start, stop)


@lru_cache(maxsize=1024)
def part_bounds(seed: int, d: int, n: int, i: int) -> tuple[int, int]:
    """Return the first position of the permutation that is worker i's, and the first behind."""
    at = 0
    while (word := int(words(seed, at, 1)[0])) >= 2**64 - 2**64 % n:
        at += 1  # as in _below: the incomplete last run of n would favour small numbers
    p = (i + word) % n
    return p * d // n, (p + 1) * d // n


def _permuted(seed: int, d: int, start: int, stop: int) -> Choice:
    """Return what a permutation of 0 .. d-1 has from ``start`` to before ``stop``, without the rest of it.

    Rounds of adding, multiplying by an odd number and folding the upper bits into the lower permute 0 .. 2^b - 1, the
    next power of two. A number that is d or more is put through again until it is not, which makes a permutation of
    0 .. d-1; it takes less than two rounds on average.
    """
    bits = max(1, (d - 1).bit_length())
    keys = words(seed ^ _PERMUTATION, 0, 2 * _ROUNDS)
    loops = packing.loops_for(d)
    if loops is not None and d < 2**32:
        return cast(Choice, loops.permuted(keys, bits, d, start, stop))
    low_bits, fold = np.uint64(2**bits - 1), np.uint64((bits + 1) // 2)
    x, out = np.arange(start, stop, dtype=np.uint64), np.arange(stop - start)
    found = np.empty(stop - start, np.uint32 if d < 2**32 else np.intp)
    while len(x):
        for add, multiply in zip(keys[::2], keys[1::2] | np.uint64(1), strict=True):
            x = ((x + add) * multiply) & low_bits
            x = x ^ (x >> fold)
        inside = x < d
        found[out[inside]] = x[inside]
        x, out = x[~inside], out[~inside]
    return found


def words(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Return words start .. start+count-1 of the SplitMix64 stream of ``seed``: 64 uniform bits each, modulo 2^64.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), with Stafford's mix 13.
    """
    z = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def draw_seed(rng: Generator) -> int:
    """Return 64 bits of the generator, raw, as only those does NumPy promise never to change."""
    return int(rng.bit_generator.random_raw())


def _below(d: int, draws: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the words modulo d, less those from the incomplete last run of d, which would favour small numbers."""
    last = 2**64 - 2**64 % d - 1
    return (draws[draws <= np.uint64(last)] % np.uint64(d)).astype(np.intp)
