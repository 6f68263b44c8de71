"""Robust local SGD: workers take a few steps of their own before they report, as in FedAvg.

    worker i  y^0 = x^k,  y^{h+1} = y^h - eta g_i(y^h) for h = 0 .. H-1;  send Q((x^k - y^H) / (eta H))
    server    x^{k+1} = x^k - gamma ARAgg({v_i})

What travels is the model delta divided by eta H, the mean gradient along the worker's path. So it has the size of a
gradient whatever H and eta are, and gamma and a clipping radius mean what they mean for the other methods. gamma =
eta H with the rule ``mean`` is FedAvg: the new model is then the mean of the workers' models.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, Algorithm 1, with a robust rule in place of the mean.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.descent import Descent, local_gradient
from strategies.hyperparameters import Key, StepSize
from strategies.local_steps import LocalSteps
from strategies.method import Ask, Oracle, Packet, WorkerState
from strategies.server_step import ServerSteps


@dataclass(frozen=True, kw_only=True)
class LocalSGD(LocalSteps, ServerSteps, Descent):
    """Robust local SGD; with the rule "mean" FedAvg.

    Args:
        local_steps: H: local steps of a round.
        local_gamma: eta: step size of a local step, a number or "c/L". gamma = eta H with the rule "mean" is FedAvg.
    """

    kind: ClassVar[str] = "local-sgd"
    takes_root: ClassVar[bool] = True
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "local_steps", "local_gamma", "local_momentum", "local_schedule")

    local_steps: Annotated[int, Key(ge=1, le=10_000)]
    local_gamma: Annotated[float, StepSize()]

    @property
    def steps(self) -> int:
        return self.local_steps

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Take H local steps from x^k and send Q of their mean gradient."""
        eta = self.local_size(ask.round)
        v = local_gradient(oracle, ask.vectors["x"], self.batch, self.local_steps, eta, rng, self.local_momentum)
        return mine, self.compressor_for(ask, i).compress(v, rng)
