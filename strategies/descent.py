"""Descent: the methods x^{k+1} = x^k - gamma ARAgg({v_i}), which differ in what v_i is.

A gradient in robust SGD, a momentum that the worker keeps, the mean gradient of a few local steps, a momentum that the
server keeps (RoSDHB). A method of this family defines what a worker replies, and where the server keeps something of
every worker, with ``absorb``, what a reply becomes. Asking, aggregating and stepping are here.

With a clipping multiplier ``alpha`` any of them takes part in the clipping heuristic for partial participation:

    lam_k = alpha ||x^k - x^{k-1}||
    g^k = g^{k-1} + Agg({clip_{lam_k}(v_i^k - g^{k-1}) : i in S_k}),  x^{k+1} = x^k - gamma g^k

A sampled cohort, even an entirely Byzantine one, moves the estimate g by lam at most. The price: the first aggregate,
before x has moved, is not clipped, and no full round ever corrects an estimate that was led astray.

Source: Malinovsky, Richtarik, Horvath, Gorbunov, "Byzantine Robustness and Partial Participation Can Be Achieved at
Once: Just Clip Gradient Differences", NeurIPS 2024 (arXiv 2311.14127), the section on heuristic extensions.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator

from strategies.clipping import clip_rows
from strategies.cohorts import aggregate, common_seed, stack
from strategies.hyperparameters import AUTO, Cohort, Key, Multiplier
from strategies.method import (
    EVERYBODY,
    Ask,
    Combined,
    Kept,
    Method,
    Oracle,
    Past,
    Report,
    RoundKind,
    Rows,
    Traits,
    Vector,
    reported,
)
from strategies.radius import Alpha, observe, radius
from strategies.vectors import bounded_sum, distance, norm

_HEURISTIC = (
    "Clip differences from the last aggregate, the heuristic for partial participation: needed where ``cohort`` is so "
    'small that a sampled one may have a Byzantine majority. "auto" learns alpha from the replies.'
)


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
        ratios: what a clipping radius that sets itself has seen, see ``radius.observe``; empty for others.
        server: what a server step keeps, see ``server_step``; empty without one.
        report: what the last update did.
        root: see ``Method.takes_root``.
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
    server: Kept = ()
    report: Report = field(default_factory=Report)
    root: tuple[tuple[str, Vector], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Descent(Method, ABC):
    """What all methods of the family share.

    Args:
        alpha: clipping multiplier, lam = alpha ||x^k - x^{k-1}||; "auto" to learn it, None for no clipping.
        cohort: C: clients sampled in a round; default: all.
        batch: b: minibatch size; 0 for the full local gradient.
    """

    traits: ClassVar[Traits] = Traits(sampling="clipped")
    word: ClassVar[str] = "gradient"
    """The kind of its rounds."""
    holds: ClassVar[bool] = False
    """Whether the server keeps v_i of every worker, because ``absorb`` builds on it."""

    alpha: Annotated[Alpha | None, Multiplier(clip=False, meaning=_HEURISTIC)] = None
    cohort: Annotated[int, Cohort()]
    batch: Annotated[int, Key(ge=0)] = 0

    @property
    def steps(self) -> int:
        """How many gradients a worker computes in a round."""
        return 1

    @property
    def corrects(self) -> bool:
        """Whether differences from the last aggregate are aggregated, as the clipping heuristic does."""
        return self.alpha is not None

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the one kind of round."""
        if self.cohort == self.n:
            survives = EVERYBODY
        elif self.alpha is not None:
            survives = (True, "from round 2 on, differences from the last aggregate are clipped to lam")
        else:
            survives = (False, "nothing is clipped")
        return [RoundKind(self.word, 1.0, self.cohort, self.compressor, self.steps * (self.batch or samples), survives)]

    def start(self, x0: Vector) -> DescentState:
        return DescentState(round=1, x=x0)

    def restart(self, state: DescentState, round_: int) -> DescentState:
        """Begin again from the model, and keep g where clipping needs it: a cohort could lead a first g anywhere."""
        if not self.corrects:
            return replace(self.start(state.x), round=round_)
        everybody = frozenset(range(self.n))
        return replace(state, round=round_, held={}, counted={}, missed=everybody, server=(), report=Report())

    # --- server: broadcast x^k --------------------------------------------------------------------------------------

    def ask(self, state: DescentState, rng: Generator) -> Ask:
        """Ask C clients at x^k."""
        return Ask(state.round, self.word, {"x": state.x}, self.cohort, common_seed(self.compressor, rng))

    # --- server: lam_k, g^k, x^{k+1} ----------------------------------------------------------------------------------

    def aggregated(self, held: Mapping[int, Vector], came: Mapping[int, Vector]) -> Mapping[int, Vector]:
        """Return the v_i to aggregate, by worker: of those who replied.

        Args:
            held: what the server holds after this round, by worker.
            came: v_i of the workers whose reply counted.
        """
        return came

    def combine(self, ask: Ask, rows: Rows, rng: Generator, past: Past) -> Combined:
        """Return ARAgg({v_i}), or g^{k-1} + ARAgg({clip_lam(v_i - g^{k-1})}).

        While x has not moved nothing is clipped; without a g^{k-1} the rows themselves are aggregated.
        """
        g, mass, asked = past.g, past.mass, self.asked(ask)
        if g is None or not self.corrects:
            center = g if ask.root is None else ask.root
            return aggregate(self.aggregator, rows, self.n, self.f, rng, center, mass=mass, asked=asked)
        differences = bounded_sum(rows, -g)
        step = _step(ask, past)
        lam = radius(self.alpha, differences, step, past.ratios, ask.alpha_scale) if step else None
        short, cut = clip_rows(differences, lam)
        clips = lam is not None
        combined = aggregate(self.aggregator, short, self.n, self.f, rng, mass=mass, asked=asked, clipped=clips)
        moved = None if combined.vector is None else g + combined.vector
        return replace(combined, vector=moved, lam=lam, clipped=np.flatnonzero(cut).tolist(), rows=differences)

    def update(self, state: DescentState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> DescentState:
        """Aggregate and step. Where nothing can be aggregated the model stays; under the heuristic only g does."""
        came = {i: self.absorb(state.held.get(i), ask, q) for i, q in replies.items()}
        seen = came if self.corrects else self.aggregated({**state.held, **came}, came)
        past, rows = Past(state.g, state.x_prev, state.ratios, self.mass_of(seen)), stack(state.x, seen)
        combined = self.combine(ask, rows, rng, past)
        g, note = combined.vector, combined.note
        if g is None:
            g = state.g if self.corrects else None
            note = f"{note}; {'g' if self.corrects else 'the model'} stays"
        after = self.step(state, ask, came, g, reported(combined, list(seen), note, rng))
        if self.alpha != AUTO or state.g is None:
            return after
        return replace(after, ratios=observe(state.ratios, bounded_sum(rows, -state.g), _step(ask, past)))

    def step(
        self, state: DescentState, ask: Ask, came: Mapping[int, Vector], g: Vector | None, report: Report
    ) -> DescentState:
        """Close the round: x^{k+1} = x^k - gamma_k g, and who was heard.

        Args:
            state: before the round.
            ask: what was asked.
            came: v_i of the workers whose reply counted.
            g: what to step along; None to stay.
            report: of this round; the length of the step that led to its model is filled in.
        """
        x_next, server = state.x, state.server
        if g is not None:
            along, server = self.along(g, server)
            x_next = state.x - self.step_size(ask) * along  # a Python float, so the step has the dtype of the model
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
            server=server,
            report=replace(report, step_norm=state.step_norm),
        )


