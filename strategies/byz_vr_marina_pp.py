"""Byz-VR-MARINA-PP: Byzantine-robust training in which only some clients take part in each round.

Source: Malinovsky, Richtarik, Horvath, Gorbunov, "Byzantine Robustness and Partial Participation Can Be Achieved at
Once: Just Clip Gradient Differences", NeurIPS 2024 (arXiv 2311.14127), Algorithm 1.

Laid out like the algorithm: what the server asks, what a worker replies, how the server updates. Indices are the
paper's: round k asks about x^k (and x^{k-1}) and ends with g^k and the step to x^{k+1}. Round 1 is the full round that
gives the first estimate at the starting point.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from strategies.algorithm import (
    Aggregator,
    Ask,
    Combined,
    Compressor,
    NoWorkerState,
    Oracle,
    Packet,
    Report,
    Rows,
    Vector,
)
from strategies.clipping import clip_rows
from strategies.cohorts import aggregate, stack
from strategies.compressors import Identity
from strategies.vectors import norm

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
        full_due: the next round must be a full one: it is the first, or the last full one missed its quorum.
        report: what the last update did.
    """

    round: int
    x: Vector
    x_prev: Vector | None = None
    g: Vector | None = None
    full_due: bool = True
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, kw_only=True)
class ByzVRMarinaPP:
    """The method and its hyper-parameters, in the paper's letters.

    Args:
        n: clients.
        f: Byzantine clients to defend against.
        gamma: step size.
        p: probability of a full-gradient round.
        cohort: C, clients sampled in an ordinary round.
        full_cohort: C_hat, clients sampled in a full-gradient round.
        batch: b, minibatch size of a gradient difference.
        alpha: clipping multiplier, lam = alpha ||x^k - x^{k-1}||; inf for no clipping.
        aggregator: ARAgg.
        compressor: Q, used on gradient differences only.
    """

    n: int
    f: int
    gamma: float
    p: float
    cohort: int
    full_cohort: int
    batch: int
    alpha: float
    aggregator: Aggregator
    compressor: Compressor

    def start(self, x0: Vector) -> MarinaState:
        """Return the state before round 1."""
        return MarinaState(round=1, x=x0)

    # --- server: c_k ~ Bernoulli(p); who is asked for what -----------------------------------------------------

    def ask(self, state: MarinaState, rng: np.random.Generator) -> Ask:
        """Toss the coin and ask for full gradients, or for gradient differences from x^{k-1} to x^k."""
        coin = bool(rng.random() < self.p)
        if coin or state.full_due or state.x_prev is None:
            return Ask(state.round, FULL, {"x": state.x}, sample=self.full_cohort)
        return Ask(state.round, DIFFERENCE, {"x": state.x, "x_prev": state.x_prev}, sample=self.cohort)

    def form(self, ask: Ask) -> Compressor:
        """Return Q for differences; full gradients travel uncompressed."""
        return self.compressor if ask.kind == DIFFERENCE else Identity()

    # --- worker i ------------------------------------------------------------------------------------------------

    def reply(
        self, worker: NoWorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NoWorkerState, Packet]:
        """Send grad f_i(x^k), or Q(Delta_i(x^k, x^{k-1})) on one minibatch."""
        if ask.kind == FULL:
            return worker, self.form(ask).compress(oracle.full_gradient(ask.vectors["x"]), rng)
        new, old = oracle.minibatch_gradients([ask.vectors["x"], ask.vectors["x_prev"]], self.batch, rng)
        return worker, self.form(ask).compress(new - old, rng)

    # --- server: g^k, then x^{k+1} = x^k - gamma g^k -----------------------------------------------------------------

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """ARAgg of full gradients; ARAgg of clipped differences. Every difference is clipped, honest or not."""
        if ask.kind == FULL:
            return aggregate(self.aggregator, rows, self.n, self.f, rng)
        lam = inf if self.alpha == inf else self.alpha * norm(ask.vectors["x"] - ask.vectors["x_prev"])
        clipped, cut = clip_rows(rows, lam)
        combined = aggregate(self.aggregator, clipped, self.n, self.f, rng)
        return replace(combined, lam=None if lam == inf else lam, clipped=np.flatnonzero(cut).tolist())

    def update(
        self, state: MarinaState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator
    ) -> MarinaState:
        """Aggregate and step.

        A full round without a quorum (more than half of C_hat) leaves g as it is and is repeated as full next; an
        ordinary round aggregates what came, and an empty one leaves g as it is.
        """
        combined = self.combine(ask, stack(state.x, replies), rng)
        g, full_due, note = state.g, False, combined.note
        if ask.kind == FULL:
            quorum = self.full_cohort // 2 + 1
            if combined.vector is not None and len(replies) >= quorum:
                g = combined.vector
            else:
                full_due = True
                note = f"no quorum: {len(replies)} usable replies of the {quorum} that a full round needs; g stays"
        elif combined.vector is not None and g is not None:
            g = g + combined.vector
        workers = list(replies)
        report = Report(
            lam=combined.lam,
            step_norm=0.0 if state.x_prev is None else norm(state.x - state.x_prev),
            clipped=[workers[row] for row in combined.clipped],
            note=note,
        )
        # gamma is a Python float, so the step has the dtype of the model.
        x_next = state.x if g is None else state.x - self.gamma * g
        return MarinaState(state.round + 1, x_next, state.x, g, full_due, report)
