"""Small things for tests by hand: vectors, a coin whose side is known, a loss whose gradient is x."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from strategies.aggregators import Rule
from strategies.method import Evaluation, Rows, Vector


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float64)


def accuracy(evaluation: Evaluation | None) -> float:
    """Return an accuracy that must be there."""
    assert evaluation is not None
    assert evaluation.accuracy is not None
    return evaluation.accuracy


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def root_of(rule: Rule, rows: Rows) -> Vector | None:
    """Return the first row as the server's own, for a rule that needs one."""
    return rows[0].copy() if rule.needs_root else None


class Coin:
    """A generator whose next draw is known."""

    def __init__(self, toss: float) -> None:
        self.toss = toss

    def random(self) -> float:
        return self.toss


HEADS: Any = Coin(0.2)  # below p = 0.25
TAILS: Any = Coin(0.25)  # not below p

Noise = Callable[[int, np.random.Generator], Any]
"""(b, rng) -> what a minibatch of b adds to the gradient, the same at all points."""


def none(batch: int, rng: np.random.Generator) -> float:
    return 0.0


def gaussian(batch: int, rng: np.random.Generator) -> Vector:
    return rng.normal(size=2)


def size(batch: int, rng: np.random.Generator) -> float:
    return float(batch)


class Quadratic:
    """f(x) = ||x||^2 / 2 in two dimensions; it counts what it is asked for."""

    dim = 2

    def __init__(self, noise: Noise = none) -> None:
        self.batches: list[int] = []
        self.full = 0
        self._noise = noise

    def full_gradient(self, x: Vector) -> Vector:
        self.full += 1
        return x.copy()

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        self.batches.append(batch)
        noise = np.asarray(self._noise(batch, rng)).astype(points[0].dtype)
        return [x + noise for x in points]
