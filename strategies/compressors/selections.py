"""Compressors that choose coordinates: ``identity`` all, ``top-k`` the largest, ``rand-k`` and ``masked`` k at random.

``rand-k``'s worker draws its own, ``masked`` is the same for all of a round. ``perm-k`` has a file of its own.
A packet carries plain values; it is the receiver that multiplies by d/k, so that the factor is applied exactly once.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator

from strategies.checks import check_count
from strategies.compressors import choices, coordinates
from strategies.compressors.choices import Choice
from strategies.compressors.coordinates import draw_seed, indices
from strategies.compressors.packed import Packed, Shared, Values, check_levels
from strategies.method import Packet, Vector

_MASKS_TRIED = 16
"""How many masks an attacker tries to find one that carries its target well."""


@dataclass(frozen=True, kw_only=True)
class Identity(Packed):
    """Q(v) = v: no compression; omega = 0, D_Q = 1. The packet carries the d values and no seed.

    Args:
        values: ``"float16"`` or ``"bfloat16"`` to round them to 16 bits at random.
    """

    kind: Literal["identity"] = "identity"
    values: Values = "full"


@dataclass(frozen=True, kw_only=True)
class _KOfD(Packed):
    """What compressors share that keep k of the d coordinates."""

    kind: str
    k: int | None = None
    ratio: float | None = None
    values: Values = "full"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise ValueError(f"k = {self.k}, ratio = {self.ratio}: exactly one of them must be given")
        check_count(k=self.k)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio = {self.ratio}: must be above 0 and at most 1")

    def count(self, dim: int) -> int:
        """Return k for vectors of length ``dim``.

        Raises:
            ValueError: k exceeds ``dim``.
        """
        k = self.k or max(1, round((self.ratio or 0.0) * dim))
        if k > dim:
            raise ValueError(f"k = {k}: must be at most d = {dim}, the length of the vectors")
        return k


@dataclass(frozen=True, kw_only=True)
class _RandomK(_KOfD):
    """What compressors share that draw the k coordinates uniformly."""

    levels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self.levels, self.values)

    def factor(self, dim: int) -> float:
        """Return d/k."""
        return dim / self.count(dim)


@dataclass(frozen=True, kw_only=True)
class RandK(_RandomK):
    """Rand-k: Q(v) = (d/k) v on k of the d coordinates, drawn uniformly without replacement, and 0 elsewhere.

    E[Q(v)] = v, E||Q(v) - v||^2 = omega ||v||^2 with omega = d/k - 1, and ||Q(v)|| <= D_Q ||v|| with D_Q = d/k.

    The packet carries the k values in ascending order of coordinate, not yet multiplied by d/k, and ``seed``, an
    integer in [0, 2^64) that ``indices`` turns into the coordinates.

    Args:
        k: how many coordinates to keep, at least 1 and at most d.
        ratio: k/d instead, in (0, 1]; k is then max(1, round(ratio * d)). Exactly one of the two is given.
        values: ``"float16"`` or ``"bfloat16"`` to round the values to 16 bits at random.
        levels: round the values at random to this many levels of the largest instead; see ``dither.Dither``.

    With rounded values 1 + omega and D_Q are those above times those of the rounding.

    Source:
        Gorbunov, Burlachenko, Li, Richtarik: MARINA (ICML 2021), for omega; Malinovsky, Richtarik, Horvath, Gorbunov
        (NeurIPS 2024), Theorem 4.2, for D_Q.
    """

    seeded: ClassVar[bool] = True
    kind: Literal["rand-k"] = "rand-k"

    def where(self, packet: Packet) -> Choice:
        """Return the coordinates that the seed names."""
        return coordinates.mask(packet.seed or 0, packet.dim, self.count(packet.dim))

    def compress(self, v: Vector, rng: Generator) -> Packet:
        """Return the packet of Q(v) with a fresh seed from ``rng``: 64 bits are taken."""
        return self._seeded(v, draw_seed(rng), rng)

    def forge(self, target: Vector, rng: Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``.

        Of 16 seeds it takes the one whose mask carries most of ||target||^2. The values are those of the target, so
        that the server reads (d/k) * target on the mask: what an honest packet of the target would read as.

        Args:
            target: shape (d,), NaN and infinite values allowed; never modified.
            rng: the seeds come from here: colluding attackers with equal generators and targets hit the same
                coordinates.
        """
        seeds = [draw_seed(rng) for _ in range(_MASKS_TRIED)]
        peak = np.max(np.abs(target))
        if not np.isfinite(peak) or peak == 0.0:
            return self._seeded(target, seeds[0], None)  # one mask is as good as another
        energy = (target.astype(np.float64) / float(peak)) ** 2
        d, k = len(target), self.count(len(target))
        return self._seeded(target, max(seeds, key=lambda seed: float(energy[indices(seed, d, k)].sum())), None)

    def _seeded(self, v: Vector, seed: int, rng: Generator | None) -> Packet:
        return self.packet(v, coordinates.mask(seed, len(v), self.count(len(v))), rng, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Masked(Shared, _RandomK):
    """Rand-k with one mask for all workers of a round: its coordinates come from the server's seed of the round.

    The packet carries the k values alone. For one worker it is rand-k, with its omega and D_Q. The errors of different
    workers are the same multiple of their vectors and do not average out; but all speak of the same coordinates.

    Args:
        k, ratio, values, levels: as for ``RandK``.

    Source: Gupta, Honsell, Xu, Gupta, Neglia: RoSDHB (arXiv 2508.17129).
    """

    kind: Literal["masked"] = "masked"

    def chosen(self, dim: int) -> Choice:
        """Return the coordinates of the round, read-only: the mask is no worker's choice."""
        return coordinates.shared_mask(self.seed, dim, self.count(dim))


@dataclass(frozen=True, kw_only=True)
class TopK(_KOfD):
    """Top-k: Q(v) = v on the k coordinates of largest absolute value, 0 elsewhere; of equals the first are taken.

    Biased: ||Q(v) - v||^2 <= (1 - k/d) ||v||^2, and ||Q(v)|| <= ||v||.

    The packet carries the k values in ascending order of coordinate and, as marks, their coordinates: as k uint32,
    strictly ascending, or as a bitmap of d bits, the lowest first, whichever is shorter (the former if equal).

    Args:
        k, ratio: as for ``RandK``.
        values: ``"float16"`` or ``"bfloat16"`` to round the values to 16 bits, to the nearest.

    Source: Alistarh, Hoefler, Johansson, Konstantinov, Khirirat, Renggli: The convergence of sparsified gradient
    methods (NeurIPS 2018).
    """

    unbiased: ClassVar[bool] = False
    kind: Literal["top-k"] = "top-k"

    def marks(self, dim: int) -> int:
        """Return the length of the shorter form of the coordinates."""
        return 4 * self.count(dim) if self._listed(dim) else (dim + 7) // 8

    def _listed(self, dim: int) -> bool:
        return 4 * self.count(dim) <= (dim + 7) // 8 and dim <= 2**32

    def where(self, packet: Packet) -> Choice:
        """Return the coordinates that the marks name.

        Raises:
            ValueError: they name others than k in ascending order.
        """
        flaw = self.flaw_of_marks(packet)  # once more: compiled loops write wherever they are told
        if flaw is not None or packet.marks is None:
            raise ValueError(f"{flaw}: the packet was not screened")
        if self._listed(packet.dim):
            return packet.marks.view("<u4").astype(np.uint32, copy=False)
        return choices.of_bitmap(packet.marks, packet.dim)

    def flaw_of_marks(self, packet: Packet) -> str | None:
        """Say whether the marks do not name k coordinates in ascending order."""
        d, k = packet.dim, self.count(packet.dim)
        if packet.marks is None:
            return "bad index: no coordinates"
        if self._listed(d):
            listed = packet.marks.view("<u4")
            if not (listed[1:] > listed[:-1]).all():
                return "bad index: coordinates that do not ascend"
            return None if listed[-1] < d else f"bad index: {listed[-1]}, expected one below {d}"
        named = int(np.bitwise_count(packet.marks).sum(dtype=np.int64))
        if named != k:
            return f"bad index: {named} coordinates, expected {k}"
        return "bad index: bits behind the last coordinate" if d % 8 and packet.marks[-1] >> (d % 8) else None

    def compress(self, v: Vector, rng: Generator) -> Packet:
        """Return the packet of Q(v); nothing is drawn."""
        d, k = len(v), self.count(len(v))
        kept = choices.largest_k(v, k)
        marks = choices.places(kept, k).astype("<u4").view(np.uint8) if self._listed(d) else choices.bitmap(kept, d)
        return self.packet(v, kept, None, marks=marks)

    def forge(self, target: Vector, rng: Generator) -> Packet:
        """Return the packet of the target, which reads closest to it."""
        return self.compress(target, rng)

    def omega(self, dim: int) -> float:
        """Return 1 - delta."""
        return 1.0 - self.contraction(dim)

    def contraction(self, dim: int) -> float:
        """Return delta = (1 - b) k/d, where rounding has b."""
        k = self.count(dim)
        return (1.0 - self.carrier.omega(k)) * k / dim
