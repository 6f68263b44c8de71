"""Robust SGD: workers send gradients, the server aggregates them and steps.

The plainest baseline. With the rule ``mean`` it is what most federated systems do (FedSGD), and what one attacker
destroys; with a robust rule it is the classical Byzantine-robust SGD.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017; Yin, Chen, Ramchandran, Bartlett, ICML 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from strategies.algorithm import (
    Aggregator,
    Ask,
    Combined,
    Compressor,
    NoWorkerState,
    Oracle,
    Packet,
    Report,
    Rows,
    Vector,
)
from strategies.cohorts import aggregate, stack
from strategies.vectors import norm

GRADIENT = "gradient"


@dataclass(frozen=True, eq=False)
class SGDState:
    """The server's state between rounds: the next round k (from 1), its model, the step that led there, a report."""

    round: int
    x: Vector
    step_norm: float = 0.0
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, kw_only=True)
class RobustSGD:
    """x^{k+1} = x^k - gamma ARAgg({Q(g_i)}).

    Args:
        n: clients.
        f: Byzantine clients to defend against.
        gamma: step size.
        cohort: C, clients sampled in a round.
        batch: b, minibatch size; 0 for the full local gradient.
        aggregator: ARAgg.
        compressor: Q.
    """

    n: int
    f: int
    gamma: float
    cohort: int
    batch: int
    aggregator: Aggregator
    compressor: Compressor

    def start(self, x0: Vector) -> SGDState:
        """Return the state before round 1."""
        return SGDState(round=1, x=x0)

    def ask(self, state: SGDState, rng: np.random.Generator) -> Ask:
        """Ask C clients for gradients at x^k."""
        return Ask(state.round, GRADIENT, {"x": state.x}, sample=self.cohort)

    def form(self, ask: Ask) -> Compressor:
        """Return Q."""
        return self.compressor

    def reply(
        self, worker: NoWorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[NoWorkerState, Packet]:
        """Send Q(g_i), the full or a minibatch gradient."""
        x = ask.vectors["x"]
        g = oracle.minibatch_gradients([x], self.batch, rng)[0] if self.batch else oracle.full_gradient(x)
        return worker, self.compressor.compress(g, rng)

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """ARAgg."""
        return aggregate(self.aggregator, rows, self.n, self.f, rng)

    def update(self, state: SGDState, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator) -> SGDState:
        """Aggregate what came and step; with no usable reply the model stays."""
        combined = self.combine(ask, stack(state.x, replies), rng)
        x_next = state.x if combined.vector is None else state.x - self.gamma * combined.vector
        report = Report(step_norm=state.step_norm, note=combined.note)
        return SGDState(state.round + 1, x_next, norm(x_next - state.x), report)
