"""Wire faults: honest messages that go wrong on the way to the server.

An attack on the numbers goes through the screening as any honest reply; these must not. What each fault looks like is
made in two places: what is wrong in the records of a reply (a wrong round, a wrong shape, an old reply) is made by the
ClientApp and works on any Flower Grid. What is wrong below the records, in frames and streams, is made by the link's
client end (``link.node``); on a Grid without our link it becomes the nearest fault of records, see ``Fault.nearest``.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from attacks.attack import Attack
from attacks.view import View
from strategies.method import Packet, Vector


class Fault(StrEnum):
    """What goes wrong with a reply."""

    SILENCE = "silence"  # no reply
    LATE = "late"  # the reply comes after the deadline
    WRONG_ROUND = "wrong-round"  # the reply says that it answers the next round
    REPLAY = "replay"  # the sender's first reply again and again; the first time it is a good one
    WRONG_SHAPE = "wrong-shape"  # a value is missing
    OVERSIZE = "oversize"  # more bytes than any honest reply has
    TRUNCATED = "truncated"  # the reply's last frame ends in its middle
    GARBAGE = "garbage"  # bytes that are no frame
    DISCONNECT = "disconnect"  # the stream ends in the middle of the reply; the client then comes back

    @property
    def reason(self) -> str:
        """How the server calls it: the slug that the rejection is counted by."""
        return _REASONS[self]

    @property
    def nearest(self) -> "Fault":
        """What comes of it on a Grid without our link."""
        return {
            Fault.TRUNCATED: Fault.WRONG_SHAPE,
            Fault.GARBAGE: Fault.WRONG_SHAPE,
            Fault.DISCONNECT: Fault.SILENCE,
        }.get(self, self)


_REASONS = {
    Fault.SILENCE: "silent",
    Fault.LATE: "silent",
    Fault.WRONG_ROUND: "wrong round",
    Fault.REPLAY: "wrong round",
    Fault.WRONG_SHAPE: "wrong shape",
    Fault.OVERSIZE: "oversize",
    Fault.TRUNCATED: "undecodable",
    Fault.GARBAGE: "undecodable",
    Fault.DISCONNECT: "disconnected",
}


@dataclass(frozen=True, kw_only=True)
class WireFault(Attack):
    """Send the honest message in a reply that is broken.

    Args:
        fault: what goes wrong, or several of them: then worker i shows number i modulo their count.
    """

    kind: Literal["wire"] = "wire"
    fault: Fault | tuple[Fault, ...] = Fault.SILENCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.fault, Fault) and not self.fault:
            raise ValueError("fault = []: must name at least one")

    def of(self, worker: int) -> Fault:
        """Return the fault of one worker."""
        return self.fault if isinstance(self.fault, Fault) else self.fault[worker % len(self.fault)]

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return view.own


@dataclass(frozen=True, eq=False)
class Faulty:
    """A reply that is to go wrong.

    Args:
        fault: how.
        packet: what it carries.
        round: the round that the reply says it answers.
        delay_s: seconds until it is sent, where it is to be late.
        last: whether no other round follows.
    """

    fault: Fault
    packet: Packet
    round: int
    delay_s: float = 0.0
    last: bool = False
