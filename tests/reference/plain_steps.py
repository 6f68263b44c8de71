"""Schedules and server steps as plain formulas: the references for what ends a round."""

import math
from typing import Any

import numpy as np

from strategies.method import Vector


def scheduled(table: Any, start: float, k: int) -> Any:
    """The step size of round k, counted from 0.

    Args:
        table: the schedule as the config holds it; None for a constant step size.
        start: where it starts to fall.
        k: the round.
    """
    if table is None:
        return start
    if k < table.warmup:
        return start * ((k + 1) / table.warmup)
    j = k - table.warmup
    if table.kind == "sqrt":
        return start * math.sqrt(table.k0 / (j + table.k0))
    if table.kind == "step":
        return start * table.factor ** len([mark for mark in table.milestones if mark <= j])
    along = j / (table.rounds - table.warmup)
    shape = (1.0 + math.cos(math.pi * along)) / 2.0 if table.kind == "cosine" else 1.0 - along
    return table.end + (start - table.end) * shape


def gamma_of(strategy: Any, k: int) -> Any:
    """The server's step size in round k, counted from 1."""
    gamma = strategy.gamma
    return gamma if isinstance(gamma, float) else scheduled(gamma, gamma.start, k - 1)


class ServerStep:
    """What the server steps along, given the aggregates in order."""

    def __init__(self, strategy: Any) -> None:
        self.server = getattr(strategy, "server", None)
        self.t = 0
        self.m: Vector
        self.v: Vector

    def __call__(self, r: Vector) -> Vector:
        if self.server is None:
            return r
        self.t += 1
        if self.t == 1:
            self.m, self.v = np.zeros_like(r), np.zeros_like(r)
        if self.server.kind == "momentum":
            self.m = self.server.mu * self.m + r
            return self.m
        b1, b2 = self.server.b1, self.server.b2
        self.m = b1 * self.m + (1 - b1) * r
        self.v = b2 * self.v + (1 - b2) * (r * r)
        correction = math.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        along: Vector = correction * (self.m / (np.sqrt(self.v) + self.server.tau))
        return along
