"""What an attacker knows when it must answer: the type of its view, in three strengths.

* ``own``: this seat's own data only.
* ``coalition``: the data of all Byzantine seats. Their rows serve as a model of the honest ones.
* ``omniscient``: also what the honest clients of this round will send.

A ``View`` carries what is cheap, and what is not as a function, so that an attack that needs no gradient costs none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.random import Generator

from strategies.arrays import missing
from strategies.cohorts import aggregate
from strategies.method import Aggregator, Rows, Vector
from strategies.vectors import mean_of_rows

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
        dim: d, the length of messages.
        dtype: of their numbers.
        honestly: returns what this seat would send if it were honest, shape (d,); costs a gradient. See ``own``.
        flipped: returns the same computed on flipped labels, or poisoned images, shape (d,); costs another.
        ids: returns the workers whose honest messages this view covers: own -> itself; coalition -> its members;
            omniscient -> the honest workers whose vectors the server aggregates in this round: those sampled, of whom
            there may be none, or all (``all_rows``).
        peers: returns their messages in the same order, shape (h, d); costs h gradients, once a round.
        message: returns the honest message of one worker, shape (d,); None where this view does not cover it.
        n: number of clients.
        f: number of Byzantine clients.
        sampled: number of clients sampled in this round; n where that is not known.
        sampled_byzantine: how many of those are Byzantine, this seat included.
        seats: who they are, ascending.
        x: the model that the server asks about, shape (d,).
        x0: the model that the run started from, shape (d,).
        g: the server's previous aggregate, worked out from its last step, shape (d,); None where it missed that step,
            and where messages are differences of gradients, which it is not to be compared with.
        gamma: the server's step size in this round.
        reach: how far a worker's own way goes in a round, in units of its message: gamma, or H eta for H local steps.
        aggregate: returns what the server would make of any number of rows, at least 1, clipping and rule included.
        rule: the kind of the server's rule; "" where it is not known.
        draw: returns a new generator for what a Byzantine seat draws in this round, always the same for a seat.
        all_rows: whether the server aggregates a vector of each of the n clients in every round, whoever is sampled.
    """

    worker: int
    dim: int
    dtype: np.dtype[Any]
    honestly: Callable[[], Vector]
    flipped: Callable[[], Vector]
    ids: Callable[[], Sequence[int]]
    peers: Callable[[], Rows]
    message: Callable[[int], Vector | None]
    n: int
    f: int
    sampled: int
    sampled_byzantine: int
    seats: Sequence[int]
    x: Vector
    x0: Vector
    g: Vector | None
    gamma: float
    aggregate: Callable[[Rows], Vector]
    rule: str
    draw: Callable[[int], Generator]
    all_rows: bool = False
    reach: float = 0.0

    @cached_property
    def own(self) -> Vector:
        """What this seat would send if it were honest, shape (d,); computed when it is first looked at."""
        return self.honestly()

    @property
    def counts(self) -> tuple[int, int]:
        """How many honest and how many Byzantine rows the server aggregates if everybody sampled replies."""
        if self.all_rows:
            return self.n - self.f, self.f
        return self.sampled - self.sampled_byzantine, self.sampled_byzantine

    def honest(self) -> Rows:
        """Return the rows of ``peers``, or this seat's own row where there are none; shape (at least 1, d)."""
        rows = self.peers()
        return rows if len(rows) else self.own[None, :]

    def honest_ids(self) -> Sequence[int]:
        """Return whose the rows of ``honest`` are."""
        return self.ids() or [self.worker]


def alone(
    attack: Any,
    rows: Rows,
    f: int,
    seats: Mapping[str, Rows],
    rule: Aggregator | None,
    known: Mapping[str, Vector],
    gamma: float | None,
    rng: Generator,
) -> list[View]:
    """Return the views of f attackers that see these rows, outside a federation; see ``Attack.vectors``.

    The honest workers are 0 .. n-f-1, the attackers the last f of n. What is not known raises ValueError when an attack
    asks for it.

    Args:
        attack: whose views they are.
        rows: the honest messages in view, shape (n - f, d).
        f: how many attackers there are.
        seats: "own" and "flipped", shape (f, d) each, as far as they are known.
        rule: the server's.
        known: "x", "x0" and "g", as far as they are known.
        gamma: the server's step size, where it is known.
        rng: for the rule, and for what attackers draw each for itself.
    """
    n = len(rows) + f

    def needs(what: str) -> str:
        return f"{attack.kind} needs {what}: pass {what}="

    def flipped(seat: int) -> Vector:
        if "flipped" not in seats:
            raise ValueError(needs("flipped"))
        theirs: Vector = seats["flipped"][seat]
        return theirs

    @cache
    def seeds() -> list[int]:
        return [int(rng.integers(2**63)) for _ in range(f)]

    def aggregated(some: Rows) -> Vector:
        if rule is None:
            raise ValueError(needs("rule"))
        sound = some[np.isfinite(some).all(axis=1)]
        vector = aggregate(rule, sound, n, f, rng, known.get("g")).vector
        zero: Vector = np.zeros(rows.shape[1], rows.dtype)
        return zero if vector is None else vector

    def view(seat: int) -> View:
        return View(
            worker=n - f + seat,
            dim=rows.shape[1],
            dtype=rows.dtype,
            honestly=lambda: seats["own"][seat] if "own" in seats else mean_of_rows(rows),
            flipped=lambda: flipped(seat),
            ids=lambda: range(len(rows)),
            peers=lambda: rows,
            message=lambda worker: rows[worker] if 0 <= worker < len(rows) else None,
            n=n,
            f=f,
            sampled=n,
            sampled_byzantine=f,
            seats=range(n - f, n),
            x=known.get("x", missing(needs("x"))),
            x0=known.get("x0", missing(needs("x0"))),
            g=known.get("g"),
            gamma=missing(needs("gamma")) if gamma is None else gamma,
            aggregate=aggregated,
            rule=getattr(rule, "kind", ""),
            reach=missing(needs("gamma")) if gamma is None else gamma,
            draw=lambda worker: np.random.default_rng(seeds()[worker - (n - f)]),
        )

    return [view(seat) for seat in range(f)]
