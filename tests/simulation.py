"""A method with its server and workers in one loop, and faults on demand: no Flower, no codec, no processes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from strategies.cohorts import sample
from strategies.method import STATELESS, Ask, Method, Oracle, Packet, StateLostError, Vector, WorkerState
from strategies.randomness import Role, stream

Cheat = Callable[[int, Ask, Packet], Packet]
"""(worker, ask, honest packet) -> what a Byzantine worker sends instead."""


class Logistic:
    """f(x) = mean log(1 + exp(-y a.x)) + 0.05 ||x||^2 over 30 random samples of 5 numbers; every worker has its own."""

    def __init__(self, worker: int, dtype: type[np.floating] = np.float64) -> None:
        rng = np.random.default_rng([7, worker])
        self._a = rng.normal(size=(30, 5)).astype(dtype)
        self._y = np.sign(self._a @ np.array([1, -2, 0.5, 0, 1]) + rng.normal(size=30)).astype(dtype)

    @property
    def dim(self) -> int:
        return 5

    def full_gradient(self, x: Vector) -> Vector:
        return self._gradient(x, slice(None))

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        rows = rng.choice(30, batch, replace=False)
        return [self._gradient(x, rows) for x in points]

    def _gradient(self, x: Vector, rows: Any) -> Vector:
        a, y = self._a[rows], self._y[rows]
        with np.errstate(invalid="ignore"):  # BLAS may raise the flag for what lies behind the end of a short row
            weights = -y / (1 + np.exp(y * (a @ x)))
            gradient: Vector = a.T @ weights / len(y) + x.dtype.type(0.1) * x
        return gradient


class Simulation:
    """One run.

    Args:
        method: both halves.
        oracles: the workers' losses.
        x0: where to start.
        seed: of the run.
        byzantine: the workers that cheat.
        cheat: what they do.
    """

    def __init__(
        self,
        method: Method,
        oracles: Sequence[Oracle],
        x0: Vector,
        *,
        seed: int = 0,
        byzantine: Collection[int] = (),
        cheat: Cheat | None = None,
    ) -> None:
        self.method, self.oracles, self.seed = method, oracles, seed
        self.byzantine, self.cheat = byzantine, cheat
        self.state: Any = method.start(x0)
        self.workers: list[WorkerState] = [STATELESS] * len(oracles)
        self.resynced: list[int] = []
        """Workers that the last round sent something of their own."""
        self.stale: list[int] = []
        """Workers that had lost their state in the last round and said so."""
        self.counted: list[int] = []
        """Workers whose reply counted in the last round."""

    def round(self, *, away: Collection[int] = (), lost: Collection[int] = (), restarted: Collection[int] = ()) -> None:
        """Run a round in which some workers are not connected, some replies are lost, some workers begin anew."""
        k, n = self.state.round, len(self.oracles)
        for i in restarted:
            self.workers[i] = STATELESS
        ask = self.method.ask(self.state, stream(self.seed, Role.COIN, round_=k))
        cohort = sample(n, ask.sample, [i for i in range(n) if i not in away], stream(self.seed, Role.COHORT, round_=k))
        ask = replace(ask, cohort=tuple(cohort))
        self.resynced, self.stale, replies = [], [], {}
        for i in cohort:
            extra = self.method.resync(self.state, i)
            told = replace(ask, vectors={**ask.vectors, **extra})
            if extra:
                self.resynced.append(i)
            try:
                rng = stream(self.seed, Role.WORKER, i, k)
                self.workers[i], packet = self.method.reply(i, self.workers[i], told, self.oracles[i], rng)
            except StateLostError:
                self.stale.append(i)
                continue
            if self.cheat is not None and i in self.byzantine:
                packet = self.cheat(i, ask, packet)
            form, x = self.method.compressor_for(ask, i), self.state.x
            if (
                i in lost
                or form.validate(packet, x.size, x.dtype)
                or not self.method.accepts_version(self.state, i, packet.version)
            ):
                continue
            replies[i] = form.decompress(packet, x.dtype)
        self.counted = list(replies)
        with np.errstate(over="ignore", invalid="ignore"):
            self.state = self.method.update(self.state, ask, replies, stream(self.seed, Role.AGGREGATE, round_=k))

    def run(self, rounds: int) -> Vector:
        """Run rounds without faults; return the model."""
        for _ in range(rounds):
            self.round()
        x: Vector = self.state.x
        return x


def optimum(oracles: Sequence[Oracle], step: float = 1.0, rounds: int = 600) -> Vector:
    """Return the minimiser of the mean of the losses, by gradient descent."""
    x: Vector = np.zeros(oracles[0].dim)
    for _ in range(rounds):
        x = x - step * np.mean([oracle.full_gradient(x) for oracle in oracles], axis=0)
    return x
