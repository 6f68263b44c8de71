"""Compressors that keep every coordinate and round its value: to s levels, to a power of two, to its sign."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.compressors.carriers import Carrier
from strategies.compressors.dither import Dither, Norm, Powers, Signs
from strategies.compressors.packed import Packed, check_levels


@dataclass(frozen=True, kw_only=True)
class QSGD(Packed):
    """QSGD: Q(v)_j = ||v|| sign(v_j) l_j / s, with l_j one of the two integers around s |v_j| / ||v||, at random.

    Unbiased. omega = sqrt(d)/s - 1 where d >= 4 s^2, else d/(4 s^2); with ``norm = "linf"``, random dithering of the
    largest absolute value, (sqrt(1 + (d - 1)/s^2) - 1)/2. The bounds are derived at ``dither.Dither``, and are below
    the paper's min(d/s^2, sqrt(d)/s).

    The packet carries the norm and codes of 2 bits for s = 1, 4 up to 7, 8 up to 127, else 16.

    Args:
        levels: s, from 1 to 32767.
        norm: ``"l2"`` or ``"linf"``.

    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD (NeurIPS 2017), section 3.1.
    """

    kind: Literal["qsgd"] = "qsgd"
    levels: int
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        check_levels(self.levels)

    @property
    def carrier(self) -> Carrier:
        """How the values travel."""
        return Dither(self.levels, self.norm)


@dataclass(frozen=True, kw_only=True)
class Natural(Packed):
    """Natural compression: every value becomes one of the two powers of two around it, at random.

    Unbiased, omega = 1/8, D_Q = 2. The packet carries a byte a value, sign and exponent below that of the largest, and
    the power of two above the largest. What zeros, denormals and the largest numbers become: see ``dither.Powers``.

    Source: Horvath, Ho, Horvath, Sahu, Canini, Richtarik: Natural compression for distributed deep learning (2019).
    """

    kind: Literal["natural"] = "natural"

    @property
    def carrier(self) -> Carrier:
        """How the values travel."""
        return Powers()


@dataclass(frozen=True, kw_only=True)
class ScaledSign(Packed):
    """Scaled sign: Q(v) = ||v||_1/d sign(v), where sign(0) = 1.

    Biased: ||Q(v) - v||^2 = ||v||^2 - ||v||_1^2/d <= (1 - 1/d) ||v||^2, and ||Q(v)|| <= ||v||. The packet carries a bit
    a value, and the scale.

    Source: Karimireddy, Rebjock, Stich, Jaggi: Error feedback fixes SignSGD (ICML 2019), section 5.
    """

    unbiased: ClassVar[bool] = False
    kind: Literal["scaled-sign"] = "scaled-sign"

    @property
    def carrier(self) -> Carrier:
        """How the values travel."""
        return Signs()
