"""Byz-VR-MARINA: the method of full participation that Byz-VR-MARINA-PP grew from. Nothing is clipped.

Source: Gorbunov, Horvath, Richtarik, Gidel, "Variance Reduction is an Antidote to Byzantine Workers: Better Rates,
Weaker Assumptions and Communication Compression as a Cherry on the Top", ICLR 2023 (arXiv 2206.00529), Algorithm 1.

    server    send g^{k-1} to all;  worker i  x^k = x^{k-1} - gamma g^{k-1}
    c_k = 1   worker i  g_i = grad f_i(x^k)
    c_k = 0   worker i  g_i = g^{k-1} + Q(Delta_i(x^k, x^{k-1}))
    server    g^k = ARAgg({g_i : i = 1..n})

What is aggregated are the vectors g^{k-1} + Q(Delta_i) and not the differences: a rule that is not equivariant under
translation (one that clips, or starts from a centre) gives something else for them. Attackers, too, choose what is
aggregated. As in the paper a worker is sent g^{k-1}, here with x^{k-1}, and takes the step itself; so both ends know g.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from numpy.random import Generator

from strategies.marina import FULL, Marina, MarinaState
from strategies.method import Ask, Traits, Vector, WorkerState
from strategies.vectors import bounded_sum


@dataclass(frozen=True, kw_only=True)
class ByzVRMarina(Marina):
    """Byz-VR-MARINA (Gorbunov et al., ICLR 2023): all clients take part, nothing is clipped.

    Without clipping only numbers protect the estimate: every round needs replies of more than half of the clients, and
    the rule defends against all f however few came.
    """

    kind: ClassVar[str] = "byz-vr-marina"
    traits: ClassVar[Traits] = Traits(noise="vanishes", differences=True, full_gradients=True)
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "full_batch", "gamma")  # workers take the server's step
    always_quorum: ClassVar[bool] = True

    def points(self, x: Vector, x_prev: Vector, g: Vector) -> dict[str, Vector]:
        """Return x^{k-1} and g^{k-1}."""
        return {"x_prev": x_prev, "g": g}

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return x^k, in a difference round by the step that the server took: equal to the last bit."""
        if ask.kind == FULL:
            return ask.vectors["x"]
        size = self.gamma_at(ask.round - 1) if ask.step is None else ask.step
        return ask.vectors["x_prev"] - size * ask.vectors["g"]

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return g_i."""
        return q if ask.kind == FULL else bounded_sum(ask.vectors["g"], q)

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the q that makes this g_i."""
        return target if ask.kind == FULL else bounded_sum(target, -ask.vectors["g"])

    def update(self, state: MarinaState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> MarinaState:
        """Aggregate and step, see ``close``."""
        return self.close(state, ask, {i: self.absorb(None, ask, q) for i, q in replies.items()}, rng)
