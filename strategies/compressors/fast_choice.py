"""Compiled loops over coordinates: seeded masks and permutations, and moving what they choose.

A choice is a bitmap in words of 64 bits, the lowest bit first; bits behind the last coordinate are 0.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import parallel
from strategies.compilation import compiled
from strategies.compressors.fast_bits import U32, U64, bit_count, fixed, high_product, lowest_bit, shared, word64
from strategies.method import Vector

Words = NDArray[np.uint64]
_BATCH = 1024
"""Coordinates that are worked out at a time, in the cache."""
_MARKERS, _MARKED = 4, 1 << 17
"""The first draws of a mask are cut into so many parts at most, of so many draws at least."""
_WORDS = 64
"""Words whose places are listed at a time, in the cache."""


@compiled
def _draw(seed: Any, start: Any, d: Any, last: Any, ratio: Any, drawn: Any) -> None:
    for i in range(len(drawn)):
        z = word64(seed, U64(start + i))
        j = z - high_product(z, ratio) * d  # z mod d, or d more
        j = j - d if j >= d else j
        drawn[i] = j if z <= last else d


@compiled
def _mark(seed: Any, start: Any, stop: Any, d: Any, last: Any, ratio: Any, marked: Any) -> None:
    """Mark what draws from number ``start`` to before ``stop`` name."""
    drawn = np.empty(_BATCH, np.uint64)
    for first in range(start, stop, _BATCH):
        batch = drawn[: min(_BATCH, stop - first)]
        _draw(seed, first, d, last, ratio, batch)
        for i in range(len(batch)):
            j = batch[i]
            if j < d:
                marked[j >> U64(6)] |= U64(1) << (j & U64(63))


def mask(seed: int, d: int, k: int) -> Words:
    """Return the choice that ``coordinates.mask`` makes."""
    inverted = 2 * k > d
    wanted = d - k if inverted else k
    constants = U64(d), U64(2**64 - 2**64 % d - 1), U64(min(2**64 // d, 2**64 - 1))
    parts = max(1, min(_MARKERS, wanted // _MARKED))
    sets = np.zeros((parts, (d + 63) // 64), np.uint64)
    # The first `wanted` draws are all in the set, whoever marks them; then as many as are missing, and so on.
    parallel.share(
        lambda p: _mark(U64(seed), p * wanted // parts, (p + 1) * wanted // parts, *constants, sets[p]), parts
    )
    marked: Words = sets[0]
    for others in sets[1:]:
        marked |= others
    drawn = wanted
    while missing := wanted - bit_count(marked):
        _mark(U64(seed), drawn, drawn + missing, *constants, marked)
        drawn += missing
    if inverted:
        np.invert(marked, out=marked)
        if d % 64:
            marked[-1] &= U64((1 << d % 64) - 1)
    return marked


@compiled
def _list(words: Any, first: Any, sure: Any, out: Any) -> Any:
    """List the places of the bits in a few words; return how many there are.

    The first ``sure`` of each word are written whether they are there or not: cheaper than to mispredict how many.
    """
    at = U64(0)
    for w in range(len(words)):
        bits, base = words[w], U64(first + w) * U64(64)
        for _ in range(sure):
            out[at] = base + lowest_bit(bits)
            at += U64(1) if bits else U64(0)
            bits &= bits - U64(1)
        while bits:
            out[at] = base + lowest_bit(bits)
            at += U64(1)
            bits &= bits - U64(1)
    return np.int64(at)


@cache
def _listing(task: str) -> Any:
    """Return a loop over the places of the bits: it lists them, takes what is there, or puts something there."""
    takes, puts = task == "take", task == "put"

    @compiled
    def listing_loop(source: Any, words: Any, lo: Any, hi: Any, sure: Any, out: Any) -> None:
        listed, at = np.empty(64 * _WORDS + 64, np.uint64), 0
        for w in range(lo, hi, _WORDS):
            found = _list(words[w : min(w + _WORDS, hi)], w, sure, listed)
            for i in range(found):
                if puts:
                    out[listed[i]] = source[at + i]
                else:
                    out[at + i] = source[listed[i]] if takes else np.int64(listed[i])
            at += found

    return listing_loop


def _along(chosen: Words, k: int, job: Callable[[int, int, int, int], None]) -> None:
    """Run job(lo, hi, sure, at) for parts of the words: ``at`` bits are set before word ``lo``."""
    mean = k / max(1, len(chosen))
    sure = min(16, int(mean + 1.2 * mean**0.5 + 0.5))
    share = 64 * len(chosen)

    def part(lo: int, hi: int) -> None:
        job(lo // 64, hi // 64, sure, bit_count(chosen[: lo // 64]))

    shared(share, 64 * _WORDS, part)


def places(chosen: Words, k: int) -> NDArray[np.intp]:
    """Return the places of the k bits, ascending."""
    loop, words, out = _listing("list"), fixed(chosen), np.empty(k, np.intp)
    _along(chosen, k, lambda lo, hi, sure, at: loop(words, words, lo, hi, sure, out[at:]))
    return out


def take(v: Vector, chosen: Words, k: int) -> Vector:
    """Return the k values of v where a bit is set, in order."""
    loop, out = _listing("take"), np.empty(k, np.float32)
    _along(chosen, k, lambda lo, hi, sure, at: loop(fixed(v), fixed(chosen), lo, hi, sure, out[at:]))
    return out


def put(values: Vector, chosen: Words, d: int) -> Vector:
    """Return the vector of length d with values where a bit is set, in order, and 0 elsewhere."""
    loop, out = _listing("put"), np.zeros(d, np.float32)
    _along(chosen, len(values), lambda lo, hi, sure, at: loop(fixed(values[at:]), fixed(chosen), lo, hi, sure, out))
    return out


@compiled
def _mix(x: Any, add: Any, multiply: Any, mask: Any, fold: Any) -> None:
    down = U32(fold) & U32(31)
    for r in range(len(add)):
        a, m = add[r], multiply[r]
        for i in range(len(x)):
            z = U32(U32(U32(x[i] + a) * m) & mask)
            x[i] = U32(z ^ U32(z >> down))


@compiled
def _walk(start: Any, add: Any, multiply: Any, mask: Any, fold: Any, d: Any, x: Any, again: Any, to: Any) -> None:
    """Set x to what the permutation has from position ``start`` on."""
    for i in range(len(x)):
        x[i] = U32(start + i)
    _mix(x, add, multiply, mask, fold)
    n = 0
    for i in range(len(x)):
        again[n], to[n] = x[i], i
        n += 1 if x[i] >= d else 0
    while n:
        _mix(again[:n], add, multiply, mask, fold)
        left = 0
        for i in range(n):
            z, t = again[i], to[i]
            x[t] = z  # and over it, if it is not below d
            again[left], to[left] = z, t
            left += 1 if z >= d else 0
        n = left


@compiled
def _permuted(start: Any, add: Any, multiply: Any, mask: Any, fold: Any, d: Any, out: Any) -> None:
    again, to = np.empty(_BATCH, np.uint32), np.empty(_BATCH, np.uint32)
    for at in range(0, len(out), _BATCH):
        _walk(start + at, add, multiply, mask, fold, d, out[at : at + _BATCH], again, to)


def permuted(keys: Words, bits: int, d: int, start: int, stop: int) -> NDArray[np.uint32]:
    """Return what the permutation of ``coordinates.part`` has at the positions from start to before stop; d < 2^32.

    Sums, products and their lower bits are the same in words of 32 bits.
    """
    out = np.empty(stop - start, np.uint32)
    add, multiply = keys[::2].astype(np.uint32), (keys[1::2] | U64(1)).astype(np.uint32)
    constants = add, multiply, U32(2**bits - 1), U32((bits + 1) // 2), U32(d)
    shared(len(out), _BATCH, lambda lo, hi: _permuted(start + lo, *constants, out[lo:hi]))
    return out


@compiled
def _take_at(v: Any, places: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = v[places[i]]


def take_at(v: Vector, places: NDArray[np.uint32]) -> Vector:
    """Return ``v[places]``."""
    out = np.empty(len(places), np.float32)
    shared(len(out), _BATCH, lambda lo, hi: _take_at(fixed(v), fixed(places[lo:hi]), out[lo:hi]))
    return out


@compiled
def _put_at(values: Any, places: Any, out: Any) -> None:
    for i in range(len(values)):
        out[places[i]] = values[i]


def put_at(values: Vector, places: NDArray[np.uint32], d: int) -> Vector:
    """Return the vector of length d with values at their places, all below d, and 0 elsewhere."""
    out = np.zeros(d, np.float32)
    shared(len(places), _BATCH, lambda lo, hi: _put_at(fixed(values[lo:hi]), fixed(places[lo:hi]), out))
    return out


def prepare() -> None:
    """Compile all loops, or load them: a call of each."""
    x, chosen = np.ones(3, np.float32), mask(0, 3, 2)
    places(chosen, 2)
    put(take(x, chosen, 2), chosen, 3)
    few = permuted(np.ones(2, np.uint64), 2, 3, 0, 3)
    put_at(take_at(x, few), few, 3)
