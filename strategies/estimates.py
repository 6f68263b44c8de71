"""The base of methods in which the server holds an estimate g_i of every client's gradient, and clients send changes.

    g_i = g_i + q_i,  g = ARAgg({g_i : i = 1..n}),  x = x - gamma g

Byz-DASHA-PAGE, Byz-EF21 and Byz-EF21-BC are of this kind. Both ends hold g_i and must hold the same, bit for bit: a
worker that adds a change which the server has not read would be wrong from then on. So a reply names the round of the
worker's last one, ``version``, and the server takes it only if that was the round before. A worker whose last reply did
not count, for whatever reason (late, lost, rejected, restarted, replaced), is sent the server's g_i with the next ask
and goes on from there; one that has no g_i yet starts from the server's aggregate g.

Full participation: every client is asked in every round. The g_i of one that did not answer stays as it is and is
aggregated like the others: it is the best that the server knows of it, and up to f of the rows are covered anyway.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, cast

from numpy.random import Generator

from strategies.cohorts import stack
from strategies.compressors import Identity
from strategies.evidence import examine
from strategies.method import (
    HELD,
    Ask,
    Compressor,
    Packet,
    Past,
    Report,
    RoundKind,
    Stateful,
    StateLostError,
    Vector,
    WorkerState,
)
from strategies.vectors import bounded_sum, distance

START = "start"
"""The kind of the first round: every worker sends its full gradient at x^0, uncompressed."""


@dataclass(frozen=True, eq=False)
class EstimatesState:
    """The server's state between rounds.

    Args:
        round: the round that comes next, from 1.
        x: the model of that round.
        x_prev: the model of the round before; None before round 2.
        g: the aggregate of the estimates; None while no first round has had a quorum.
        estimates: g_i by client, ascending; a client that has never been heard has none.
        behind: clients whose last reply did not count: they are sent their g_i with the next ask.
        report: what the last update did.
    """

    round: int
    x: Vector
    x_prev: Vector | None = None
    g: Vector | None = None
    estimates: Mapping[int, Vector] = field(default_factory=dict)
    behind: frozenset[int] = frozenset()
    report: Report = field(default_factory=Report)


StateT = TypeVar("StateT", bound=EstimatesState)


@dataclass(frozen=True, kw_only=True)
class Estimates(Stateful, ABC, Generic[StateT]):
    """The server's half that these methods share, and what a worker does about its g_i."""

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the first round, and the kinds of later ones."""
        first = RoundKind(START, 1 / rounds, self.n, Identity(), samples)
        return [first, *(kind for kind in self.later(1 - 1 / rounds, samples) if kind.share > 0)]

    @abstractmethod
    def later(self, share: float, samples: int) -> Sequence[RoundKind]:
        """Return the kinds of rounds after the first one, whose shares sum to ``share``."""

    def start(self, x0: Vector) -> StateT:
        return cast(StateT, EstimatesState(round=1, x=x0))

    @abstractmethod
    def next_ask(self, state: StateT, rng: Generator) -> Ask:
        """Open a round after the first; ``ask`` fills in ``sample``."""

    def ask(self, state: StateT, rng: Generator) -> Ask:
        """Ask everybody: in the first round for full gradients, later for changes."""
        if state.g is None:
            return Ask(state.round, START, {"x": state.x}, self.n)
        return replace(self.next_ask(state, rng), sample=self.n)

    def resync(self, state: StateT, i: int) -> Mapping[str, Vector]:
        """Return the g_i that the server holds, or g where it holds none, for a worker that is behind."""
        if state.g is None or i not in state.behind:
            return {}
        return {HELD: state.estimates.get(i, state.g)}

    def compressor_for(self, ask: Ask, i: int) -> Compressor:
        """Return the compressor of changes; the first gradients travel uncompressed."""
        return Identity() if ask.kind == START else self.compressor.of_round(ask.seed, i)

    def accepts_version(self, state: StateT, i: int, version: int) -> bool:
        """Return whether the reply builds on the round before; the first gradients build on nothing."""
        return version == (0 if state.g is None else state.round - 1)

    # --- worker i ------------------------------------------------------------------------------------------------

    def own(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return the worker's g_i: the server's where that is sent, else its own.

        Raises:
            StateLostError: it is not sent, and the worker's own is of another round than the last.
        """
        if HELD in ask.vectors:
            return ask.vectors[HELD]
        self.check(mine, ask)
        return mine.vectors["g"]

    def check(self, mine: WorkerState, ask: Ask) -> None:
        """Refuse a state that is not of the round before.

        Raises:
            StateLostError: it is not.
        """
        if mine.version != ask.round - 1:
            raise StateLostError(f"state of round {mine.version}, but round {ask.round} builds on {ask.round - 1}")

    def send(self, i: int, ask: Ask, g: Vector, change: Vector, rng: Generator) -> tuple[Vector, Packet]:
        """Compress a change of g_i; return the new g_i, as the server will have it, and the packet."""
        form = self.compressor_for(ask, i)
        packet = form.compress(change, rng)
        # The worker adds what the server will read, in the same way, so that both get the same bits.
        return self.absorb(g, ask, form.decompress(packet, g.dtype)), replace(packet, version=ask.round - 1)

    # --- server ------------------------------------------------------------------------------------------------------

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """g_i = g_i + q_i; in the first round g_i = q_i. Rows of the aggregator are estimates."""
        return q if held is None or ask.kind == START else bounded_sum(held, q)

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return target - g_i."""
        return target if held is None or ask.kind == START else target - held

    def quorum(self, state: StateT, ask: Ask) -> int:
        """Return more than half of the clients, in the first round."""
        return self.n // 2 + 1 if ask.kind == START else 0

    def update(self, state: StateT, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> StateT:
        """Add the changes, aggregate all estimates and step.

        The first round needs a quorum, more than half of the clients, and is repeated until it has one.
        """
        report = Report(step_norm=distance(state.x, state.x_prev))
        quorum = self.quorum(state, ask)
        if len(replies) < quorum:
            note = f"no quorum: {len(replies)} usable replies of the {quorum} that the first round needs; repeated"
            return replace(state, round=state.round + 1, report=replace(report, note=note))
        # A change was made to what the server last read or sent: g_i, or g in place of it.
        changed = {i: self.absorb(state.estimates.get(i, state.g), ask, q) for i, q in replies.items()}
        estimates = dict(sorted({**state.estimates, **changed}.items()))
        combined = self.combine(ask, stack(state.x, estimates), rng, Past(state.g, mass=self.mass_of(estimates)))
        evidence = examine(list(estimates), combined, rng)
        report = replace(report, evidence=evidence, below_quorum=combined.below_quorum)
        g = state.g if combined.vector is None else combined.vector
        if g is None:
            return replace(state, round=state.round + 1, report=replace(report, note=combined.note))
        return replace(
            state,
            round=state.round + 1,
            x=state.x - self.step_size(ask) * g,  # a Python float, so the step has the dtype of the model
            x_prev=state.x,
            g=g,
            estimates=estimates,
            behind=frozenset(range(self.n)).difference(replies),
            report=replace(report, note=f"{combined.note}; g stays" if combined.vector is None else combined.note),
        )
