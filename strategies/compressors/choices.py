"""Some of d coordinates: how a choice of them lies in memory, and what moves the values there.

``take`` is the way from a vector to the values of a packet, ``put`` the way back. Sets of coordinates are bits where
the compiled loops move them: fewer bytes than a list, and in ascending order by themselves.
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from strategies.compressors import packing
from strategies.compressors.packing import Bytes
from strategies.method import Vector

Choice = NDArray[Any]
"""By its dtype: d truth values (bool); d bits in words of 64, the lowest first (uint64); or places (other integers)."""


def take(v: Vector, choice: Choice, k: int) -> Vector:
    """Return the k chosen values of v, shape (k,), a new array."""
    loops = packing.fast(v)
    if loops is not None and choice.dtype in (np.uint64, np.uint32):
        return cast(Vector, loops.take(v, choice, k) if choice.dtype == np.uint64 else loops.take_at(v, choice))
    return v[_truths(choice, len(v)) if choice.dtype == np.uint64 else choice]


def put(values: Vector, choice: Choice, d: int) -> Vector:
    """Return the vector, shape (d,), that has the values where chosen, and 0 elsewhere.

    Args:
        values: as many as are chosen.
        choice: of places below d.
        d: the length.
    """
    loops = packing.loops_for(d, values.dtype) if values.flags.c_contiguous else None
    if loops is not None and choice.dtype in (np.uint64, np.uint32):
        return cast(Vector, (loops.put if choice.dtype == np.uint64 else loops.put_at)(values, choice, d))
    q = np.zeros(d, values.dtype)
    q[_truths(choice, d) if choice.dtype == np.uint64 else choice] = values
    return q


def places(choice: Choice, k: int) -> NDArray[np.intp]:
    """Return the k chosen places of truth values or bits, ascending."""
    d = 64 * len(choice) if choice.dtype == np.uint64 else len(choice)
    loops = packing.loops_for(d)
    if choice.dtype == np.uint64 and loops is not None:
        return cast(NDArray[np.intp], loops.places(choice, k))
    return np.flatnonzero(_truths(choice, d))


def bitmap(choice: Choice, d: int) -> Bytes:
    """Return truth values or bits as ceil(d/8) bytes, the lowest bit first."""
    if choice.dtype != np.uint64:
        return np.packbits(choice, bitorder="little")
    words: NDArray[np.uint64] = choice.astype("<u8", copy=False)
    return words.view(np.uint8)[: (d + 7) // 8]


def of_bitmap(bits: Bytes, d: int) -> Choice:
    """Return the choice of a bitmap that has no bit behind the last coordinate."""
    if packing.loops_for(d) is None:
        return np.unpackbits(bits, count=d, bitorder="little").view(np.bool_)
    words = np.zeros((d + 63) // 64, "<u8")
    words.view(np.uint8)[: len(bits)] = bits
    return words.astype(np.uint64, copy=False)


def largest_k(v: Vector, k: int) -> Choice:
    """Return the coordinates of the k largest absolute values; of equal values the first. NaN is largest.

    Args:
        v: shape (d,).
        k: from 1 to d.
    """
    if (loops := packing.fast(v)) is not None:
        return cast(Choice, loops.largest(v, k))
    size = np.abs(v).view(packing.parts_of(v.dtype)[0])  # as integers floats without sign have the same order
    smallest = np.partition(size, len(v) - k)[len(v) - k]
    above: Choice = size > smallest
    equal = np.flatnonzero(size == smallest)[: k - np.count_nonzero(above)]
    above[equal] = True
    return above


def _truths(choice: Choice, d: int) -> NDArray[np.bool_]:
    if choice.dtype == np.bool_:
        return choice
    return np.unpackbits(bitmap(choice, d), count=d, bitorder="little").view(np.bool_)
