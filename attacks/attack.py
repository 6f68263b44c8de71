"""What all attacks share: how one is called, and how what it wants the server to read becomes a packet.

Called with a ``View``, an attack returns the vector that it wants the server to read, in the domain being aggregated,
or None to stay silent. There are two families, by how that vector becomes a packet:

* a ``Repack`` changes the packet that this seat would have sent honestly, so that the server reads exactly its vector;
* any other attack aims at a vector that no honest packet need carry, and lets the compressor ``forge`` one.

``attack.packet`` does either. Collusion is agreement without talk: what a coalition knows is the same for all its
seats, and so is the generator that they draw and forge with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks.view import SIGHTS, Sight, View
from strategies.algorithm import Compressor, Packet, Vector


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """What all attacks share.

    Args:
        kind: the attack's name in configs.
        view: how much the attacker knows; at least ``least``.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    least: ClassVar[Sight] = "own"
    """The least sight that the attack makes sense with."""
    counts_cohort: ClassVar[bool] = False
    """Whether the attack asks how many Byzantine clients were sampled."""

    kind: str
    view: Sight = "own"

    def __post_init__(self) -> None:
        if SIGHTS.index(self.view) < SIGHTS.index(self.least):
            raise ValueError(f'view = "{self.view}": {self.kind} needs at least "{self.least}"')

    @property
    def needs_cohort(self) -> bool:
        """Whether the attacker must be told who was sampled: to count them, or to know what they will send."""
        return self.counts_cohort or self.view == "omniscient"

    @abstractmethod
    def __call__(self, view: View, rng: np.random.Generator) -> Vector | None:
        """Choose what the server is to read.

        Args:
            view: what this seat knows.
            rng: for attacks that draw at random; the same for all seats of a coalition in one round.

        Returns:
            Shape (d,), dtype of ``view.own``; None to send nothing.
        """

    def packet(
        self, view: View, compressor: Compressor, rng: np.random.Generator, honest: Callable[[bool], Packet]
    ) -> Packet | None:
        """Choose what to send.

        Args:
            view: what this seat knows.
            compressor: gives the form that a packet must have in this round.
            rng: for the attack, then for forging; the same for all seats of a coalition in one round.
            honest: returns the packet that this seat would send if honest; on flipped labels if called with True.

        Returns:
            The packet; None to send nothing.
        """
        target = self(view, rng)
        return None if target is None else compressor.forge(target, rng)


@dataclass(frozen=True, kw_only=True)
class Repack(Attack):
    """An attack that sends a changed copy of this seat's honest packet.

    What the server reads from it is exactly what the attack, called with a view, returns.
    """

    flips_labels: ClassVar[bool] = False
    """Whether the honest packet to change is the one computed on flipped labels."""

    @abstractmethod
    def repack(self, honest: Packet) -> Packet:
        """Return the packet to send in place of ``honest``, which is not modified."""

    def packet(
        self, view: View, compressor: Compressor, rng: np.random.Generator, honest: Callable[[bool], Packet]
    ) -> Packet:
        """Return the honest packet, repacked; nothing but ``honest`` is used."""
        return self.repack(honest(self.flips_labels))
