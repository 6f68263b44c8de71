"""Robust federated averaging: clients train as they like, the server clips and aggregates their model deltas.

    worker i  y_i = whatever local training makes of x^k;  send Q(x^k - y_i)
    server    g^k = g^{k-1} + ARAgg({clip_lam(v_i - g^{k-1})}),  x^{k+1} = x^k - gamma g^k

It is ``LocalSGD`` with one local step of size 1, whose "gradient" is the delta: how the worker came by it is its own
affair. gamma = 1, the rule ``mean`` and no clipping are FedAvg with equal weights.

The multiplier needs no knowledge of the task, because a delta has the units of x. Full-batch steps of at most 1/L on a
quadratic loss make x - y_i(x) change at most as fast as x, which is L = 1 for the theory's alpha = 2 L; on other convex
losses it is below 2. Elsewhere alpha = 2 is a guess. "auto" learns alpha from the replies; where cohorts often have a
Byzantine majority it diverged where 2 held.

Nothing can be clipped before there is an aggregate to clip against, and a radius that is learnt is not known yet. A
cohort with a Byzantine majority could then set both. So the opening rounds, one, or two where alpha is learnt, ask all
n workers, and count only with enough replies for an honest majority.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from numpy.random import Generator

from strategies.descent import DescentState
from strategies.hyperparameters import AUTO
from strategies.local_sgd import LocalSGD
from strategies.method import Ask, Report, Vector


@dataclass(frozen=True, kw_only=True)
class RobustAveraging(LocalSGD):
    """The method; hyper-parameters are those of ``LocalSGD``. It always adds to the last aggregate, clipped or not."""

    takes_root: ClassVar[bool] = False

    local_steps: int = 1
    local_gamma: float = 1.0

    @property
    def corrects(self) -> bool:
        return True

    def quorum(self, state: DescentState, ask: Ask) -> int:
        """Return the replies that an opening round needs: 2f + 1, or all that n - f honest workers can give."""
        return min(2 * self.f + 1, self.n - self.f) if self._opening(state) else 0

    def ask(self, state: DescentState, rng: Generator) -> Ask:
        """Ask C workers, and all n in an opening round."""
        ask = super().ask(state, rng)
        return replace(ask, sample=self.n) if self._opening(state) else ask

    def update(self, state: DescentState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> DescentState:
        """Clip, aggregate and step; an opening round without its quorum leaves everything as it is."""
        quorum = self.quorum(state, ask)
        if len(replies) >= quorum:
            return super().update(state, ask, replies, rng)
        note = f"no quorum: {len(replies)} usable replies of the {quorum} that an opening round needs; x stays"
        return self.step(state, ask, replies, None, Report(note=note))

    def _opening(self, state: DescentState) -> bool:
        return state.g is None or (self.alpha == AUTO and not state.ratios)
