"""The clipping heuristic: any full-participation method x^{k+1} = x^k - gamma Agg({v_i}) under partial participation.

    lam_k = alpha ||x^k - x^{k-1}||
    g^k = g^{k-1} + Agg({clip_{lam_k}(v_i^k - g^{k-1}) : i in S_k}),  x^{k+1} = x^k - gamma g^k

A sampled cohort, even an entirely Byzantine one, moves the estimate g by lam at most. The price: the first aggregate,
before x has moved, is not clipped, and there are no full rounds that would mend an estimate which was led astray.

Source: Malinovsky, Richtarik, Horvath, Gorbunov, "Byzantine Robustness and Partial Participation Can Be Achieved at
Once: Just Clip Gradient Differences", NeurIPS 2024 (arXiv 2311.14127), the section on heuristic extensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from strategies.clipping import clip_rows
from strategies.cohorts import aggregate, stack
from strategies.descent import Descent, DescentState
from strategies.evidence import examine
from strategies.method import Ask, Combined, Compressor, Oracle, Packet, Report, Rows, Vector, WorkerState
from strategies.radius import AUTO, RATIOS, Alpha, observe, radius
from strategies.vectors import bounded_sum, norm


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """A method of the family of ``Descent``, clipped.

    Args:
        method: what is wrapped; its cohort is C.
        alpha: clipping multiplier, lam = alpha ||x^k - x^{k-1}||; "auto" to learn it from the replies.
    """

    method: Descent
    alpha: Alpha

    @property
    def stateful(self) -> bool:
        """Whether the wrapped method is."""
        return self.method.stateful

    # --- the wrapped method's own ---------------------------------------------------------------------------------

    def start(self, x0: Vector) -> DescentState:
        """Return the state before round 1."""
        return self.method.start(x0)

    def resync(self, state: DescentState, i: int) -> Mapping[str, Vector]:
        """Return what the wrapped method sends worker i."""
        return self.method.resync(state, i)

    def quorum(self, ask: Ask) -> int:
        """Return the wrapped method's quorum."""
        return self.method.quorum(ask)

    def form(self, ask: Ask, i: int) -> Compressor:
        """Return the wrapped method's compressor."""
        return self.method.form(ask, i)

    def reply(
        self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[WorkerState, Packet]:
        """Answer as the wrapped method does."""
        return self.method.reply(i, mine, ask, oracle, rng)

    def knows(self, state: DescentState, i: int, version: int) -> bool:
        """Return whether the wrapped method can use such a reply."""
        return self.method.knows(state, i, version)

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return the model that the ask is about."""
        return self.method.model(mine, ask)

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return v_i."""
        return self.method.absorb(held, ask, q)

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the q that gives this v_i."""
        return self.method.aim(held, ask, target)

    # --- server: lam_k, g^k, x^{k+1} ----------------------------------------------------------------------------------

    def ask(self, state: DescentState, rng: np.random.Generator) -> Ask:
        """Ask as the wrapped method does, and keep x^{k-1} beside g^{k-1} for ``combine``."""
        ask = self.method.ask(state, rng)
        private = dict(ask.private)
        if state.x_prev is not None:
            private["x_prev"] = state.x_prev
        if self.alpha == AUTO:
            private[RATIOS] = np.array(state.ratios)
        return replace(ask, private=private)

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """Return g^{k-1} + Agg({clip_lam(v_i - g^{k-1})}).

        While x has not moved nothing is clipped; without a g^{k-1} the rows themselves are aggregated.
        """
        g = ask.private.get("g")
        if g is None:
            return self.method.combine(ask, rows, rng)
        differences = bounded_sum(rows, -g)
        step = _step(ask)
        lam = inf if step == 0 else radius(self.alpha, differences, step, ask.private.get(RATIOS))
        short, cut = clip_rows(differences, lam)
        combined = aggregate(self.method.aggregator, short, self.method.n, self.method.f, rng)
        return replace(
            combined,
            vector=None if combined.vector is None else g + combined.vector,
            lam=None if lam == inf else lam,
            clipped=np.flatnonzero(cut).tolist(),
            rows=differences,
        )

    def update(
        self, state: DescentState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator
    ) -> DescentState:
        """Aggregate what the sampled workers sent, and step; a round with no usable reply steps along g^{k-1}."""
        came = self.method.absorbed(state, ask, replies)
        rows = stack(state.x, came)
        combined = self.combine(ask, rows, rng)
        workers = list(came)
        note = combined.note if combined.vector is not None else f"{combined.note}; g stays"
        report = Report(
            lam=combined.lam,
            clipped=[workers[row] for row in combined.clipped],
            note=note,
            evidence=examine(workers, combined, rng),
        )
        after = self.method.step(state, ask, came, state.g if combined.vector is None else combined.vector, report)
        if self.alpha != AUTO or state.g is None:
            return after
        return replace(after, ratios=observe(state.ratios, bounded_sum(rows, -state.g), _step(ask)))


def _step(ask: Ask) -> float:
    """Return ||x^k - x^{k-1}||; 0 where x has not moved, or an attacker has not seen it move.

    Where single steps were lost to rounding, x^{k-1} is the last model that differed: a radius of 0 would freeze g.
    """
    x_prev = ask.private.get("x_prev")
    return 0.0 if x_prev is None else norm(ask.vectors["x"] - x_prev)
