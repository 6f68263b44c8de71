"""Wire faults: honest messages that go wrong on the way to the server.

An attack on the numbers passes the screening like any honest reply; these must not. Two places carry out a fault. The
ClientApp makes what is wrong in the records of a reply (a wrong round, a wrong shape, an old reply), and does so on any
Flower Grid. The client end of the link (``link.node``) makes what is wrong below the records, in frames and streams; on
a Grid without our link it becomes the nearest fault of records, see ``Fault.nearest``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from attacks.attack import Attack
from attacks.view import View
from foundation.faults import Fault as Fault
from strategies.method import Packet, Vector


@dataclass(frozen=True, kw_only=True)
class WireFault(Attack):
    """Send the honest message in a reply that is broken.

    Args:
        fault: what goes wrong, or several of them: then worker i has number i modulo their count.
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
    """A reply that must go wrong.

    Args:
        fault: how.
        packet: what it carries.
        round: the round that the reply claims to answer.
        delay_s: seconds until it is sent, where it must be late.
        last: whether no other round follows.
    """

    fault: Fault
    packet: Packet
    round: int
    delay_s: float = 0.0
    last: bool = False
