"""How the numbers of a packet travel: the contract, and the plain way.

A compressor says which coordinates travel, its carrier how their values do: as they are (here), rounded to 16 bits
(half.py) or to a few levels (dither.py). The two are drawn one after the other, so that for unbiased ones 1 + omega
and D_Q multiply.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.compressors import packing
from strategies.compressors.coordinates import draw_seed, words
from strategies.method import PacketLayout, Vector

Codes = NDArray[Any]
"""What travels for the values: of the dtype and length that ``Carrier.layout`` says."""
DType = np.dtype[Any]
_SMALL = 1e4
"""Below it no type of floats overflows."""
NOT_FINITE = "not finite: NaN or infinite values"


class Carrier(Protocol):
    """An operator on the values of a packet, in two halves: ``write`` at one end, ``read`` at the other."""

    def __hash__(self) -> int:
        """Return a hash of what it is."""

    def layout(self, count: int, dtype: DType) -> PacketLayout:
        """Return what ``count`` values of that type travel as."""

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return codes and scale of values, shape (count,). Without ``rng``: the codes that read closest to them."""

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return ``factor`` times the values, shape (count,)."""

    def validate(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> str | None:
        """Say why ``read`` must not have these, which are of the right layout, or None if it may."""

    def opposite(self, codes: Codes, count: int) -> Codes:
        """Return the codes that read as minus these."""

    def omega(self, count: int) -> float:
        """Return b with E||read - written||^2 <= b ||written||^2."""

    def norm_bound(self, count: int) -> float:
        """Return D with ||read|| <= D ||written||."""


@dataclass(frozen=True)
class Full:
    """Values as they are."""

    def layout(self, count: int, dtype: DType) -> PacketLayout:
        """Return a value each, of the vector's own type."""
        return PacketLayout(count, dtype)

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return the values."""
        return x, None

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return the values times ``factor``."""
        return codes if factor == 1.0 else codes * dtype.type(factor)

    def validate(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> str | None:
        """Say whether a value is not finite, or will not be once multiplied."""
        return not_finite(codes, factor)

    def opposite(self, codes: Codes, count: int) -> Codes:
        """Return minus the values."""
        return -codes

    def omega(self, count: int) -> float:
        """Return 0."""
        return 0.0

    def norm_bound(self, count: int) -> float:
        """Return 1."""
        return 1.0


class Floats:
    """Codes that are floats of a few bits, the sign in the highest, times a power of two."""

    code: ClassVar[type[np.unsignedinteger[Any]]]

    def largest(self, codes: Codes) -> float:
        """Return the largest absolute value that a code is read as."""
        raise NotImplementedError

    def layout(self, count: int, dtype: DType) -> PacketLayout:
        """Return a code each, and the power of two."""
        return PacketLayout(count, np.dtype(self.code), scale=True)

    def validate(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> str | None:
        """Say whether the scale is no power of two, or a value is not finite or will not be once multiplied."""
        flaw = bad_scale(scale, factor, dtype, power=True)
        if flaw or scale is None:
            return flaw
        largest = self.largest(codes)
        return overflows(largest, scale * factor, dtype) if math.isfinite(largest) else NOT_FINITE

    def opposite(self, codes: Codes, count: int) -> Codes:
        """Return the codes with all signs turned."""
        return np.bitwise_xor(codes, self.code(1 << (8 * codes.itemsize - 1)))


def bad_scale(scale: float | None, factor: float, dtype: DType, *, power: bool = False) -> str | None:
    """Say why values must not be multiplied by ``scale * factor``, or None if they may be.

    With ``power`` the scale must be a power of two.
    """
    if scale is None or not np.isfinite(scale):
        return f"not finite: scale {scale}"
    if scale < 0:
        return f"bad scale: {scale:g}, expected none below 0"
    if scale * factor > float(np.finfo(dtype).max):
        return f"not finite: scale {scale:g} overflows {dtype} when multiplied by {factor:g}"
    return f"bad scale: {scale:g}, expected a power of two" if power and math.frexp(scale)[0] != 0.5 else None


def overflows(largest: float, multiplier: float, dtype: DType) -> str | None:
    """Say whether a code that stands for ``largest`` does not fit the type once multiplied."""
    if largest * multiplier <= float(np.finfo(dtype).max):
        return None
    return f"not finite: values overflow {dtype} when multiplied by {multiplier:g}"


def uniform_bits(rng: Generator, count: int, width: int) -> NDArray[Any]:
    """Return ``count`` uniform words of 32 or 64 bits from one seed that is drawn from ``rng``.

    Those of 64 are SplitMix64's. Of 32, word i is i + (lower half of the seed), put through a mix of 32 bits to which
    the upper half is added half-way: a quarter of the work. They repeat after 2^32.

    Source: Wellons: Prospecting for hash functions (2018), lowbias32.
    """
    seed = draw_seed(rng)
    if width == 64:
        return words(seed, 0, count)
    z = np.arange(count, dtype=np.uint32)
    z += np.uint32(seed & 0xFFFFFFFF)
    z ^= z >> np.uint32(16)
    z *= np.uint32(0x7FEB352D)
    z ^= z >> np.uint32(15)
    z += np.uint32(seed >> 32)
    z *= np.uint32(0x846CA68B)
    z ^= z >> np.uint32(16)
    return z


def not_finite(values: Vector, factor: float) -> str | None:
    """Say whether some of the numbers, multiplied by ``factor`` in their own type, are not finite."""
    peak = packing.peak(values)
    if peak * factor < _SMALL:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        largest = values.dtype.type(peak) * values.dtype.type(factor)
    if np.isfinite(largest):
        return None
    if np.isfinite(values).all():
        return f"not finite: values overflow {values.dtype} when multiplied by {factor:g}"
    return NOT_FINITE
