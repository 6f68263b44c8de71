"""Compressors Q: R^d -> R^d in two halves, so that what travels is a small packet and not the vector.

``identity`` sends every value. ``rand-k`` sends k of d values and the seed that names their coordinates, never the
indices. Both ends derive the indices from (seed, d, k) by integer arithmetic that is written out here in full, so that
two machines agree whatever their NumPy versions. A packet carries plain values; it is the receiver that multiplies by
d/k, so that the factor is applied exactly once.

``flaw`` is the one place where the numbers in a reply are screened: what passes it may be decompressed and used.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.algorithm import Packet, Vector

_MASKS_TRIED = 16
"""How many masks an attacker tries to find one that carries its target well."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Q(v) = v: no compression; omega = 0, D_Q = 1. The packet carries the d values and no seed."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["identity"] = "identity"

    def compress(self, v: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of v; ``rng`` is not drawn from."""
        return Packet(self.kind, len(v), v)

    def decompress(self, packet: Packet) -> Vector:
        """Return v, shape (d,)."""
        return packet.values

    def flaw(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say why this packet does not stand for a vector of that length and type, or None if it does."""
        if packet.kind == self.kind and packet.seed is not None:
            return f"bad seed: {packet.seed}, expected none"
        return _flaw_of_form(packet, self.kind, dim, dtype, dim) or _flaw_of_values(packet.values, 1.0)

    def forge(self, target: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet that makes the server read ``target``; ``rng`` is not drawn from."""
        return self.compress(target, rng)

    def n_values(self, dim: int) -> int:
        """Return d."""
        return dim

    def omega(self, dim: int) -> float:
        """Return 0: Q is exact."""
        return 0.0

    def norm_bound(self, dim: int) -> float:
        """Return D_Q = 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class RandK:
    """Rand-k: Q(v) = (d/k) v on k of the d coordinates, drawn uniformly without replacement, and 0 elsewhere.

    E[Q(v)] = v, E||Q(v) - v||^2 = omega ||v||^2 with omega = d/k - 1, and ||Q(v)|| <= D_Q ||v|| with D_Q = d/k.

    The packet carries the k values in ascending order of coordinate, not yet multiplied by d/k, and ``seed``, an
    integer in [0, 2^64) that ``indices`` turns into the coordinates.

    Args:
        k: how many coordinates to keep, at least 1 and at most d.
        ratio: k/d instead, in (0, 1]; k is then max(1, round(ratio * d)). Exactly one of the two is given.

    Source:
        Gorbunov, Burlachenko, Li, Richtarik: MARINA (ICML 2021), for omega; Malinovsky, Richtarik, Horvath, Gorbunov
        (NeurIPS 2024), Theorem 4.2, for D_Q.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["rand-k"] = "rand-k"
    k: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.k is None) == (self.ratio is None):
            raise ValueError(f"k = {self.k}, ratio = {self.ratio}: exactly one of them must be given")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k = {self.k}: must be at least 1")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio = {self.ratio}: must be above 0 and at most 1")

    def n_values(self, dim: int) -> int:
        """Return k for vectors of length ``dim``.

        Raises:
            ValueError: k exceeds ``dim``.
        """
        k = self.k if self.k is not None else max(1, round((self.ratio or 0.0) * dim))
        if k > dim:
            raise ValueError(f"k = {k}: must be at most d = {dim}, the length of the vectors")
        return k

    def omega(self, dim: int) -> float:
        """Return omega = d/k - 1."""
        return dim / self.n_values(dim) - 1.0

    def norm_bound(self, dim: int) -> float:
        """Return D_Q = d/k."""
        return dim / self.n_values(dim)

    def compress(self, v: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of Q(v) with a fresh seed from ``rng``.

        Args:
            v: shape (d,); never modified.
            rng: 64 bits are taken.

        Returns:
            A packet of k values, dtype of ``v``.
        """
        return self._packet(v, _draw_seed(rng))

    def decompress(self, packet: Packet) -> Vector:
        """Return Q(v), shape (d,), dtype of the values. The packet must have passed ``flaw``."""
        if packet.seed is None:
            raise ValueError("the packet has no seed: it was not screened")
        q = np.zeros(packet.dim, packet.values.dtype)
        factor = packet.values.dtype.type(self.norm_bound(packet.dim))
        q[indices(packet.seed, packet.dim, len(packet.values))] = packet.values * factor
        return q

    def flaw(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say why this packet does not stand for a vector of that length and type, or None if it does.

        Values that would overflow when multiplied by d/k are refused as well.
        """
        flaw = _flaw_of_form(packet, self.kind, dim, dtype, self.n_values(dim))
        if flaw is None and (packet.seed is None or not 0 <= packet.seed < 2**64):
            flaw = f"bad seed: {packet.seed}, expected an integer from 0 to 2^64 - 1"
        return flaw or _flaw_of_values(packet.values, self.norm_bound(dim))

    def forge(self, target: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``.

        Of 16 seeds it takes the one whose mask carries most of ||target||^2. The values are those of the target, so
        that the server reads (d/k) * target on the mask: what an honest packet of the target would read as.

        Args:
            target: shape (d,), NaN and infinite values allowed; never modified.
            rng: the seeds come from here: colluding attackers with equal generators and targets hit the same
                coordinates.
        """
        seeds = [_draw_seed(rng) for _ in range(_MASKS_TRIED)]
        peak = np.max(np.abs(target))
        if not np.isfinite(peak) or peak == 0.0:
            return self._packet(target, seeds[0])  # one mask is as good as another
        energy = (target.astype(np.float64) / float(peak)) ** 2
        d, k = len(target), self.n_values(len(target))
        return self._packet(target, max(seeds, key=lambda seed: float(energy[indices(seed, d, k)].sum())))

    def _packet(self, v: Vector, seed: int) -> Packet:
        d = len(v)
        return Packet(self.kind, d, v[indices(seed, d, self.n_values(d))], seed)


def indices(seed: int, d: int, k: int) -> NDArray[np.intp]:
    """Return k distinct coordinates out of 0 .. d-1 in ascending order: a pure function of its arguments.

    Coordinates are drawn with replacement until k different ones have been seen. Every draw treats all d alike, so
    every set of k is equally likely. Where k > d/2 the same procedure draws the d - k coordinates to leave out. The
    expected number of draws is below 1.4 k.

    Args:
        seed: in [0, 2^64).
        d: how many coordinates there are.
        k: how many to draw, 0 <= k <= d.

    Returns:
        Shape (k,).
    """
    inverted = 2 * k > d
    wanted = d - k if inverted else k
    marked = np.zeros(d, np.bool_)
    found = start = 0
    while found < wanted:
        missing = wanted - found  # no batch is larger, so that the set holds the first `wanted` distinct draws
        marked[_below(d, _words(seed, start, missing))] = True
        start += missing
        found = int(np.count_nonzero(marked))
    return np.flatnonzero(~marked if inverted else marked)


def _words(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Return words start .. start+count-1 of the SplitMix64 stream of ``seed``: 64 uniform bits each, modulo 2^64.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), with Stafford's mix 13.
    """
    z = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _below(d: int, words: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the words modulo d, less those from the incomplete last run of d, which would favour small numbers."""
    last = 2**64 - 2**64 % d - 1
    return (words[words <= np.uint64(last)] % np.uint64(d)).astype(np.intp)


def _draw_seed(rng: np.random.Generator) -> int:
    """Return 64 bits of the generator, raw, as only those does NumPy promise never to change."""
    return int(rng.bit_generator.random_raw())


def _flaw_of_form(packet: Packet, kind: str, dim: int, dtype: np.dtype[Any], count: int) -> str | None:
    """Say what is wrong with the packet apart from its numbers: kind, dimension, shape, type."""
    if packet.kind != kind:
        return f"wrong kind: {packet.kind!r}, expected {kind!r}"
    if packet.dim != dim:
        return f"wrong dimension: {packet.dim}, expected {dim}"
    if packet.values.ndim != 1:
        return f"wrong shape: {packet.values.shape}, expected ({count},)"
    if len(packet.values) != count:
        return f"wrong shape: {len(packet.values)} values, expected {count}"
    if packet.values.dtype != dtype:
        return f"wrong dtype: {packet.values.dtype}, expected {dtype}"
    return None


def _flaw_of_values(values: Vector, factor: float) -> str | None:
    """Say whether the numbers, multiplied by ``factor``, are all finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = np.max(np.abs(values), initial=0.0) * values.dtype.type(factor)
    if np.isfinite(largest):
        return None
    if np.isfinite(values).all():
        return f"not finite: values overflow {values.dtype} when multiplied by d/k = {factor:g}"
    return "not finite: NaN or infinite values"
