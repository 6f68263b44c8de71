"""Robust SGD with client momentum: what one gradient hides in its noise, the sum of many gives away.

    worker i  m_i^k = beta m_i^{k-1} + (1 - beta) g_i^k,  m_i of its first reply = g_i;  send Q(m_i)
    server    x^{k+1} = x^k - gamma ARAgg({Q(m_i)})

Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, Algorithm 2. They
too start from the first gradient (their alpha_1 = 1), so that the first messages are not shorter than the others.

A worker that was not asked keeps its m_i. A reply that was lost on the way harms nothing either: it went into m_i all
the same. What harms is a lost m_i: the noise is back. So a reply names the round of the worker's last one, and the
server refuses one that knows less than was heard of this worker before. To a worker whose last reply did not count the
server sends its own last aggregate, and a worker without a momentum continues from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.descent import Descent, DescentState, gradient
from strategies.hyperparameters import Key
from strategies.method import FIXED_MOMENTUM, Ask, Oracle, Packet, Stateful, Traits, Vector, WorkerState
from strategies.server_step import ServerSteps

MOMENTUM = "momentum"


@dataclass(frozen=True, kw_only=True)
class RobustMomentumSGD(ServerSteps, Descent, Stateful):
    """Robust SGD with client momentum (Karimireddy, He, Jaggi, ICML 2021).

    Args:
        beta: Momentum: m_i = beta m_i + (1 - beta) gradient.
    """

    kind: ClassVar[str] = "robust-momentum-sgd"
    takes_root: ClassVar[bool] = True
    traits: ClassVar[Traits] = Traits(sampling="clipped", noise="averaged", keeps=True)
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "beta")
    word: ClassVar[str] = MOMENTUM
    on_schedules: ClassVar[str] = FIXED_MOMENTUM

    beta: Annotated[float, Key(ge=0, lt=1)] = 0.9

    def resync(self, state: DescentState, i: int) -> Mapping[str, Vector]:
        """Return the last aggregate for a worker whose last reply did not count; one with a momentum ignores it."""
        return {MOMENTUM: state.g} if i in state.missed and state.g is not None else {}

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Update m_i and send Q(m_i)."""
        m, version = mine.vectors.get(MOMENTUM), mine.version
        if m is None and MOMENTUM in ask.vectors:
            m, version = ask.vectors[MOMENTUM], ask.round - 1
        g = gradient(oracle, ask.vectors["x"], self.batch, rng)
        m = g if m is None else self.beta * m + (1 - self.beta) * g
        packet = self.compressor_for(ask, i).compress(m, rng)
        return WorkerState(ask.round, {MOMENTUM: m}), replace(packet, version=version)

    def accepts_version(self, state: DescentState, i: int, version: int) -> bool:
        """Return whether the reply knows of the worker's last one that counted."""
        return version >= state.counted.get(i, 0)
