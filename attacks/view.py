"""What an attacker knows when it must answer: the type of its view, in three strengths.

* ``own``: this seat's own data only.
* ``coalition``: the data of all Byzantine seats. Their rows serve as a model of the honest ones.
* ``omniscient``: also what the honest clients of this round will send.

A ``View`` carries what is cheap, and what is not as a function, so that an attack that needs no gradient costs none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from strategies.method import Rows, Vector

Sight = Literal["own", "coalition", "omniscient"]
"""How much an attacker knows, from least to most."""
SIGHTS: tuple[Sight, ...] = get_args(Sight)


@dataclass(frozen=True, eq=False)
class View:
    """What one Byzantine seat knows in one round.

    Messages are in the domain being aggregated: after Q, and where the server keeps a momentum or an estimate of every
    worker, that vector (``Method.absorb``).

    Args:
        worker: the seat that must answer.
        own: what this seat would send if it were honest, shape (d,).
        flipped: returns the same computed on flipped labels, shape (d,); costs a gradient.
        ids: returns the workers whose honest messages this view covers: own -> itself; coalition -> its members;
            omniscient -> the honest workers sampled in this round, of whom there may be none.
        peers: returns their messages in the same order, shape (h, d); costs h gradients, once a round.
        message: returns the honest message of one worker, shape (d,); None where this view does not cover it.
        n: number of clients.
        f: number of Byzantine clients.
        sampled: number of clients sampled in this round; n where that is not known.
        sampled_byzantine: how many of those are Byzantine, this seat included.
        x: the model that the server asks about, shape (d,).
        x0: the model that the run started from, shape (d,).
        g: the server's previous aggregate, worked out from its last step, shape (d,); None where it missed that step,
            and where messages are differences of gradients, which it is not to be compared with.
        gamma: the server's step size.
        aggregate: returns what the server would make of any number of rows, at least 1, clipping and rule included.
    """

    worker: int
    own: Vector
    flipped: Callable[[], Vector]
    ids: Callable[[], Sequence[int]]
    peers: Callable[[], Rows]
    message: Callable[[int], Vector | None]
    n: int
    f: int
    sampled: int
    sampled_byzantine: int
    x: Vector
    x0: Vector
    g: Vector | None
    gamma: float
    aggregate: Callable[[Rows], Vector]

    def honest(self) -> Rows:
        """Return the rows of ``peers``, or this seat's own row where there are none; shape (at least 1, d)."""
        rows = self.peers()
        return rows if len(rows) else self.own[None, :]

    def honest_ids(self) -> Sequence[int]:
        """Return whose the rows of ``honest`` are."""
        return self.ids() or [self.worker]
