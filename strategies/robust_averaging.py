"""Robust federated averaging: clients train as they like, the server clips and aggregates their model deltas.

    worker i  y_i = whatever local training makes of x^k;  send Q(x^k - y_i)
    server    g^k = g^{k-1} + ARAgg({clip_lam(v_i - g^{k-1})}),  x^{k+1} = x^k - gamma g^k

It is ``Clipped`` around ``LocalSGD`` with one local step of size 1, whose "gradient" is the delta: how the worker came
by it is its own affair. gamma = 1, the rule ``mean`` and no clipping are FedAvg with equal weights.

The multiplier needs no knowledge of the task, because a delta has the units of x. Full-batch steps of at most 1/L on a
quadratic loss make x - y_i(x) change at most as fast as x, which is L = 1 for the theory's alpha = 2 L; on other convex
losses it is below 2. Elsewhere alpha = 2 is a guess. "auto" learns alpha from the replies; where cohorts often have a
Byzantine majority it diverged where 2 held.

``Clipped`` cannot clip before it has an aggregate to clip against, nor know a radius that it is to learn. A cohort with
a Byzantine majority could then set both. So the opening rounds, one, or two where alpha is learnt, ask all n workers,
and count only with enough replies for an honest majority.
"""

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace

import numpy as np

from strategies.clipped import Clipped
from strategies.descent import DescentState
from strategies.local_sgd import LocalSGD
from strategies.method import Ask, Report, Vector
from strategies.radius import AUTO, RATIOS


@dataclass(frozen=True, kw_only=True)
class RobustAveraging(Clipped):
    """The method; hyper-parameters are those of ``Clipped`` and of the ``LocalSGD`` in it."""

    method: LocalSGD

    def quorum(self, ask: Ask) -> int:
        """Return the replies that an opening round needs: 2f + 1, or all that n - f honest workers can give."""
        n, f = self.method.n, self.method.f
        ratios = ask.private.get(RATIOS, ())
        return min(2 * f + 1, n - f) if self._opening(ask.private.get("g"), ratios) else 0

    def ask(self, state: DescentState, rng: np.random.Generator) -> Ask:
        """Ask as ``Clipped`` does; all n workers in an opening round."""
        ask = super().ask(state, rng)
        return replace(ask, sample=self.method.n) if self._opening(state.g, state.ratios) else ask

    def update(
        self, state: DescentState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator
    ) -> DescentState:
        """Update as ``Clipped`` does; an opening round without its quorum leaves everything as it is."""
        quorum = self.quorum(ask)
        if len(replies) >= quorum:
            return super().update(state, ask, replies, rng)
        note = f"no quorum: {len(replies)} usable replies of the {quorum} that an opening round needs; x stays"
        return self.method.step(state, ask, replies, None, Report(note=note))

    def _opening(self, g: Vector | None, ratios: Sized) -> bool:
        return g is None or (self.alpha == AUTO and not len(ratios))
