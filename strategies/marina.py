"""What the MARINA methods share: a coin between two kinds of rounds, the quorum, the step.

    c_k ~ Bernoulli(p)
    c_k = 1   every sampled worker sends grad f_i(x^k)                        a full round
    c_k = 0   every sampled worker sends Q(Delta_i(x^k, x^{k-1}))             a difference round
    x^{k+1} = x^k - gamma g^k

They differ in who is sampled, and in how g^k comes about. Indices are those of the papers: round k asks about x^k (and
x^{k-1}) and ends with g^k and the step to x^{k+1}. Round 1 is the full round that gives the first estimate.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.cohorts import common_seed, stack
from strategies.compressors import Identity
from strategies.descent import gradient
from strategies.hyperparameters import Constants, Key, Written
from strategies.method import (
    EVERYBODY,
    NOT_NEEDED,
    Ask,
    Compressor,
    Method,
    Oracle,
    Packet,
    Past,
    Report,
    RoundKind,
    Vector,
    WorkerState,
    reported,
)
from strategies.vectors import distance

FULL = "full"
DIFFERENCE = "difference"


@dataclass(frozen=True, eq=False)
class MarinaState:
    """The server's state between rounds.

    Args:
        round: the round that comes next, from 1.
        x: the model of that round, x^k.
        x_prev: the model before it, x^{k-1}; None before the first step.
        g: the gradient estimate, g^{k-1}; None while no full round has had a quorum.
        full_due: the next round must be a full one: it is the first, or one missed its quorum.
        step: size of the step to x, where it was not gamma as the config has it; else None.
        estimates: g_i by worker, of those that are up to date; empty where the method keeps none.
        ratios: what a clipping radius that sets itself has noted, see ``radius.observe``; empty for others.
        report: what the last update did.
    """

    round: int
    x: Vector
    x_prev: Vector | None = None
    g: Vector | None = None
    full_due: bool = True
    step: float | None = None
    estimates: Mapping[int, Vector] = field(default_factory=dict)
    ratios: tuple[float, ...] = ()
    report: Report = field(default_factory=Report)


def _full_rounds(written: Written, constants: Constants) -> float:
    """Return min(C/n, b/m, 1/(omega + 1)): full rounds then cost as much as the others together."""
    cohort, batch = int(written.get("cohort", constants.n)), int(written["batch"])
    omega = constants.compressor.omega(constants.dim)
    return min(cohort / constants.n, batch / constants.m("p"), 1 / (omega + 1), 1.0)


@dataclass(frozen=True, kw_only=True)
class Marina(Method, ABC):
    """What the MARINA methods share.

    Args:
        p: Probability of a full round; default: min(C/n, b/m, 1/(omega + 1)), with m the samples of a client and omega
            the variance of the compressor, which makes full rounds cost as much as the others together.
        batch: b: minibatch size of a gradient difference.
        full_batch: b': minibatch size of a full round; 0 for the full local gradient.
    """

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "full_batch")
    on_schedules: ClassVar[str] = NOT_NEEDED
    always_quorum: ClassVar[bool] = False
    """Whether difference rounds need a quorum too."""

    p: Annotated[float, Key(gt=0, le=1, fill=_full_rounds)]
    batch: Annotated[int, Key(ge=1)]
    full_batch: Annotated[int, Key(ge=0)] = 0

    @property
    def everybody(self) -> int:
        """C_hat, how many clients a full round samples."""
        return self.n

    @property
    def sampled(self) -> int:
        """C, how many clients a difference round samples."""
        return self.n

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return full rounds and difference rounds."""
        full = RoundKind(FULL, self.p, self.everybody, Identity(), self.full_batch or samples, self.survives(FULL))
        survives = self.survives(DIFFERENCE)
        q = self.compressor
        return full, RoundKind(DIFFERENCE, 1 - self.p, self.sampled, q, 2 * self.batch, survives, down=2)

    def survives(self, kind: str) -> tuple[bool, str]:
        """Return whether and why a round of this kind survives a Byzantine majority."""
        return EVERYBODY

    def start(self, x0: Vector) -> MarinaState:
        return MarinaState(round=1, x=x0)

    # --- server: c_k ~ Bernoulli(p) ------------------------------------------------------------------------------

    def ask(self, state: MarinaState, rng: Generator) -> Ask:
        """Toss the coin and ask for full gradients, or for gradient differences from x^{k-1} to x^k."""
        coin = bool(rng.random() < self.p)
        if coin or state.full_due or state.x_prev is None or state.g is None:
            return Ask(state.round, FULL, {"x": state.x}, self.everybody)
        seed = common_seed(self.compressor, rng)
        points = self.points(state.x, state.x_prev, state.g)
        return Ask(state.round, DIFFERENCE, points, self.sampled, seed, step=state.step)

    def points(self, x: Vector, x_prev: Vector, g: Vector) -> dict[str, Vector]:
        """Return what the workers of a difference round are sent, by name: x^k and x^{k-1}."""
        return {"x": x, "x_prev": x_prev}

    def compressor_for(self, ask: Ask, i: int) -> Compressor:
        """Return Q for differences; full gradients travel uncompressed."""
        return self.compressor.of_round(ask.seed, i) if ask.kind == DIFFERENCE else Identity()

    # --- worker i ------------------------------------------------------------------------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Send grad f_i(x^k), or Q(Delta_i(x^k, x^{k-1})) on one minibatch."""
        x = self.model(mine, ask)
        if ask.kind == FULL:
            return mine, self.compressor_for(ask, i).compress(gradient(oracle, x, self.full_batch, rng), rng)
        new, old = oracle.minibatch_gradients([x, ask.vectors["x_prev"]], self.batch, rng)
        return mine, self.compressor_for(ask, i).compress(new - old, rng)

    # --- server: g^k, then x^{k+1} = x^k - gamma g^k -----------------------------------------------------------------

    def estimate(self, ask: Ask, g: Vector | None, combined: Vector) -> Vector:
        """Return g^k, given g^{k-1} and what ``combine`` gave."""
        return combined

    def quorum(self, state: MarinaState, ask: Ask) -> int:
        """Return more than half of those who were sampled, in full rounds; see ``always_quorum``."""
        return (ask.sample // 2 + 1) if ask.kind == FULL or self.always_quorum else 0

    def close(self, state: MarinaState, ask: Ask, rows: Mapping[int, Vector], rng: Generator) -> MarinaState:
        """Aggregate and step.

        A round without the quorum that it needs (more than half of those it sampled) leaves g as it is, and the next
        one is full; another round aggregates what came, and leaves g as it is if nothing did.

        Args:
            state: before the round.
            ask: what was asked.
            rows: what ``absorb`` gave, by worker.
            rng: the round's AGGREGATE stream.
        """
        past = Past(state.g, state.x_prev, state.ratios, self.mass_of(rows))
        combined = self.combine(ask, stack(state.x, rows), rng, past)
        g, full_due, note = state.g, False, combined.note
        quorum = self.quorum(state, ask)
        if quorum and (combined.vector is None or len(rows) < quorum):
            full_due = True
            note = f"no quorum: {len(rows)} usable replies of the {quorum} that a {ask.kind} round needs; g stays"
        elif combined.vector is not None:
            g = self.estimate(ask, g, combined.vector)
        else:
            note = f"{combined.note}; g stays"
        report = reported(combined, list(rows), note, rng, distance(state.x, state.x_prev))
        # The size is a Python float, so the step has the dtype of the model.
        size = self.step_size(ask)
        x_next = state.x if g is None else state.x - size * g
        step = None if size == self.gamma else size
        return MarinaState(state.round + 1, x_next, state.x, g, full_due, step, report=report)
