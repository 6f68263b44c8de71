"""Compiled loops of carriers' receivers: screening of codes, and what they stand for in float32."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.compilation import compiled
from strategies.compressors.fast_bits import U32, U64, fixed, shared
from strategies.method import Vector


@compiled
def _most(codes: Any, mask: Any) -> Any:
    most = U32(0)
    for i in range(len(codes)):
        most = max(most, U32(U32(codes[i]) & mask))
    return most


def peak(x: Vector) -> float:
    """Return the largest absolute value; NaN is larger than any number."""
    return float(np.uint32(most(x.view(np.uint32), 0x7FFFFFFF)).view(np.float32))


def most(codes: NDArray[Any], mask: int) -> int:
    """Return the largest of unsigned codes, of each the bits of the mask."""
    return int(max(shared(len(codes), 1, lambda lo, hi: _most(fixed(codes[lo:hi]), U32(mask)))))


@compiled
def _furthest(codes: Any) -> Any:
    low = high = np.int32(0)
    for i in range(len(codes)):
        low, high = min(low, np.int32(codes[i])), max(high, np.int32(codes[i]))
    return max(-low, high)


def furthest(codes: NDArray[Any]) -> int:
    """Return the largest absolute value of signed codes."""
    return int(max(shared(len(codes), 1, lambda lo, hi: _furthest(fixed(codes[lo:hi])))))


@compiled
def _read_signs(packed: Any, positive: Any, lo: Any, hi: Any, out: Any) -> None:
    h = len(packed)
    for plane in range(8):
        part, codes = out[plane * h + lo : min(plane * h + hi, len(out))], packed[lo:hi]
        left = U32(31 - plane)
        for j in range(len(part)):
            part[j] = U32(U32(U32(codes[j]) << left) & U32(0x80000000)) ^ positive


@cache
def _read_loop(width: int) -> Any:
    planes, right = 8 // width, np.int32(32 - width)

    @compiled
    def read_packed_loop(packed: Any, multiplier: Any, lo: Any, hi: Any, out: Any) -> None:
        h = len(packed)
        for plane in range(planes):
            part, codes = out[plane * h + lo : min(plane * h + hi, len(out))], packed[lo:hi]
            factor = U32(1 << (32 - width * (plane + 1)))
            for j in range(len(part)):
                part[j] = np.float32(np.int32(np.int32(U32(U32(codes[j]) * factor)) >> right)) * multiplier

    return read_packed_loop


def read_packed(packed: NDArray[np.uint8], width: int, count: int, multiplier: np.floating[Any]) -> Vector:
    """Return the codes that ``packing.unpack`` gives, those of 1 bit made odd, times the multiplier."""
    out = np.empty(count, np.float32)
    if width == 1:
        positive, bits = U32(np.float32(multiplier).view(np.uint32)), out.view(np.uint32)
        shared(len(packed), 64, lambda lo, hi: _read_signs(fixed(packed), positive, lo, hi, bits), 8)
    else:
        loop, factor = _read_loop(width), np.float32(multiplier)
        shared(len(packed), 64, lambda lo, hi: loop(fixed(packed), factor, lo, hi, out), 8 // width)
    return out


@compiled
def _read_codes(codes: Any, multiplier: Any, out: Any) -> None:
    for i in range(len(codes)):
        out[i] = np.float32(codes[i]) * multiplier


def read_codes(codes: NDArray[Any], multiplier: float) -> Vector:
    """Return the codes times the multiplier."""
    return _read(_read_codes, codes, np.float32(multiplier))


def _read(loop: Any, codes: NDArray[Any], *constants: Any) -> Vector:
    """Return what loop(part of the codes, *constants, part of the result) makes of the codes."""
    out = np.empty(len(codes), np.float32)
    shared(len(out), 64, lambda lo, hi: loop(fixed(codes[lo:hi]), *constants, out[lo:hi]))
    return out


@compiled
def _read_float16(codes: Any, multiplier: Any, out: Any) -> None:
    for i in range(len(codes)):
        code = U32(codes[i])
        size = U32(code & U32(0x7FFF))
        low = size < U32(0x400)  # below the smallest normal number: 2^-14 more is normal, and comes off again
        lifted = U32(U32(size << U32(13)) + (U32(113 << 23) if low else U32(112 << 23))).view(np.float32)
        value = np.float32(lifted - (np.float32(2.0**-14) if low else np.float32(0)))
        out[i] = U32(value.view(U32) | U32(U32(code & U32(0x8000)) << U32(16))).view(np.float32) * multiplier


@compiled
def _read_bfloat16(codes: Any, multiplier: Any, out: Any) -> None:
    for i in range(len(codes)):
        out[i] = U32(U32(codes[i]) << U32(16)).view(np.float32) * multiplier


def read_half(codes: NDArray[np.uint16], mantissa: int, multiplier: float) -> Vector:
    """Return what the bits of finite numbers of 16 bits stand for, times the multiplier."""
    return _read(_read_float16 if mantissa == 10 else _read_bfloat16, codes, np.float32(multiplier))


@compiled
def _read_powers(codes: Any, lift: Any, multiplier: Any, out: Any) -> None:
    for i in range(len(codes)):
        code = U32(codes[i])
        e = U32(code & U32(0x7F))
        bits = U32(U32(e + lift) << U32(23)) if e > U32(0) else U32(0)
        out[i] = U32(bits | U32(U32(code & U32(0x80)) << U32(24))).view(np.float32) * multiplier


def read_powers(codes: NDArray[np.uint8], lift: int, multiplier: float) -> Vector:
    """Return 2^(e - 127 + lift) with sign for every code's e, 0 for e = 0, times the multiplier."""
    return _read(_read_powers, codes, U32(lift), np.float32(multiplier))


