"""RoSDHB and RoSDHB-Local: the server keeps a heavy-ball momentum of every client and aggregates the momenta.

Source: Gupta, Honsell, Xu, Gupta, Neglia, "Reconciling Communication Compression and Byzantine-Robustness in
Distributed Learning", AISTATS 2026 (arXiv 2508.17129), Algorithm RoSDHB and its variant with local sparsification.

Indices: round t asks for gradients at theta_{t-1}, here x, and ends with R_t and the step to theta_t. Clients are
stateless; the server holds n d floats. A client that is not sampled, or does not answer, keeps its momentum, and all n
of them are aggregated in every round; under the clipping heuristic (``clipped.Clipped``) only those of the sampled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from strategies.descent import Descent, gradient, local_gradient
from strategies.method import Ask, Oracle, Packet, Vector, WorkerState


@dataclass(frozen=True, kw_only=True)
class RoSDHB(Descent):
    """x = x - gamma F(m_1 .. m_n), with one mask of k of the d coordinates for all workers of a round.

    Args:
        beta: momentum, in [0, 1).
        batch: b, minibatch size; 0 for the full local gradient.
    """

    stateful: ClassVar[bool] = True
    holds: ClassVar[bool] = True

    beta: float
    batch: int

    # The server draws the mask: `Descent.ask` sends its seed, as the compressor is a shared one.

    # --- worker i ------------------------------------------------------------------------------------------------

    def reply(
        self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[WorkerState, Packet]:
        """Send the masked values of g_i."""
        return mine, self.form(ask, i).compress(self.local(oracle, ask.vectors["x"], rng), rng)

    def local(self, oracle: Oracle, x: Vector, rng: np.random.Generator) -> Vector:
        """Return g_i, the full or a minibatch gradient."""
        return gradient(oracle, x, self.batch, rng)

    # --- server: gt_i = (d/k) g_i on the mask, which is what the compressor reads; m_i; R = F(m_1 .. m_n) --------

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """m_i = beta m_i + (1 - beta) gt_i, from m_i = 0. Rows of the aggregator are momenta."""
        fresh = (1.0 - self.beta) * q
        return fresh if held is None else self.beta * held + fresh

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return (target - beta m_i) / (1 - beta)."""
        return (target if held is None else target - self.beta * held) / (1.0 - self.beta)

    def aggregated(self, held: Mapping[int, Vector], came: Mapping[int, Vector]) -> Mapping[int, Vector]:
        """Return the momenta of all n clients; those never heard have 0. Nothing before anybody was heard."""
        if not held:
            return {}
        zero = np.zeros_like(next(iter(held.values())))
        return {i: held.get(i, zero) for i in range(self.n)}


@dataclass(frozen=True, kw_only=True)
class RoSDHBLocal(RoSDHB):
    """Every worker draws a mask of its own, and may take local steps.

    Args:
        local_steps: H; with more than one, g_i is (x - y_H) / (eta H), the model delta of H steps in gradient units.
        local_gamma: eta, the size of a local step.
    """

    local_steps: int = 1
    local_gamma: float = 0.0

    def local(self, oracle: Oracle, x: Vector, rng: np.random.Generator) -> Vector:
        """Return g_i, the mean gradient along the local steps."""
        return local_gradient(oracle, x, self.batch, self.local_steps, self.local_gamma, rng)
