"""Byz-VR-MARINA-PP: Byzantine-robust training in which only some clients take part in each round.

Source: Malinovsky, Richtarik, Horvath, Gorbunov, "Byzantine Robustness and Partial Participation Can Be Achieved at
Once: Just Clip Gradient Differences", NeurIPS 2024 (arXiv 2311.14127), Algorithm 1.

    server    S_k: C clients if c_k = 0, C_hat if c_k = 1
    c_k = 1   g^k = ARAgg({grad f_i(x^k) : i in S_k})
    c_k = 0   lam = alpha ||x^k - x^{k-1}||,  g^k = g^{k-1} + ARAgg({clip_lam(Q(Delta_i)) : i in S_k})

``marina`` has what it shares with its relatives: the coin, the workers' half, the step. Its options are the
paper's variants: ``plus`` takes the plain mean of the clipped differences, ``full_batch`` a large minibatch in place of
the full local gradient. A radius that learns its multiplier (``alpha = "auto"``) is ours; see ``radius``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator

from strategies.aggregators import Mean
from strategies.clipping import clip_rows
from strategies.cohorts import aggregate, stack
from strategies.hyperparameters import AUTO, Cohort, Multiplier
from strategies.marina import DIFFERENCE, FULL, Marina, MarinaState
from strategies.method import EVERYBODY, Ask, Combined, Past, Rows, Traits, Vector
from strategies.radius import Alpha, observe, radius
from strategies.vectors import norm

_CLIP = (
    'Whether differences are clipped to lam = alpha ||x^k - x^{k-1}||. "auto" learns alpha from the replies; false '
    "switches clipping off, to see what it is for."
)


@dataclass(frozen=True, kw_only=True)
class ByzVRMarinaPP(Marina):
    """Byz-VR-MARINA-PP (Malinovsky et al., NeurIPS 2024).

    Args:
        cohort: C: clients sampled in an ordinary round.
        full_cohort: C_hat: clients sampled in a full-gradient round; default: all. "least" is the fewest with which the
            rule withstands such a round even if all f Byzantine clients are sampled.
        alpha: clipping multiplier, lam = alpha ||x^k - x^{k-1}||; "auto" to learn it, None for no clipping.
        plus: Aggregate clipped differences by their mean in place of the rule (Byz-VR-MARINA-PP+).
    """

    kind: ClassVar[str] = "byz-vr-marina-pp"
    traits: ClassVar[Traits] = Traits(sampling="any", noise="vanishes", differences=True, full_gradients=True)

    cohort: Annotated[int, Cohort(optional=False)]
    full_cohort: Annotated[int, Cohort(least=True)]
    alpha: Annotated[Alpha | None, Multiplier(clip=True, meaning=_CLIP)]
    plus: bool = False

    @property
    def sampled(self) -> int:
        return self.cohort

    @property
    def everybody(self) -> int:
        return self.full_cohort

    def survives(self, kind: str) -> tuple[bool, str]:
        """Return whether and why a round of this kind survives a Byzantine majority."""
        if kind == FULL:
            return EVERYBODY if self.everybody == self.n else (False, "full gradients are not clipped")
        if self.alpha is None:
            return False, "differences are not clipped"
        return True, "differences are clipped to lam"

    def ask(self, state: MarinaState, rng: Generator) -> Ask:
        """Ask as all do; a radius that is learnt needs two full rounds before its first note."""
        due = self.alpha == AUTO and not state.ratios
        return super().ask(replace(state, full_due=True) if due else state, rng)

    def combine(self, ask: Ask, rows: Rows, rng: Generator, past: Past) -> Combined:
        """ARAgg of full gradients; ARAgg of clipped differences. Every difference is clipped, honest or not."""
        mass, asked = past.mass, self.asked(ask)
        if ask.kind == FULL:
            return aggregate(self.aggregator, rows, self.n, self.f, rng, past.g, mass=mass, asked=asked)
        lam = radius(self.alpha, rows, _step(ask), past.ratios, ask.alpha_scale)
        clipped, cut = clip_rows(rows, lam)
        rule = Mean() if self.plus else self.aggregator
        clips = lam is not None
        combined = aggregate(rule, clipped, self.n, self.f, rng, mass=mass, asked=asked, clipped=clips)
        return replace(combined, lam=lam, clipped=np.flatnonzero(cut).tolist(), rows=rows)

    def estimate(self, ask: Ask, g: Vector | None, combined: Vector) -> Vector:
        """Return the aggregate of full gradients; g^{k-1} + the aggregate of differences."""
        return combined if ask.kind == FULL or g is None else g + combined

    def update(self, state: MarinaState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> MarinaState:
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