@cache
def _exceeds_loop(width: int) -> Any:
    lanes = sum(1 << place for place in range(0, 64, width))  # words of 64 bits as vectors of codes
    ones, top = U64(lanes), U64(lanes << (width - 1))
    rest, mask = U64(~(lanes << (width - 1)) % 2**64), U64((1 << width) - 1)

    @compiled
    def exceeds_loop(packed: Any, levels: Any) -> Any:
        up, beyond = ones * levels, ones * (mask - U64(2) * levels)
        bad = U64(0)
        for j in range(len(packed)):
            lifted = ((packed[j] & rest) + (up & rest)) ^ ((packed[j] ^ up) & top)  # lane by lane, 0 .. 2 levels
            carried = (lifted & rest) + (beyond & rest)
            bad |= ((lifted & beyond) | ((lifted | beyond) & carried)) & top  # what is more overflows its lane
        return bad != U64(0)

    return exceeds_loop


def exceeds(packed: NDArray[np.uint8], width: int, levels: int) -> bool:
    """Return whether a packed code is beyond ``levels``."""
    whole, last = packed[: len(packed) // 8 * 8], np.zeros(8, np.uint8)
    last[: len(packed) % 8] = packed[len(whole) :]
    loop = _exceeds_loop(width)
    return any(bool(loop(fixed(part.view(np.uint64)), U64(levels))) for part in (whole, last))


def prepare() -> None:
    """Compile all loops, or load them: a call of each."""
    code = np.zeros(1, np.uint8)
    peak(np.ones(1, np.float32))
    most(code, 1)
    most(np.zeros(1, np.uint16), 1)
    furthest(np.zeros(1, np.int8))
    furthest(np.zeros(1, np.int16))
    for width in (2, 4):
        exceeds(code, width, 1)
        read_packed(code, width, 2, np.float32(1.0))
    read_packed(code, 1, 2, np.float32(1.0))
    read_codes(np.zeros(1, np.int8), 1.0)
    read_codes(np.zeros(1, np.int16), 1.0)
    read_powers(code, 0, 1.0)
    read_half(np.zeros(1, np.uint16), 10, 1.0)
    read_half(np.zeros(1, np.uint16), 7, 1.0)
