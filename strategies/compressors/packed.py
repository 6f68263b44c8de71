"""What all compressors share: packets of coordinates, a carrier for their values, and a factor at the receiver.

``validate`` is the one place where the numbers in a reply are screened: what passes it may be decompressed and used.
"""

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.random import Generator

from strategies.arrays import ArrayT, Random, check_finite, generator, read_array
from strategies.compressors import choices
from strategies.compressors.carriers import Carrier, Full
from strategies.compressors.choices import Choice
from strategies.compressors.dither import MAX_LEVELS, Dither
from strategies.compressors.half import Half
from strategies.compressors.packing import Bytes
from strategies.method import Packet, PacketLayout, Vector

Values = Literal["full", "float16", "bfloat16"]
"""How values travel: as they are, or in 16 bits; see half.py."""


class Packed:
    """What all compressors share: a choice of coordinates, a carrier for their values, a factor at the receiver."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    unbiased: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    """Whether packets name a seed."""
    kind: str
    values: Values = "full"
    levels: int | None = None

    def count(self, dim: int) -> int:
        """Return how many coordinates of a d-vector travel: all, unless an operator says otherwise.

        Raises:
            ValueError: it cannot carry such a vector.
        """
        return dim

    def chosen(self, dim: int) -> Choice | None:
        """Return the coordinates that travel, where no packet says which; None for all d in order."""
        return None

    def __call__(self, v: ArrayT, rng: Random = None) -> ArrayT:
        """Return Q(v): what a receiver reads from the packet.

        Args:
            v: a vector, or an array of any shape, whose numbers are compressed in their order; of NumPy or torch.
            rng: for what is drawn, a generator or a seed; a compressor that draws nothing needs none.

        Returns:
            An array of the shape and type of ``v``, on its device.

        Raises:
            ValueError: v cannot be compressed, or something is drawn and there is no ``rng``; one line.
        """
        array, form = read_array(v, "v")
        flat = array.reshape(-1)
        check_finite(flat[None], "v, whose row")
        self.layout(len(flat), flat.dtype)
        packet = self.compress(flat, generator(rng, self.kind))
        result: ArrayT = form.back(self.decompress(packet, flat.dtype))
        return result

    def compress(self, v: Vector, rng: Generator) -> Packet:
        """Return the packet of Q(v); ``v`` has shape (d,) and is never modified."""
        return self.packet(v, self.chosen(len(v)), rng)

    def forge(self, target: Vector, rng: Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``.

        Args:
            target: shape (d,), NaN and infinite values allowed; never modified.
            rng: for what an attacker chooses at random.
        """
        return self.packet(target, self.chosen(len(target)), None)

    def packet(
        self, v: Vector, kept: Choice | None, rng: Generator | None, seed: int | None = None, marks: Bytes | None = None
    ) -> Packet:
        """Return the packet of these coordinates of ``v``; without ``rng`` with the codes that read closest to them."""
        values = v if kept is None else choices.take(v, kept, self.count(len(v)))
        codes, scale = self.carrier.write(values, rng)
        return Packet(self.kind, len(v), codes, seed, scale, marks)

    @property
    def carrier(self) -> Carrier:
        """How the values travel."""
        return carrier_of(self.values, self.levels, nearest=not self.unbiased)

    def factor(self, dim: int) -> float:
        """Return what the receiver multiplies the values by; for an unbiased choice also its 1 + omega and D_Q."""
        return 1.0

    def where(self, packet: Packet) -> Choice | None:
        """Return the coordinates of the packet's values, or None where they are all d in order."""
        return self.chosen(packet.dim)

    def marks(self, dim: int) -> int:
        """Return how many bytes of marks a packet has."""
        return 0

    def of_round(self, seed: int | None, worker: int) -> Self:
        """Return itself: the round has no say in it."""
        return self

    def layout(self, dim: int, dtype: np.dtype[Any]) -> PacketLayout:
        """Return what a packet of a vector of that length and type holds.

        Raises:
            ValueError: it cannot carry such a vector.
        """
        return _layout(self.carrier, self.count(dim), dtype, self.seeded, self.marks(dim))

    def decompress(self, packet: Packet, dtype: np.dtype[Any]) -> Vector:
        """Return Q(v), shape (d,), of that type. The packet must have passed ``validate``.

        Raises:
            ValueError: it has not, and is not even of this form.
        """
        if flaw := self._flaw_of_form(packet, packet.dim, dtype):
            raise ValueError(f"{flaw}: the packet was not screened")
        count, factor = self.count(packet.dim), self.factor(packet.dim)
        values = self.carrier.read(packet.values, packet.scale, count, dtype, factor)
        where = self.where(packet)
        return values if where is None else choices.put(values, where, packet.dim)

    def validate(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say why this packet does not stand for a vector of that length and type, or None if it does.

        Values that would overflow at the receiver are refused as well.
        """
        flaw = self._flaw_of_form(packet, dim, dtype) or self.flaw_of_marks(packet)
        return flaw or self.carrier.validate(packet.values, packet.scale, self.count(dim), dtype, self.factor(dim))

    def flaw_of_marks(self, packet: Packet) -> str | None:
        """Say what is wrong with marks of the right size, or None."""
        return None

    def opposite(self, packet: Packet) -> Packet:
        """Return the packet that reads as minus this one."""
        return replace(packet, values=self.carrier.opposite(packet.values, self.count(packet.dim)))

    def omega(self, dim: int) -> float:
        """Return omega: (1 + a)(1 + b) - 1 for a choice of coordinates with a and a carrier with b."""
        return self.factor(dim) * (1.0 + self.carrier.omega(self.count(dim))) - 1.0

    def norm_bound(self, dim: int) -> float:
        """Return D_Q, the product of the choice's and the carrier's."""
        return self.factor(dim) * self.carrier.norm_bound(self.count(dim))

    def contraction(self, dim: int) -> float:
        """Return delta = 1 - omega."""
        return 1.0 - self.omega(dim)

    def _flaw_of_form(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say what is wrong with the packet apart from its numbers: kind, dimension, sizes, types, seed."""
        if packet.kind != self.kind:
            return f"wrong kind: {packet.kind!r}, expected {self.kind!r}"
        if packet.dim != dim:
            return f"wrong dimension: {packet.dim}, expected {dim}"
        layout = self.layout(dim, dtype)
        values, seed, scale, marks = packet.values, packet.seed, packet.scale, packet.marks
        nbytes = 0 if marks is None else marks.nbytes
        if values.ndim != 1:
            return f"wrong shape: {values.shape}, expected ({layout.count},)"
        if values.size != layout.count:
            return f"wrong shape: {values.size} values, expected {layout.count}"
        if values.dtype != layout.dtype:
            return f"wrong dtype: {values.dtype}, expected {layout.dtype}"
        if layout.seed and not _is_seed(seed):
            return f"bad seed: {seed}, expected an integer from 0 to 2^64 - 1"
        if not layout.seed and seed is not None:
            return f"bad seed: {seed}, expected none"
        if (scale is not None) != layout.scale:
            return f"bad scale: {scale}, expected {'a number' if layout.scale else 'none'}"
        if nbytes != layout.marks:
            return f"wrong shape: {nbytes} bytes of marks, expected {layout.marks}"
        if marks is not None and (marks.ndim != 1 or marks.dtype != np.uint8):
            return f"wrong dtype: marks of {marks.dtype}, expected uint8"
        return None


def _is_seed(seed: int | None) -> bool:
    return seed is not None and 0 <= seed < 2**64


@lru_cache(maxsize=256)  # a round asks for it several times a packet
def _layout(carrier: Carrier, count: int, dtype: np.dtype[Any], seed: bool, marks: int) -> PacketLayout:
    return replace(carrier.layout(count, dtype), seed=seed, marks=marks)


@lru_cache(maxsize=64)
def carrier_of(values: Values, levels: int | None = None, *, nearest: bool = False) -> Carrier:
    """Return the carrier that the options of a compressor name."""
    if levels is not None:
        return Dither(levels, "linf")
    return Full() if values == "full" else Half(values, nearest)


def check_levels(levels: int | None, values: Values = "full") -> None:
    """Raise ValueError for a number of levels out of bounds, or beside another form of values."""
    if levels is not None and not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels = {levels}: must be at least 1 and at most {MAX_LEVELS}")
    if levels is not None and values != "full":
        raise ValueError(f'levels = {levels}, values = "{values}": at most one of them can be given')


class Shared(Packed):
    """A compressor whose coordinates come from the server's seed of the round, which ``of_round`` gives it."""

    shared: ClassVar[bool] = True
    round_seed: ClassVar[int | None] = None  # ``of_round`` gives both to an instance
    worker: ClassVar[int | None] = None

    def of_round(self, seed: int | None, worker: int) -> Self:
        """Return the operator of one worker with this seed.

        Raises:
            ValueError: there is no seed.
        """
        one = copy.copy(self)
        vars(one).update(round_seed=self._known(seed), worker=worker)
        return one

    @property
    def seed(self) -> int:
        """The round's seed.

        Raises:
            ValueError: there is none.
        """
        return self._known(self.round_seed)

    def _known(self, seed: int | None) -> int:
        if seed is None:
            raise ValueError(f"{self.kind}: all workers of a round draw from one seed, and this method gives none")
        return seed
