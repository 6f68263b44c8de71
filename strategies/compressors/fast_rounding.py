"""Compiled loops of carriers' senders: sums and random rounding of float32 values."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.compilation import compiled
from strategies.compressors.fast_bits import U32, fixed, shared, word32
from strategies.compressors.packing import LANES, SUMMED
from strategies.method import Vector

_PIECE = 4096
"""Bytes of packed codes that are written at a time, so that the planes meet in the cache."""


@compiled
def _sum_of(x: Any, squared: Any) -> Any:
    lanes = np.zeros(LANES)
    for start in range(0, len(x), LANES):
        row = x[start : start + LANES]
        if squared:
            for j in range(len(row)):
                lanes[j] += np.float64(row[j]) * np.float64(row[j])
        else:
            for j in range(len(row)):
                lanes[j] += abs(np.float64(row[j]))
    half = LANES // 2
    while half:
        for j in range(half):
            lanes[j] += lanes[half + j]
        half //= 2
    return lanes[0]


def sum_of(x: Vector, squared: bool) -> float:
    """Return the sum of squares or of absolute values, as ``packing.l2`` and ``l1`` add them."""
    sums = np.zeros(-(-len(x) // SUMMED))

    def part(lo: int, hi: int) -> None:
        for start in range(lo, hi, SUMMED):
            sums[start // SUMMED] = _sum_of(fixed(x[start : min(start + SUMMED, hi)]), squared)

    shared(len(x), SUMMED, part)
    return float(sum(sums.tolist()))


@cache
def _half_loop(mantissa: int, bias: int) -> Any:
    """Return a loop for one form of 16 bits: only shifts by constants stay in vectors of 32 bits."""
    drop, kept, floor = U32(23 - mantissa), U32((1 << (23 - mantissa)) - 1), np.float32(2.0 ** (1 - bias))
    shift_low, shift = U32((128 - bias) << mantissa), U32((127 - bias) << mantissa)

    @compiled
    def half_codes_loop(x: Any, inverse: Any, low: Any, high: Any, out: Any) -> None:
        for i in range(len(x)):
            y = np.float32(x[i] * inverse)
            size = abs(y)
            small = size < floor
            lifted = np.float32(size + (floor if small else np.float32(0)))
            bits = U32(lifted.view(U32) + (word32(low, high, i) & kept))
            code = U32(bits >> drop) - (shift_low if small else shift)
            out[i] = np.uint16(U32(code) | U32(U32(y.view(U32) >> U32(31)) << U32(15)))

    return half_codes_loop


def half_codes(x: Vector, inverse: float, mantissa: int, bias: int, seed: int) -> NDArray[np.uint16]:
    """Return what ``half.Half`` rounds ``x * inverse`` to at random."""
    return _rounded(_half_loop(mantissa, bias), x, np.uint16, seed, np.float32(inverse))


@compiled
def _level(v: Any, multiplier: Any, levels: Any, draw: Any) -> Any:
    """Return a level below 2^7: 24 bits of fraction hold all that it has."""
    t = np.int32(abs(v) * multiplier * np.float32(2.0**24))
    level = min(np.int32(U32(U32(t) + U32(draw >> U32(8))) >> U32(24)), levels)
    return np.int32(-level if v < 0 else level)


@compiled
def _dither_codes(x: Any, multiplier: Any, levels: Any, low: Any, high: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = np.int8(_level(x[i], multiplier, levels, word32(low, high, i)))


@compiled
def _fine_dither_codes(x: Any, multiplier: Any, levels: Any, low: Any, high: Any, out: Any) -> None:
    for i in range(len(x)):
        t = abs(x[i]) * multiplier
        lower = np.int32(t)
        draw = np.float32(np.int32(word32(low, high, i) >> U32(8))) * np.float32(2.0**-24)
        level = min(np.int32(lower + np.int32(draw < t - np.float32(lower))), levels)
        out[i] = np.int16(-level if x[i] < 0 else level)


def dither_codes(x: Vector, multiplier: float, levels: int, seed: int) -> NDArray[Any]:
    """Return what ``dither.Dither`` rounds ``x * multiplier`` to at random."""
    loop, code = (_dither_codes, np.int8) if levels < 128 else (_fine_dither_codes, np.int16)
    return _rounded(loop, x, code, seed, np.float32(multiplier), np.int32(levels))


@cache
def _dither_loop(width: int) -> Any:
    planes, mask = 8 // width, U32((1 << width) - 1)

    @compiled
    def dither_packed_loop(
        x: Any, multiplier: Any, levels: Any, low: Any, high: Any, packed: Any, lo: Any, hi: Any
    ) -> None:
        h = len(packed)
        for start in range(lo, hi, _PIECE):
            piece = packed[start : min(start + _PIECE, hi)]
            for plane in range(planes):
                first = plane * h + start
                part = x[first : min(first + len(piece), plane * h + h, len(x))]
                factor = U32(1 << (plane * width))
                for j in range(len(part)):
                    code = U32(U32(_level(part[j], multiplier, levels, word32(low, high, U32(first + j)))) & mask)
                    piece[j] |= np.uint8(U32(code * factor))

    return dither_packed_loop


def dither_packed(x: Vector, multiplier: float, levels: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return the same codes packed, of 2 or 4 bits."""
    packed = np.zeros(-(-len(x) * width // 8), np.uint8)
    constants = np.float32(multiplier), np.int32(levels), U32(seed & 0xFFFFFFFF), U32(seed >> 32)
    loop = _dither_loop(width)
    shared(len(packed), _PIECE, lambda lo, hi: loop(fixed(x), *constants, packed, lo, hi), 16 // width)
    return packed


@compiled
def _signs_packed(bits: Any, packed: Any, lo: Any, hi: Any) -> None:
    h = len(packed)
    for start in range(lo, hi, _PIECE):
        piece = packed[start : min(start + _PIECE, hi)]
        for plane in range(8):
            first = plane * h + start
            part = bits[first : min(first + len(piece), plane * h + h, len(bits))]
            factor = U32(1 << plane)
            for j in range(len(part)):
                piece[j] |= np.uint8(U32(U32(part[j] >> U32(31)) * factor))


def signs_packed(x: Vector) -> NDArray[np.uint8]:
    """Return the signs of all numbers, packed."""
    packed = np.zeros(-(-len(x) // 8), np.uint8)
    bits = fixed(x.view(np.uint32))
    shared(len(packed), _PIECE, lambda lo, hi: _signs_packed(bits, packed, lo, hi), 8)
    return packed


@compiled
def _power_codes(bits: Any, top: Any, low: Any, high: Any, out: Any) -> None:
    for i in range(len(bits)):
        raised = U32(U32(bits[i] & U32(0x7FFFFFFF)) + U32(word32(low, high, i) & U32(0x7FFFFF)))
        exponent = np.int32(raised >> U32(23))
        code = min(max(np.int32(exponent + np.int32(127) - top), np.int32(0)), np.int32(127))
        code = np.int32(0) if exponent == 0 else code
        out[i] = np.uint8(U32(code) | U32(U32(bits[i] >> U32(31)) << U32(7)))


def power_codes(x: Vector, top: int, seed: int) -> NDArray[np.uint8]:
    """Return what ``dither.Powers`` makes of ``x``."""
    return _rounded(_power_codes, x.view(np.uint32), np.uint8, seed, np.int32(top))


def _rounded(loop: Any, x: NDArray[Any], code: type[np.integer[Any]], seed: int, *constants: Any) -> NDArray[Any]:
    """Return what loop(part of x, *constants, lower half of the seed, upper half, part of the codes) makes of x.

    Word i of a part is word lo + i of all.
    """
    out = np.empty(len(x), code)

    def part(lo: int, hi: int) -> None:
        loop(fixed(x[lo:hi]), *constants, U32((seed + lo) & 0xFFFFFFFF), U32(seed >> 32), out[lo:hi])

    shared(len(x), 64, part, 2)
    return out


def prepare() -> None:
    """Compile all loops, or load them: a call of each."""
    x = np.ones(3, np.float32)
    sum_of(x, True)
    half_codes(x, 1.0, 10, 15, 0)
    half_codes(x, 1.0, 7, 127, 0)
    dither_codes(x, 1.0, 1, 0)
    dither_codes(x, 1.0, 200, 0)
    dither_packed(x, 1.0, 1, 2, 0)
    dither_packed(x, 1.0, 1, 4, 0)
    signs_packed(x)
    power_codes(x, 128, 0)
