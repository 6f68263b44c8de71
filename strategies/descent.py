"""Descent: the methods x^{k+1} = x^k - gamma ARAgg({v_i}), which differ in what v_i is.

A gradient in robust SGD, a momentum that the worker keeps, the mean gradient of a few local steps, a momentum that the
server keeps (RoSDHB). A method of this family says what a worker replies, and where the server keeps something of every
worker, what it makes of a reply with ``absorb``. Asking, aggregating, stepping and the books of who was heard are here.

``clipped.Clipped`` wraps any of them for partial participation; it shares the state and the step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from strategies.cohorts import aggregate, common_seed, stack
from strategies.evidence import examine
from strategies.method import (
    Aggregator,
    Ask,
    Combined,
    Compressor,
    Oracle,
    Packet,
    Plain,
    Report,
    Rows,
    Vector,
    WorkerState,
)
from strategies.vectors import norm


@dataclass(frozen=True, eq=False)
class DescentState:
    """The server's state between rounds.

    Args:
        round: the round that comes next, from 1.
        x: the model of that round, x^k.
        x_prev: the last model that differed from x; None until x has moved.
        g: the last aggregate, g^{k-1}; None before the first.
        step_norm: length of the last step; 0 where x stayed.
        held: v_i of the last reply that counted, by worker; empty unless the method ``holds``.
        counted: the round of the last reply that counted, by worker.
        missed: workers whose latest reply did not count, though they were asked.
        ratios: what a clipping radius that sets itself has seen, see ``clipping.observed``; empty for others.
        report: what the last update did.
    """

    round: int
    x: Vector
    x_prev: Vector | None = None
    g: Vector | None = None
    step_norm: float = 0.0
    held: Mapping[int, Vector] = field(default_factory=dict)
    counted: Mapping[int, int] = field(default_factory=dict)
    missed: frozenset[int] = frozenset()
    ratios: tuple[float, ...] = ()
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, kw_only=True)
class Descent(Plain, ABC):
    """What all methods of the family share.

    Args:
        n: clients.
        f: Byzantine clients to defend against.
        gamma: step size.
        cohort: C, clients sampled in a round.
        aggregator: ARAgg.
        compressor: Q.
    """

    word: ClassVar[str] = "gradient"
    """The kind of its rounds."""
    holds: ClassVar[bool] = False
    """Whether the server keeps v_i of every worker, because ``absorb`` builds on it."""

    n: int
    f: int
    gamma: float
    cohort: int
    aggregator: Aggregator
    compressor: Compressor

    def start(self, x0: Vector) -> DescentState:
        """Return the state before round 1."""
        return DescentState(round=1, x=x0)

    def ask(self, state: DescentState, rng: np.random.Generator) -> Ask:
        """Send x^k to C clients."""
        private = {} if state.g is None else {"g": state.g}
        seed = common_seed(self.compressor, rng)
        return Ask(state.round, self.word, {"x": state.x}, self.cohort, seed, private=private)

    def form(self, ask: Ask, i: int) -> Compressor:
        """Return Q."""
        return self.compressor.of_round(ask.seed, i)

    @abstractmethod
    def reply(
        self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[WorkerState, Packet]:
        """Answer as the honest worker i; see ``algorithm.Method``."""

    def aggregated(self, held: Mapping[int, Vector], came: Mapping[int, Vector]) -> Mapping[int, Vector]:
        """Return the v_i to aggregate, by worker: of those who replied.

        Args:
            held: what the server holds after this round, by worker.
            came: v_i of the workers whose reply counted.
        """
        return came

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """ARAgg."""
        return aggregate(self.aggregator, rows, self.n, self.f, rng, ask.private.get("g"))

    def update(
        self, state: DescentState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator
    ) -> DescentState:
        """Aggregate and step; where nothing can be aggregated the model stays."""
        came = self.absorbed(state, ask, replies)
        rows = self.aggregated({**state.held, **came}, came)
        combined = self.combine(ask, stack(state.x, rows), rng)
        note = combined.note if combined.vector is not None else f"{combined.note}; the model stays"
        report = Report(note=note, evidence=examine(list(rows), combined, rng))
        return self.step(state, ask, came, combined.vector, report)

    def absorbed(self, state: DescentState, ask: Ask, replies: Mapping[int, Vector]) -> dict[int, Vector]:
        """Return v_i of every worker that replied."""
        return {i: self.absorb(state.held.get(i), ask, q) for i, q in replies.items()}

    def step(
        self, state: DescentState, ask: Ask, came: Mapping[int, Vector], g: Vector | None, report: Report
    ) -> DescentState:
        """Close the round: x^{k+1} = x^k - gamma g, and the books.

        Args:
            state: before the round.
            ask: what was asked.
            came: v_i of the workers whose reply counted.
            g: what to step along; None to stay.
            report: of this round; the length of the step that led to its model is filled in.
        """
        # gamma is a Python float, so the step has the dtype of the model.
        x_next = state.x if g is None else state.x - self.gamma * g
        step_norm = norm(x_next - state.x)
        asked = frozenset(came if ask.cohort is None else ask.cohort)
        return DescentState(
            round=state.round + 1,
            x=x_next,
            x_prev=state.x if step_norm > 0 else state.x_prev,
            g=state.g if g is None else g,
            step_norm=step_norm,
            held={**state.held, **came} if self.holds else state.held,
            counted={**state.counted, **dict.fromkeys(came, ask.round)},
            missed=(state.missed | asked).difference(came),
            ratios=state.ratios,
            report=replace(report, step_norm=state.step_norm),
        )


def gradient(oracle: Oracle, x: Vector, batch: int, rng: np.random.Generator) -> Vector:
    """Return grad f_i(x) over one minibatch of ``batch`` samples, or over all local data where it is 0; shape (d,)."""
    return oracle.minibatch_gradients([x], batch, rng)[0] if batch else oracle.full_gradient(x)


def local_gradient(
    oracle: Oracle, x: Vector, batch: int, steps: int, local_gamma: float, rng: np.random.Generator
) -> Vector:
    """Take H local SGD steps y <- y - eta grad f_i(y) from x and return (x - y_H) / (eta H), shape (d,).

    That is the mean of the H gradients, and is computed as such: the difference of two float32 models would have lost
    most of its digits.

    Args:
        oracle: the worker's loss.
        x: where to start, shape (d,).
        batch: minibatch size of a step; 0 for the full local gradient.
        steps: H, at least 1.
        local_gamma: eta.
        rng: draws the minibatches, one a step.
    """
    y, total = x, gradient(oracle, x, batch, rng)
    last = total
    for _ in range(steps - 1):
        y = y - local_gamma * last
        last = gradient(oracle, y, batch, rng)
        total = total + last
    return total if steps == 1 else total / steps
