"""Values rounded to a few levels: s levels of one norm, powers of two, or nothing but the sign.

Codes are packed as narrow as 1, 2, 4, 8 or 16 bits allow, in planes, so that packing is arithmetic on whole arrays:
of c codes in w bits, byte j holds those of values j, j + h, j + 2h, ... with h = ceil(c w / 8), from its low bits up.
What is left over is 0.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.compressors import packing
from strategies.compressors.carriers import Codes, DType, Floats, bad_scale, overflows, uniform_bits
from strategies.compressors.coordinates import draw_seed
from strategies.method import PacketLayout, Vector

Norm = Literal["l2", "linf"]
MAX_LEVELS = 2**15 - 1
_LIFT = 200
"""Values too small for the arithmetic of their own type are multiplied by two to this power, in float64."""
_GRIDS = 6
"""How many grids an attacker tries."""


@dataclass(frozen=True)
class Dither:
    """Each value becomes sign * norm * l/s, where l is one of the two integers around s |value| / norm, at random.

    l is the upper one with the probability that keeps the expectation, to 2^-24 of a level in float32 and to the last
    bit in float64. Codes are the l with sign, in two's complement of 2, 4, 8 or 16 bits.

    The variance is norm^2/s^2 times the sum of p (1 - p), p the distance to the lower level. With the l2 norm the p
    that are within reach have sum p^2 <= s^2, so the worst is all p = min(1/2, s/sqrt(d)). With the largest absolute
    value, which itself is exact, the worst is all others at one p, and p = s/(s + sqrt(s^2 + d - 1)).

    Args:
        levels: s, from 1 to 32767.
        norm: of the values: ``"l2"``, or ``"linf"``, the largest absolute value.

    Source:
        Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD (NeurIPS 2017), section 3.1, with omega <= min(d/s^2, sqrt(d)/s).
    """

    levels: int
    norm: Norm

    @property
    def width(self) -> int:
        """How many bits a code has."""
        return next(w for w in (2, 4, 8, 16) if self.levels < 1 << (w - 1))

    def layout(self, count: int, dtype: DType) -> PacketLayout:
        """Return the packed codes, and the norm."""
        if self.width < 8:
            return PacketLayout(packing.packed_bytes(count, self.width), np.dtype(np.uint8), scale=True)
        return PacketLayout(count, np.dtype(f"i{self.width // 8}"), scale=True)

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return the codes and the norm; NaN where x is not finite.

        Who forges may claim any norm. So without ``rng`` rounding is to the nearest on the best of a few grids: from
        the one that just reaches the largest value, each half as wide as the last.
        """
        norm = packing.l2(x) if self.norm == "l2" and rng is not None else packing.peak(x)
        if norm == 0.0 or not math.isfinite(norm):
            return self._pack(np.zeros(len(x), np.int16)), 0.0 if norm == 0.0 else math.nan
        lift = _LIFT if norm < float(np.finfo(x.dtype).tiny) * 2.0**30 else 0  # else s/norm could overflow
        y = np.ldexp(x.astype(np.float64), lift) if lift else x
        if rng is None:
            grids = [grid for i in range(_GRIDS) if (grid := norm / 2**i) > 0]  # half the smallest number is 0
            norm = min(grids, key=lambda unit: self._error(y, math.ldexp(unit, lift)))
        unit = math.ldexp(norm, lift)
        fast = packing.fast(y)
        if fast is not None and rng is not None:
            seed = draw_seed(rng)
            if self.width < 8:
                return fast.dither_packed(y, self.levels / unit, self.levels, self.width, seed), norm
            return fast.dither_codes(y, self.levels / unit, self.levels, seed), norm
        return self._pack(self._levels(y, unit, rng)), norm

    def _error(self, y: Vector, unit: float) -> float:
        """Return how far from y its rounding to the nearest on this grid is."""
        return packing.l2(y - self._levels(y, unit, None) * y.dtype.type(unit / self.levels))

    def _levels(self, y: Vector, unit: float, rng: Generator | None) -> NDArray[np.signedinteger]:
        t = np.abs(y) * y.dtype.type(self.levels / unit)
        if rng is None:
            level = np.floor(t + y.dtype.type(0.5))
        elif y.dtype == np.float32 and self.levels < 128:  # 24 bits of fraction hold all that t has
            fixed = (t * np.float32(2.0**24)).astype(np.uint32)
            level = ((fixed + (uniform_bits(rng, len(y), 32) >> np.uint32(8))) >> np.uint32(24)).astype(np.float32)
        else:
            bits, kept = (32, 24) if y.dtype == np.float32 else (64, 53)
            draws = uniform_bits(rng, len(y), bits) >> np.array(bits - kept, f"u{bits // 8}")
            lower = np.floor(t)
            level = lower + (draws.astype(y.dtype) * y.dtype.type(2.0**-kept) < t - lower)
        signed: Vector = np.copysign(np.minimum(level, y.dtype.type(self.levels)), y)
        return signed.astype(np.int8 if self.width <= 8 else np.int16)

    def _pack(self, codes: NDArray[np.signedinteger]) -> Codes:
        if self.width < 8:
            return packing.pack(codes.astype(np.int8, copy=False).view(np.uint8), self.width)
        return codes.astype(f"i{self.width // 8}", copy=False)

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return the levels times norm/s and ``factor``."""
        multiplier = dtype.type((scale or 0.0) / self.levels * factor)
        if self.width < 8:
            return packing.read_packed(codes, self.width, count, multiplier)
        return packing.read_codes(codes, multiplier)

    def validate(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> str | None:
        """Say whether the norm is none, a code is beyond s, a filling bit is set, or a value will not be finite."""
        flaw = bad_scale(scale, factor / self.levels, dtype)
        if flaw or scale is None:
            return flaw
        if self.width < 8:
            if packing.filling(codes, self.width, count):
                return "bad code: bits behind the last code, expected 0"
            fits = overflows(float(self.levels), scale / self.levels * factor, dtype) is None
            if fits and not packing.exceeds(codes, self.width, self.levels):
                return None
            largest = packing.largest(codes, self.width)
        else:
            largest = packing.furthest(codes)
        if largest > self.levels:
            return f"bad code: level {largest}, expected at most {self.levels}"
        return overflows(float(largest), scale / self.levels * factor, dtype)

    def opposite(self, codes: Codes, count: int) -> Codes:
        """Return the codes with all signs turned."""
        return packing.negated(codes, self.width) if self.width < 8 else -codes

    def omega(self, count: int) -> float:
        """Return the bound on the variance that the class explains."""
        s = self.levels
        if self.norm == "linf":
            return (math.sqrt(1.0 + max(0, count - 1) / s**2) - 1.0) / 2.0
        return math.sqrt(count) / s - 1.0 if count >= 4 * s**2 else count / (4.0 * s**2)

    def norm_bound(self, count: int) -> float:
        """Return the largest ||Q(v)|| / ||v||, in which every value is rounded up.

        With y = s |v| / norm the levels are ceil(y) < y + 1. For l2 their length is below s + sqrt(d), and as integers
        x = ceil(y) - 1 have sum x <= sum x^2 <= s^2 its square is below 3 s^2 + d. For linf all but the exact one are
        at one level at worst.
        """
        s = self.levels
        if self.norm == "l2":
            return math.sqrt(min((s + math.sqrt(count)) ** 2, 3.0 * s**2 + count)) / s
        others = count - 1
        return math.sqrt(1.0 + 2.0 / (math.sqrt(1.0 + 4.0 * s**2 / others) - 1.0)) if others > 0 else 1.0


@dataclass(frozen=True)
class Powers(Floats):
    """Each value becomes one of the two powers of two around it, at random so that the expectation is kept.

    A code is a byte: the sign in its highest bit, and e from 0 to 127 below it. e = 0 stands for 0, any other for
    2^(e - 127) times the scale, which is the power of two above the largest value. So:

    - 0 stays 0. Denormals are values like others.
    - What would become less than 2^-126 of the scale becomes 0: the only bias, below 2^-126 of the largest value.
    - A value above the largest power of two that its type holds becomes that one: a bias, for values above 1.7e38 in
      float32.

    Source: Horvath, Ho, Horvath, Sahu, Canini, Richtarik: Natural compression (2019), definition 2, omega = 1/8.
    """

    code: ClassVar[type[np.unsignedinteger[Any]]] = np.uint8

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return the codes and the scale; NaN where x is not finite."""
        peak = packing.peak(x)
        if not math.isfinite(peak):
            return np.zeros(len(x), np.uint8), math.nan
        word, mantissa, bias = packing.parts_of(x.dtype)
        low, lift = (2.0**-30, 96) if x.dtype == np.float32 else (2.0**-800, 200)
        if peak >= low:
            lift = 0
        else:  # make normal numbers of what may be denormals, exactly
            x, peak = np.ldexp(x, lift), math.ldexp(peak, lift)
        top = min(int(np.array(peak, x.dtype).view(word)) >> mantissa, 2 * bias - 1) + 1
        scale = math.ldexp(1.0, max(top - bias - lift, -1074))  # of zeros in float64 it would underflow to 0
        fast = packing.fast(x)
        if fast is not None and rng is not None:
            return fast.power_codes(x, top, draw_seed(rng)), scale
        mask = word((1 << mantissa) - 1)
        draws = word(1 << (mantissa - 1)) if rng is None else uniform_bits(rng, len(x), 8 * x.dtype.itemsize) & mask
        exponents = ((np.abs(x).view(word) + draws) >> word(mantissa)).astype(np.int16)
        codes = np.clip(exponents + np.int16(127 - top), 0, 127).astype(np.uint8)
        codes[exponents == 0] = 0
        codes[np.signbit(x)] |= np.uint8(0x80)
        return codes, scale

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return the powers of two times ``factor``."""
        multiplier = (scale or 0.0) * factor
        lift = 64 if multiplier > 2.0**64 else 0  # the scale itself may be beyond the type
        share = dtype.type(math.ldexp(multiplier, -lift))
        if (loops := packing.loops_for(count, dtype)) is not None:
            return cast(Vector, loops.read_powers(codes, lift, share))
        powers = np.ldexp(1.0, np.arange(-127, 1) + lift).astype(dtype)
        powers[0] = 0.0
        values: Vector = np.concatenate((powers, -powers))[codes]
        values *= share
        return values

    def largest(self, codes: Codes) -> float:
        largest = packing.most(codes, 0x7F)
        return math.ldexp(1.0, largest - 127) if largest else 0.0

    def omega(self, count: int) -> float:
        """Return 1/8, which values of 4/3 of a power of two reach, and what becomes 0."""
        return 0.125 + count * 2.0**-250

    def norm_bound(self, count: int) -> float:
        """Return 2: no value is more than doubled."""
        return 2.0


@dataclass(frozen=True)
class Signs:
    """Each value becomes its sign times ||x||_1 / d: one bit a value, set for negative ones; 0 counts as positive.

    This is biased: ||Q(x) - x||^2 = ||x||^2 - ||x||_1^2 / d.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar: signSGD (ICML 2018); Karimireddy, Rebjock, Stich, Jaggi: Error
    feedback fixes SignSGD (ICML 2019), for the scale and its law.
    """

    def layout(self, count: int, dtype: DType) -> PacketLayout:
        """Return a bit each, and the scale."""
        return PacketLayout(packing.packed_bytes(count, 1), np.dtype(np.uint8), scale=True)

    def write(self, x: Vector, rng: Generator | None) -> tuple[Codes, float | None]:
        """Return the signs and the mean absolute value, of which no other multiple of the signs is closer to x."""
        with np.errstate(over="ignore"):
            mean = packing.l1(x) / max(1, len(x))
        if (fast := packing.fast(x)) is not None:
            return fast.signs_packed(x), mean
        return packing.pack(np.signbit(x).view(np.uint8), 1), mean

    def read(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> Vector:
        """Return scale and sign times ``factor``."""
        return packing.read_packed(codes, 1, count, dtype.type((scale or 0.0) * factor))

    def validate(self, codes: Codes, scale: float | None, count: int, dtype: DType, factor: float) -> str | None:
        """Say whether the scale is none, or a filling bit is set."""
        flaw = bad_scale(scale, factor, dtype)
        if flaw is None and packing.filling(codes, 1, count):
            return "bad code: bits behind the last code, expected 0"
        return flaw

    def opposite(self, codes: Codes, count: int) -> Codes:
        """Return the codes with all signs turned."""
        return packing.pack((~packing.unpack(codes, 1, count)).view(np.uint8), 1)

    def omega(self, count: int) -> float:
        """Return 1 - 1/d."""
        return 1.0 - 1.0 / max(1, count)

    def norm_bound(self, count: int) -> float:
        """Return 1: ||x||_1 <= sqrt(d) ||x||."""
        return 1.0
