"""Byz-VR-MARINA 2.0: one estimate for each worker, so that compression errors do not add up in a common one.

Source: Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, "Communication Compression for Byzantine Robust Learning: New
Efficient Algorithms and Improved Rates", AISTATS 2024 (arXiv 2310.09804), Algorithm 1.

    c_k = 1   worker i  send grad f_i(x^k)                    server  g_i = grad f_i(x^k)
    c_k = 0   worker i  send Q(Delta_i(x^k, x^{k-1}))         server  g_i = g_i + Q(Delta_i)
    server    g^k = ARAgg({g_i : i = 1..n})

Where Byz-VR-MARINA adds every Q(Delta_i) to the common g, this adds it to the worker's own g_i. The server keeps them,
n d floats; workers are stateless. A g_i of which one difference is missing is corrected by no later one, so the
worker is left out until its next full gradient. With half of them left out, the next round is a full one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from numpy.random import Generator

from strategies.marina import FULL, Marina, MarinaState
from strategies.method import Ask, Stateful, Traits, Vector
from strategies.vectors import bounded_sum


@dataclass(frozen=True, kw_only=True)
class ByzVRMarina2(Marina, Stateful):
    """Byz-VR-MARINA 2.0 (Rammal et al., AISTATS 2024): an estimate for every client, kept by the server.

    Without clipping only numbers protect the estimate: every round needs the g_i of more than half of the clients, and
    the rule defends against all f however few there are.
    """

    kind: ClassVar[str] = "byz-vr-marina-2"
    traits: ClassVar[Traits] = Traits(noise="vanishes", differences=True, full_gradients=True, rows=True)
    always_quorum: ClassVar[bool] = True

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return g_i."""
        return q if ask.kind == FULL or held is None else bounded_sum(held, q)

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the q that makes this g_i."""
        return target if ask.kind == FULL or held is None else bounded_sum(target, -held)

    def update(self, state: MarinaState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> MarinaState:
        """Update the g_i of those who replied and were up to date, aggregate them and step; see ``close``."""
        held = state.estimates
        estimates = {i: self.absorb(held.get(i), ask, q) for i, q in replies.items() if ask.kind == FULL or i in held}
        after = self.close(state, ask, estimates, rng)
        if stale := len(replies) - len(estimates):
            note = f"{stale} replies build on a lost one; their workers wait for the next full round"
            after = replace(after, report=replace(after.report, note=after.report.note or note))
        return replace(after, estimates=estimates)
