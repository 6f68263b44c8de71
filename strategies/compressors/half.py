"""Values in 16 bits: float16 or bfloat16, times one power of two per packet.

The power of two puts the largest value between 2^14 and 2^15, so that nothing overflows and float16 loses nothing to
denormals that matters: what it cannot hold any more is 2^-38 of the largest value. Rounding is random where the
expectation must be kept, else to the nearest. NumPy has no bfloat16, so both travel as their bits, in uint16.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.compressors import packing
from strategies.compressors.carriers import Codes, DType, Floats, uniform_bits
from strategies.compressors.coordinates import draw_seed
from strategies.method import Vector

HalfName = Literal["float16", "bfloat16"]
_TOP = 15
"""The largest value is scaled into [2^(_TOP - 1), 2^_TOP]."""


@dataclass(frozen=True)
class Half(Floats):
    """Values of 16 bits with m of mantissa: 10 in float16, 7 in bfloat16.

    Random rounding moves a value by less than its last bit, 2^-m of it: the variance is at most (2^-m)^2/4 of its
    square. Below the smallest normal number 2^e the last bit is 2^(e-m), at most 2^(e-m-14) of the largest value.

    Args:
        name: which of the two.
        nearest: round to the nearest, not at random.
    """

    code: ClassVar[type[np.unsignedinteger[Any]]] = np.uint16

    name: HalfName
    nearest: bool = False

    @property
    def mantissa(self) -> int:
        """m, how many bits of mantissa are kept."""
        return 10 if self.name == "float16" else 7

    @property
    def bias(self) -> int:
        """What its exponent 0 is written as."""
        return 15 if self.name == "float16" else 127

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return the bits of x over a power of two; a scale of NaN where x is not finite."""
        peak = packing.peak(x)
        if not math.isfinite(peak):
            return np.zeros(len(x), np.uint16), math.nan
        smallest = -126 if x.dtype == np.float32 else -1022
        scale = math.ldexp(1.0, max(math.frexp(peak)[1] - _TOP, smallest))
        if self.nearest or rng is None:
            return self._round(x / x.dtype.type(scale), None), scale
        if (fast := packing.fast(x)) is not None:
            return fast.half_codes(x, 1.0 / scale, self.mantissa, self.bias, draw_seed(rng)), scale
        return self._round(x / x.dtype.type(scale), uniform_bits(rng, len(x), 8 * x.dtype.itemsize)), scale

    def _round(self, y: Vector, draws: NDArray[Any] | None) -> NDArray[np.uint16]:
        """Return the bits of scaled values, by integer arithmetic on those of their own type."""
        word, mantissa, bias = packing.parts_of(y.dtype)
        drop = word(mantissa - self.mantissa)
        # Below the smallest normal number all have one last bit. Added to that number, they have it in y's type too.
        floor = 2.0 ** (1 - self.bias)
        low = np.abs(y) < floor
        bits = np.where(low, np.abs(y) + y.dtype.type(floor), np.abs(y)).view(word)
        if draws is None:
            bits = bits + (((bits >> drop) & word(1)) + word((1 << (int(drop) - 1)) - 1))  # to even, if half-way
        else:
            bits = bits + (draws & word((1 << int(drop)) - 1))
        shift = np.where(low, word(bias - self.bias + 1), word(bias - self.bias)) << word(self.mantissa)
        codes: NDArray[np.uint16] = ((bits >> drop) - shift).astype(np.uint16)
        codes[np.signbit(y)] |= np.uint16(0x8000)
        return codes

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return the values times the power of two and ``factor``."""
        multiplier = dtype.type((scale or 0.0) * factor)
        if (loops := packing.loops_for(count, dtype)) is not None:
            return cast(Vector, loops.read_half(codes, self.mantissa, multiplier))
        values: Vector = self._values(codes).astype(dtype, copy=False)
        values *= multiplier
        return values

    def largest(self, codes: Codes) -> float:
        with np.errstate(invalid="ignore"):
            return float(self._values(np.full(1, packing.most(codes, 0x7FFF), np.uint16))[0])

    def _values(self, codes: Codes) -> NDArray[np.float32]:
        """Return what the bits stand for, a new array."""
        if self.name == "float16":
            return codes.view(np.float16).astype(np.float32)
        wide = codes.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)

    def omega(self, count: int) -> float:
        """Return the variance of random rounding, or the square of the largest error of rounding to the nearest."""
        return 2.0 ** (-2 * self.mantissa - 2) + count * self._last_bit**2 / 4

    def norm_bound(self, count: int) -> float:
        """Return the length that rounding can give a vector of length 1."""
        move = 2.0**-self.mantissa + math.sqrt(count) * self._last_bit
        return 1.0 + (move / 2 if self.nearest else move)

    @property
    def _last_bit(self) -> float:
        """The last bit of what is below the smallest normal number, over the largest value of a packet."""
        return 2.0 ** (1 - self.bias - self.mantissa - (_TOP - 1))
