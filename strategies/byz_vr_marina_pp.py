"""Byz-VR-MARINA-PP: Byzantine-robust training in which only some clients take part in each round.

Source: Malinovsky, Richtarik, Horvath, Gorbunov, "Byzantine Robustness and Partial Participation Can Be Achieved at
Once: Just Clip Gradient Differences", NeurIPS 2024 (arXiv 2311.14127), Algorithm 1.

    server    S_k: C clients if c_k = 0, C_hat if c_k = 1
    c_k = 1   g^k = ARAgg({grad f_i(x^k) : i in S_k})
    c_k = 0   lam = alpha ||x^k - x^{k-1}||,  g^k = g^{k-1} + ARAgg({clip_lam(Q(Delta_i)) : i in S_k})

What it shares with its relatives (the coin, the workers' half, the step) stands in ``marina``. Its options are the
paper's variants: ``plus`` takes the plain mean of the clipped differences, ``full_batch`` a large minibatch in place of
the full local gradient. A radius that learns its multiplier (``alpha = "auto"``) is ours; see ``radius``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from strategies.aggregators import Mean
from strategies.clipping import clip_rows
from strategies.cohorts import aggregate, stack
from strategies.marina import DIFFERENCE, FULL, Marina, MarinaState
from strategies.method import Ask, Combined, Rows, Vector
from strategies.radius import AUTO, RATIOS, Alpha, observe, radius
from strategies.vectors import norm


@dataclass(frozen=True, kw_only=True)
class ByzVRMarinaPP(Marina):
    """The method and its hyper-parameters, in the paper's letters; those of ``Marina`` too.

    Args:
        cohort: C, clients sampled in an ordinary round.
        full_cohort: C_hat, clients sampled in a full-gradient round.
        alpha: clipping multiplier, lam = alpha ||x^k - x^{k-1}||; inf for no clipping, "auto" to learn it.
        plus: aggregate clipped differences by their mean (Byz-VR-MARINA-PP+).
    """

    cohort: int
    full_cohort: int
    alpha: Alpha
    plus: bool = False

    @property
    def sampled(self) -> int:
        """C."""
        return self.cohort

    @property
    def everybody(self) -> int:
        """C_hat."""
        return self.full_cohort

    def ask(self, state: MarinaState, rng: np.random.Generator) -> Ask:
        """Ask as all do; a radius that learns needs its notes, and two full rounds before the first of them."""
        if self.alpha != AUTO:
            return super().ask(state, rng)
        ask = super().ask(state if state.ratios else replace(state, full_due=True), rng)
        return replace(ask, private={**ask.private, RATIOS: np.array(state.ratios)})

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """ARAgg of full gradients; ARAgg of clipped differences. Every difference is clipped, honest or not."""
        if ask.kind == FULL:
            return aggregate(self.aggregator, rows, self.n, self.f, rng, ask.private.get("g"))
        lam = inf if self.alpha == inf else radius(self.alpha, rows, _step(ask), ask.private.get(RATIOS))
        clipped, cut = clip_rows(rows, lam)
        rule = Mean() if self.plus else self.aggregator
        combined = aggregate(rule, clipped, self.n, self.f, rng)
        return replace(combined, lam=None if lam == inf else lam, clipped=np.flatnonzero(cut).tolist(), rows=rows)

    def estimate(self, ask: Ask, g: Vector | None, combined: Vector) -> Vector:
        """Return the aggregate of full gradients; g^{k-1} + the aggregate of differences."""
        return combined if ask.kind == FULL or g is None else g + combined

    def update(
        self, state: MarinaState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator
    ) -> MarinaState:
        """Aggregate and step, see ``close``; note how long the differences were, where the radius is learnt.

        Two full rounds in a row start the notes: how far the estimate moved with the model is the outcome of a robust
        rule over a cohort that it tolerates. Compression makes differences longer by sqrt(1 + omega).
        """
        after = self.close(state, ask, replies, rng)
        if self.alpha != AUTO:
            return after
        notes = state.ratios
        if ask.kind == DIFFERENCE:
            notes = observe(notes, stack(state.x, replies), _step(ask))
        elif not notes and not after.full_due and after.g is not None and state.g is not None:
            longer = float((1 + self.compressor.omega(state.x.size)) ** 0.5)
            notes = observe((), longer * (after.g - state.g)[None], after.report.step_norm)
        return replace(after, ratios=notes)


def _step(ask: Ask) -> float:
    """Return ||x^k - x^{k-1}||."""
    return norm(ask.vectors["x"] - ask.vectors["x_prev"])
