"""A task whose workers begin to fail after so many gradients, as where memory runs out; for tests of runs that stall.

Options: ``calls``, how many gradients a worker computes; ``flips``, the same of flipped ones; ``until``, a file that
makes everybody well again.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from strategies.method import Evaluation, Vector
from tasks.contract import Setting

DIM = 6


class Worker:
    """Least squares on 50 samples."""

    dim = DIM

    def __init__(self, a: Vector, b: Vector, calls: Iterator[int], limit: int, healthy: Path | None) -> None:
        self.a, self.b, self.calls, self.limit, self.healthy = a, b, calls, limit, healthy

    def full_gradient(self, x: Vector) -> Vector:
        return self.minibatch_gradients([x], 0, np.random.default_rng(0))[0]

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        if next(self.calls) >= self.limit and not (self.healthy and self.healthy.exists()):
            raise RuntimeError("CUDA out of memory")
        return [self.a.T @ (self.a @ x - self.b) / len(self.b) for x in points]


class Problem:
    """The loaded task."""

    dim, samples, smoothness, optimum, dtype = DIM, 50, None, None, np.dtype("float64")

    def __init__(self, clients: int, calls: int, healthy: Path | None, flips: int) -> None:
        rng = np.random.default_rng(0)
        target = np.arange(1.0, DIM + 1)
        parts = [rng.normal(size=(50, DIM)) for _ in range(clients)]
        self.parts = [(a, a @ target) for a in parts]
        self.calls, self.healthy, self.flips = calls, healthy, flips
        self.flipped = count()

    def initial(self) -> Vector:
        return np.zeros(DIM)

    def oracle(self, worker: int, *, flipped: bool = False) -> Worker:
        a, b = self.parts[worker]
        if flipped:
            return Worker(a, -b, self.flipped, self.flips, self.healthy)
        return Worker(a, b, count(), self.calls, self.healthy)

    def evaluate(self, x: Vector) -> Evaluation:
        losses = [float(np.mean((a @ x - b) ** 2)) / 2 for a, b in self.parts]
        return Evaluation(loss=float(np.mean(losses)), accuracy=0.0)


class Failing:
    """The task."""

    def __init__(self, calls: int = 1_000_000, flips: int = 1_000_000, until: str = "") -> None:
        self.calls, self.flips, self.healthy = calls, flips, Path(until) if until else None

    def load(self, setting: Setting) -> Any:
        return Problem(setting.clients, self.calls, self.healthy, self.flips)
