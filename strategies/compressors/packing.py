"""Arithmetic on whole arrays that compressors share: sums, bits of floats, and codes packed in planes.

Long float32 vectors take loops that are compiled once (fast_packing.py, with the same results to the last bit); they
are imported at the first such vector, which takes most of a second. ``prepare`` does it before a run's first round.
"""

import importlib
import math
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from strategies.method import Vector

LONG = 1 << 17
"""From this length on the compiled loops are loaded."""
WORTH_IT = 1 << 12
"""From this length on they are used, once they are loaded: they give what NumPy gives."""
_SINGLE = np.dtype(np.float32)
SUMMED, LANES = 1 << 18, 512
"""A vector is summed in pieces of so many numbers, whose sums are added in order. Number j of a piece is added to sum j
mod 512, one after the other; then these sums are added by halving."""

Bytes = NDArray[np.uint8]


def fast(x: Vector) -> Any:
    """Return the module of compiled loops where ``x`` is for them, else None."""
    return loops_for(len(x), x.dtype) if x.flags.c_contiguous else None


def loops_for(count: int, dtype: np.dtype[Any] = _SINGLE) -> Any:
    """Return the module of compiled loops for so many numbers of that type, or None where NumPy is to do it."""
    loaded = "strategies.compressors.fast_packing" in sys.modules
    return load_loops() if dtype == _SINGLE and count >= (WORTH_IT if loaded else LONG) else None


@lru_cache(maxsize=1)
def load_loops() -> ModuleType:
    """Return the module of compiled loops."""
    return importlib.import_module("strategies.compressors.fast_packing")


def prepare(dim: int) -> None:
    """Compile, or load, the loops that vectors of length ``dim`` will need."""
    if (loops := loops_for(dim)) is not None:
        loops.prepare()


def parts_of(dtype: np.dtype[Any]) -> tuple[type[np.unsignedinteger[Any]], int, int]:
    """Return how a float type lies in memory: the integer type of its size, bits of mantissa, bias of exponent."""
    return (np.uint32, 23, 127) if dtype.itemsize == 4 else (np.uint64, 52, 1023)


def peak(x: Vector) -> float:
    """Return the largest absolute value; 0 for no values, NaN or inf where one is."""
    if (loops := fast(x)) is not None:
        return float(loops.peak(x))
    # Either is NaN where one number is. The sum is never -0.
    return max(float(np.maximum.reduce(x, initial=0.0)), -float(np.minimum.reduce(x, initial=0.0))) + 0.0


def l2(x: Vector) -> float:
    """Return ||x||, summed in float64 in an order that is fixed; inf or NaN where ``x`` is not finite."""
    with np.errstate(over="ignore", under="ignore"):
        square = _sum(x, squared=True)
    if x.dtype == np.float32 or 1e-280 < square < math.inf or math.isnan(square):
        return math.sqrt(square)
    top = peak(x)
    return top if top == 0.0 or math.isinf(top) else top * math.sqrt(_sum(x / top, squared=True))


def l1(x: Vector) -> float:
    """Return the sum of the absolute values, in float64 and in an order that is fixed."""
    return _sum(x, squared=False)


def _sum(x: Vector, *, squared: bool) -> float:
    if (loops := fast(x)) is not None:
        return float(loops.sum_of(x, squared))
    return sum((_piece_sum(x[at : at + SUMMED], squared=squared) for at in range(0, len(x), SUMMED)), 0.0)


def _piece_sum(x: Vector, *, squared: bool) -> float:
    lanes = np.zeros(LANES)
    for start in range(0, len(x), 64 * LANES):
        piece = x[start : start + 64 * LANES].astype(np.float64)
        terms = piece * piece if squared else np.abs(piece)
        rows = np.zeros((-(-len(terms) // LANES), LANES))
        rows.ravel()[: len(terms)] = terms
        for row in rows:
            lanes += row
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


def packed_bytes(count: int, width: int) -> int:
    """Return how many bytes ``count`` codes of ``width`` bits take."""
    return -(-count * width // 8)


def pack(codes: Bytes, width: int) -> Bytes:
    """Return the lowest 1, 2 or 4 bits of each code, in planes: byte j of h holds codes j, j + h, ... from bit 0 up."""
    h = packed_bytes(len(codes), width)
    mask = np.uint8((1 << width) - 1)
    packed = np.zeros(h, np.uint8)
    for plane in range(8 // width):
        part = codes[plane * h : (plane + 1) * h]
        packed[: len(part)] |= (part & mask) << np.uint8(plane * width)
    return packed


def unpack(packed: Bytes, width: int, count: int) -> NDArray[np.int8]:
    """Return the codes as signed numbers: of 1 bit 0 or -1, of 2 bits -2 .. 1, of 4 bits -8 .. 7."""
    codes = np.empty(8 // width * len(packed), np.int8)
    for plane, part in enumerate(np.split(codes, 8 // width)):
        np.left_shift(packed, np.uint8(8 - width * (plane + 1)), out=part.view(np.uint8))
        np.right_shift(part, np.int8(8 - width), out=part)
    return codes[:count]


def read_packed(packed: Bytes, width: int, count: int, multiplier: np.floating[Any]) -> Vector:
    """Return the codes times a number, of its type; of 1 bit, 0 counts as 1."""
    if (loops := loops_for(count, multiplier.dtype)) is not None:
        return cast(Vector, loops.read_packed(packed, width, count, multiplier))
    codes = unpack(packed, width, count)
    codes |= np.int8(width == 1)
    return cast(Vector, np.multiply(codes, multiplier, dtype=multiplier.dtype))


def read_codes(codes: NDArray[np.signedinteger], multiplier: np.floating[Any]) -> Vector:
    """Return codes of 8 or 16 bits times a number, of its type."""
    if (loops := loops_for(len(codes), multiplier.dtype)) is not None:
        return cast(Vector, loops.read_codes(codes, multiplier))
    return cast(Vector, np.multiply(codes, multiplier, dtype=multiplier.dtype))


def filling(packed: Bytes, width: int, count: int) -> bool:
    """Return whether a bit behind the last code is set."""
    h, mask = len(packed), (1 << width) - 1
    spare = (divmod(place, h) for place in range(count, 8 // width * h))
    return any(int(packed[j]) >> (plane * width) & mask for plane, j in spare)


def exceeds(packed: Bytes, width: int, levels: int) -> bool:
    """Return whether a code is beyond ``levels``."""
    loops = loops_for(4 * len(packed))
    return largest(packed, width) > levels if loops is None else bool(loops.exceeds(packed, width, levels))


def largest(packed: Bytes, width: int) -> int:
    """Return the largest absolute value of the codes."""
    return furthest(unpack(packed, width, 8 // width * len(packed)))


def most(codes: NDArray[np.unsignedinteger[Any]], mask: int) -> int:
    """Return the largest of the codes, of each the bits of the mask; 0 for no codes."""
    loops = loops_for(len(codes))
    return int(np.max(codes & codes.dtype.type(mask), initial=0)) if loops is None else int(loops.most(codes, mask))


def furthest(codes: NDArray[np.signedinteger]) -> int:
    """Return the largest absolute value of codes of 8 or 16 bits."""
    loops = loops_for(len(codes))
    if loops is None:
        return max(int(np.max(codes, initial=0)), -int(np.min(codes, initial=0)))
    return int(loops.furthest(codes))


def negated(packed: Bytes, width: int) -> Bytes:
    """Return minus the codes."""
    return pack((-unpack(packed, width, 8 // width * len(packed))).view(np.uint8), width)
