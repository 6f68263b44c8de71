"""Server steps: what the server makes of the aggregate before it moves the model.

With R^k the robust aggregate, t the steps taken so far, this one included, and all products coordinate by coordinate:

    none      x^{k+1} = x^k - gamma_k R^k
    momentum  M = mu M + R^k,                                  x^{k+1} = x^k - gamma_k M
    adam      M = b1 M + (1 - b1) R^k,  V = b2 V + (1 - b2) (R^k)^2,
              x^{k+1} = x^k - gamma_k sqrt(1 - b2^t) / (1 - b1^t) M / (sqrt(V) + tau)

from M = V = 0. Only R^k enters M and V, never the vector of a single client.

Sources: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019 (server momentum, FedAvgM); Reddi et al., "Adaptive Federated Optimization", ICLR 2021 (FedAdam). This Adam has the
bias correction of Kingma and Ba (ICLR 2015, the form before their section 2.1) with t from 1, which Reddi et al. leave
out and Flower's FedAdam has with t from 2.

No theorem on Byzantine robustness covers a server step. Momentum does not reduce how much honest vectors differ, as
that of workers does, and a bad aggregate lasts for 1/(1 - mu) rounds. Adam rescales each coordinate of an aggregate
whose error is bounded in norm: where honest gradients are small, the error grows by up to 1/tau.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from strategies.hyperparameters import Entry, Key
from strategies.method import Kept, Method, Vector


@dataclass(frozen=True, kw_only=True)
class ServerMomentum:
    """Momentum of the aggregates (FedAvgM): M = mu M + R, and x = x - gamma M.

    Args:
        mu: what the last M is multiplied by, from 0 and below 1.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["momentum"] = "momentum"
    mu: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1:
            raise ValueError(f"mu = {self.mu}: must be from 0 and below 1")

    def along(self, r: Vector, kept: Kept) -> tuple[Vector, Kept]:
        """Return what to step along, shape (d,), and what to keep: M."""
        m = self.mu * kept[0] + r if kept else r
        return m, (m,)

    def sentence(self, gamma: float) -> str:
        """Return what it does, in words; ``gamma`` is the largest step size."""
        effective = f"gamma / (1 - mu) = {gamma / (1 - self.mu):.6g}"
        lasts = f"a bad aggregate lasts for about {1 / (1 - self.mu):.3g} rounds, and honest vectors differ as before"
        return f"momentum, mu = {self.mu:g}: effective step size {effective}; {lasts}"


@dataclass(frozen=True, kw_only=True)
class ServerAdam:
    """Adam on the aggregates (FedAdam), with bias correction: x = x - gamma M / (sqrt(V) + tau).

    Args:
        b1: what the last M is multiplied by, from 0 and below 1.
        b2: what the last V is multiplied by, from 0 and below 1.
        tau: added to sqrt(V), above 0; the smaller, the more coordinates with small gradients are enlarged.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Literal["adam"] = "adam"
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from 0 and below 1")
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau = {self.tau}: must be above 0 and finite")

    def along(self, r: Vector, kept: Kept) -> tuple[Vector, Kept]:
        """Return what to step along, shape (d,), and what to keep: t, M and V."""
        t, m, v = kept or (0, np.zeros_like(r), np.zeros_like(r))
        t += 1
        m = self.b1 * m + (1 - self.b1) * r
        v = self.b2 * v + (1 - self.b2) * (r * r)
        corrected = math.sqrt(1 - self.b2**t) / (1 - self.b1**t)
        return corrected * (m / (np.sqrt(v) + self.tau)), (t, m, v)

    def sentence(self, gamma: float) -> str:
        """Return what it does, in words; ``gamma`` is the largest step size."""
        steps = f"a coordinate moves by about gamma = {gamma:.6g} a round, whatever the size of its gradients"
        risk = f"where they are small, an error of the rule grows by up to 1/tau = {1 / self.tau:.6g}"
        return f"adam with bias correction, b1 = {self.b1:g}, b2 = {self.b2:g}, tau = {self.tau:g}: {steps}; {risk}"


ServerStep = ServerMomentum | ServerAdam
SERVER_STEPS = (ServerMomentum, ServerAdam)


@dataclass(frozen=True, kw_only=True)
class _ServerStep(Key):
    """A server step; None for the plain one."""

    def entries(self, name: str, type_: Any, default: Any) -> dict[str, Entry]:
        return {name: Entry(type=None, default=None, kinds=SERVER_STEPS)}


@dataclass(frozen=True, kw_only=True)
class ServerSteps(Method):
    """A method that works with any server step, as nothing else of it depends on how the model moves.

    Args:
        server: What the server makes of the aggregate before it steps: { kind = "momentum" } or { kind = "adam" };
            default: nothing, x = x - gamma times the aggregate. Outside the theorems.
    """

    server: Annotated[ServerStep | None, _ServerStep()] = None

    @property
    def steps_along_aggregate(self) -> bool:
        return self.server is None and super().steps_along_aggregate

    def along(self, g: Vector, kept: Kept) -> tuple[Vector, Kept]:
        """Return what to step along, and what the server step keeps."""
        return super().along(g, kept) if self.server is None else self.server.along(g, kept)

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Say what the server step does."""
        yield from super().meanings(rounds)
        if self.server is not None:
            yield "server", self.server.sentence(self.peak)

    def warnings(self, smoothness: float | None) -> Iterator[str]:
        """Mark a server step as outside the theorems."""
        yield from super().warnings(smoothness)
        if self.server is not None:
            why = "no theorem on Byzantine robustness covers a server step"
            yield f'strategy.server = "{self.server.kind}": {why}; compare with a run without it'
