"""Robust SGD: workers send gradients, the server aggregates them and steps.

    x^{k+1} = x^k - gamma ARAgg({Q(g_i)})

The plainest baseline. With the rule ``mean`` it is what most federated systems do (FedSGD), and what one attacker
destroys; with a robust rule it is the classical Byzantine-robust SGD.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017; Yin, Chen, Ramchandran, Bartlett, ICML 2018.
"""

from dataclasses import dataclass
from typing import ClassVar

from numpy.random import Generator

from strategies.descent import Descent, gradient
from strategies.method import Ask, Oracle, Packet, WorkerState
from strategies.server_step import ServerSteps


@dataclass(frozen=True, kw_only=True)
class RobustSGD(ServerSteps, Descent):
    """Robust SGD; with the rule "mean" plain averaging (FedSGD)."""

    kind: ClassVar[str] = "robust-sgd"
    takes_root: ClassVar[bool] = True

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Send Q(g_i), the full or a minibatch gradient at x^k."""
        g = gradient(oracle, ask.vectors["x"], self.batch, rng)
        return mine, self.compressor_for(ask, i).compress(g, rng)