def _step(ask: Ask, past: Past) -> float:
    """Return ||x^k - x^{k-1}||; 0 where x has not moved, or an attacker has not seen it move.

    Where single steps were lost to rounding, x^{k-1} is the last model that differed: a radius of 0 would freeze g.
    """
    return distance(ask.vectors["x"], past.x_prev)


def gradient(oracle: Oracle, x: Vector, batch: int, rng: Generator) -> Vector:
    """Return grad f_i(x) over one minibatch of ``batch`` samples, or over all local data where it is 0; shape (d,)."""
    return oracle.minibatch_gradients([x], batch, rng)[0] if batch else oracle.full_gradient(x)


def local_gradient(
    oracle: Oracle, x: Vector, batch: int, steps: int, local_gamma: float, rng: Generator, momentum: float = 0.0
) -> Vector:
    """Take H local steps u <- mu u + grad f_i(y), y <- y - eta u from x; return (x - y_H) / (eta H), shape (d,).

    That is the mean of the H directions u, without momentum the gradients, and is computed as such: the difference of
    two float32 models would have lost most of its digits.

    Args:
        oracle: the worker's loss.
        x: where to start, shape (d,).
        batch: minibatch size of a step; 0 for the full local gradient.
        steps: H, at least 1.
        local_gamma: eta.
        rng: draws the minibatches, one a step.
        momentum: mu; u is 0 at first.
    """
    y, total = x, gradient(oracle, x, batch, rng)
    u = total
    for _ in range(steps - 1):
        y = y - local_gamma * u
        g = gradient(oracle, y, batch, rng)
        u = momentum * u + g if momentum else g
        total = total + u
    return total if steps == 1 else total / steps
