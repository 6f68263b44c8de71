"""Vectors, and the two operators on them as types: the compressor Q and the robust aggregation rule ARAgg.

``strategies.compressors`` and ``strategies.aggregators`` have the operators themselves. ``strategies.method`` exports
these names too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.weights import Masses

Vector = NDArray[np.floating]
"""A vector of R^d: shape (d,), float32 or float64."""
Rows = NDArray[np.floating]
"""Vectors of several workers, one a row: shape (n', d)."""
Weights = NDArray[np.float64]
"""A number for each row: shape (n',)."""


@dataclass(frozen=True, eq=False)
class Packet:
    """A compressed vector as it travels. What the fields mean is up to the compressor of the same ``kind``.

    Args:
        kind: the compressor's ``kind``.
        dim: length d of the compressed vector.
        values: shape (``layout.count``,), dtype ``layout.dtype``: the vector's values, or codes for them.
        seed: where the compressor draws its coordinates itself, the seed that names them.
        scale: where values are relative to a common scale, that scale.
        marks: where it has more to say about coordinates (indices, signs), ``layout.marks`` bytes, dtype uint8.
        version: of the worker's state that the reply builds on: the round of the worker's last reply; 0 for none.
    """

    kind: str
    dim: int
    values: NDArray[Any]
    seed: int | None = None
    scale: float | None = None
    marks: NDArray[np.uint8] | None = None
    version: int = 0


@dataclass(frozen=True)
class PacketLayout:
    """The exact size and form of a compressor's packets for vectors of one length and type.

    Args:
        count: how many values it carries.
        dtype: their type on the wire.
        seed: whether it names a seed, 8 bytes.
        scale: whether it carries a scale, 8 bytes.
        marks: how many bytes of marks.
    """

    count: int
    dtype: np.dtype[Any]
    seed: bool = False
    scale: bool = False
    marks: int = 0

    @property
    def nbytes(self) -> int:
        """The packet's size in bytes, its envelope not counted."""
        return self.count * self.dtype.itemsize + 8 * self.seed + 8 * self.scale + self.marks


class Compressor(Protocol):
    """An operator Q: R^d -> R^d in two halves, so that what travels is the packet and not the vector."""

    unbiased: ClassVar[bool]
    """Whether E[Q(v)] = v. If so ``omega`` is its quality, else ``contraction``."""
    shared: ClassVar[bool]
    """Whether all workers of a round draw from one seed of the server's; see ``of_round``."""

    @property
    def kind(self) -> str:
        """Name in configs and packets."""

    def of_round(self, seed: int | None, worker: int) -> Self:
        """Return the operator of one worker in one round: itself, unless ``shared``.

        Args:
            seed: the round's seed, in [0, 2^64); None where the method gives none.
            worker: 0 .. n-1.

        Raises:
            ValueError: it is shared and there is no seed.
        """

    def compress(self, v: Vector, rng: Generator) -> Packet:
        """Return the packet of Q(v)."""

    def decompress(self, packet: Packet, dtype: np.dtype[Any]) -> Vector:
        """Return Q(v), shape (d,), of that type. The packet must have passed ``validate``."""

    def validate(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Return why this packet is not one of this compressor for a vector of that length and type; None if it is."""

    def forge(self, target: Vector, rng: Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``."""

    def opposite(self, packet: Packet) -> Packet:
        """Return the packet that reads as minus this one."""

    def layout(self, dim: int, dtype: np.dtype[Any]) -> PacketLayout:
        """Return what a packet of a vector of that length and type holds.

        Raises:
            ValueError: it cannot carry such a vector (k > d); one line for the user.
        """

    def omega(self, dim: int) -> float:
        """Return omega with E||Q(v) - v||^2 <= omega ||v||^2."""

    def norm_bound(self, dim: int) -> float:
        """Return D_Q with ||Q(v)|| <= D_Q ||v|| always."""

    def contraction(self, dim: int) -> float:
        """Return delta with E||Q(v) - v||^2 <= (1 - delta) ||v||^2; 0 or less where there is none."""


class Aggregator(Protocol):
    """A robust aggregation rule with its pre-aggregators."""

    def __call__(self, rows: Rows, f: int, rng: Generator, center: Vector | None = None) -> Vector:
        """Aggregate n' vectors of which up to ``f`` may be Byzantine.

        Args:
            rows: shape (n', d); never modified.
            f: how many rows to defend against; at most ``tolerates(n')``.
            rng: for random pre-aggregators.
            center: where the caller believes the answer to lie, usually its previous aggregate; shape (d,). Rules that
                need a centre (centred clipping) start from it; None leaves the choice to them. Others ignore it.

        Returns:
            Shape (d,), dtype of ``rows``.
        """

    def weigh(
        self, rows: Rows, f: int, rng: Generator, center: Vector | None = None, mass: Masses | None = None
    ) -> tuple[Vector, Weights | None]:
        """Return the same, and the weight by which each row was taken, shape (n',).

        Weights are those of a mean of rows, or of rows and a centre; None from rules that look at every coordinate by
        itself.

        Args:
            rows: as above.
            f: as above.
            rng: as above.
            center: as above.
            mass: weights that the server has declared, whole numbers of shape (n',); None where all rows count the
                same, and for a rule that takes none.
        """

    def tolerates(self, n: int) -> int:
        """Return the largest f that rule and pre-aggregators take for n rows; -1 if they cannot take n rows at all."""

    def withstands(self, mass: Masses, f: int) -> bool:
        """Return whether they withstand f Byzantine rows among rows with these weights, shape (n',)."""


@dataclass(frozen=True, eq=False)
class Combined:
    """What the server makes of the rows of a round.

    Args:
        vector: shape (d,); None where these rows cannot be aggregated, see ``note``.
        lam: the clipping radius used; None where nothing is clipped.
        clipped: row numbers that were longer than ``lam``.
        note: why there is no vector.
        rows: what was aggregated, before any clipping; shape (n', d).
        center: the aggregate of these rows, clipped or not; shape (d,). It is ``vector`` unless the method adds to it.
        weights: see ``Aggregator.weigh``.
        below_quorum: there is no vector because f of these rows may have half of the declared weight.
    """

    vector: Vector | None
    lam: float | None = None
    clipped: Sequence[int] = ()
    note: str = ""
    rows: Rows | None = None
    center: Vector | None = None
    weights: Weights | None = None
    below_quorum: bool = False
