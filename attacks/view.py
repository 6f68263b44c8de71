"""What an attacker knows when it must answer: the type of its view, in three strengths.

* ``own``: this seat's own data only.
* ``coalition``: the data of all its fellows too. Their rows stand in for the honest ones, whom they resemble.
* ``omniscient``: also what the honest clients of this round will send.

A ``View`` carries what is cheap, and what is not as a function, so that an attack that needs no gradient costs none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from strategies.algorithm import Rows, Vector

Sight = Literal["own", "coalition", "omniscient"]
"""How much an attacker knows, from least to most."""

SIGHTS: tuple[Sight, ...] = ("own", "coalition", "omniscient")
"""All sights in ascending order."""


@dataclass(frozen=True, eq=False)
class View:
    """What one Byzantine seat knows in one round. Vectors are in the domain being aggregated, that is after Q.

    Args:
        worker: the seat that must answer.
        own: what this seat would send if it were honest, shape (d,).
        flipped: returns the same computed on flipped labels, shape (d,); costs a gradient.
        peers: returns the best knowledge of honest messages that this view has: own -> its own row, shape (1, d);
            coalition -> a row per member, acting honestly; omniscient -> the rows of the honest workers sampled in this
            round, shape (h, d) where h may be 0.
        n: number of clients.
        f: number of Byzantine clients.
        sampled: number of clients sampled in this round.
        sampled_byzantine: how many of those are Byzantine, this seat included.
        x: the model that the server asks about, shape (d,).
        x0: the model that the run started from, shape (d,).
        gamma: the server's step size.
        aggregate: returns what the server would make of any number of rows, at least 1, clipping and rule included.
    """

    worker: int
    own: Vector
    flipped: Callable[[], Vector]
    peers: Callable[[], Rows]
    n: int
    f: int
    sampled: int
    sampled_byzantine: int
    x: Vector
    x0: Vector
    gamma: float
    aggregate: Callable[[Rows], Vector]

    def honest(self) -> Rows:
        """Return the rows of ``peers``, or this seat's own row where there are none; shape (at least 1, d)."""
        rows = self.peers()
        return rows if len(rows) else self.own[None, :]
