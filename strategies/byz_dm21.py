"""Byz-DM21 and Byz-VR-DM21: Byzantine-robust error feedback with two momenta, the first one variance-reduced or not.

    start     v_i = u_i = g_i = minibatch gradient at x^0, sent uncompressed
    worker i  Byz-DM21     v_i = (1 - eta) v_i + eta grad_B f_i(x^{k+1})
              Byz-VR-DM21  v_i = grad_B f_i(x^{k+1}) + (1 - eta) (v_i - grad_B f_i(x^k)), the same minibatch B
              both         u_i = (1 - eta) u_i + eta v_i;  c_i = C(u_i - g_i);  send c_i
    both      g_i = g_i + c_i
    server    g = ARAgg({g_i : i = 1..n}),  x^{k+1} = x^k - gamma g

Source: Li, Liu, Yi, "Accelerating Byzantine-Robust Distributed Learning with Compressed Communication via Double
Momentum and Variance Reduction", AISTATS 2026 (arXiv 2603.15144), Byz-DM21 and Byz-VR-DM21. Their code calls 1 - eta
the momentum.

The variance-reduced worker keeps the model at which it computed v_i, and compares with that model: after missed rounds
it is not the one of the round before. With full gradients its v_i is the gradient, so that it sends what Byz-EF21-SGDM
sends. What a worker does that missed a round or lost its state is in ``byz_ef21_sgdm``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.byz_ef21 import CHANGE
from strategies.byz_ef21_sgdm import MomentumErrorFeedback, single_momentum_bound
from strategies.descent import gradient
from strategies.hyperparameters import Key
from strategies.method import Oracle, RoundKind, Traits, Vector, full_gradients


@dataclass(frozen=True, kw_only=True)
class ByzDM21(MomentumErrorFeedback):
    """Byz-DM21 and, with ``vr``, Byz-VR-DM21 (Li, Liu, Yi, AISTATS 2026): c_i = C(u_i - g_i), u_i follows v_i.

    Args:
        eta: weight of what is new in both momenta. Without ``vr`` the step must be small, gamma L below about 2 eta.
        vr: variance reduction: correct v_i by the gradient of the same minibatch at the worker's last model
            (Byz-VR-DM21); two gradients a round.
    """

    kind: ClassVar[str] = "byz-dm21"
    traits: ClassVar[Traits] = Traits(noise="averaged", differences=True, keeps=True, rows=True)
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "eta", "vr")
    momentum: ClassVar[str] = "u"

    eta: Annotated[float, Key(gt=0, le=1)] = 0.1
    vr: bool = False

    def later(self, share: float, samples: int) -> Sequence[RoundKind]:
        """Return the one kind; variance reduction computes at two models."""
        return [RoundKind(CHANGE, share, self.n, self.compressor, (1 + self.vr) * samples)]

    def stability(self) -> float:
        """Return min{(1 - eta)^-2 - 1, 2 (2 - eta)^2 / eta^2}; with ``vr`` 2 (2 - eta) / eta."""
        if self.vr:
            return single_momentum_bound(self.eta)
        keep = (1 - self.eta) ** 2
        return min((1 - keep) / keep if keep else float("inf"), 2 * (2 - self.eta) ** 2 / self.eta**2)

    def warnings(self, smoothness: float | None) -> Iterator[str]:
        """Warn, too, where variance reduction has nothing to reduce."""
        yield from super().warnings(smoothness)
        if self.vr and not self.batch:
            same = 'strategy.kind = "byz-ef21-sgdm" does the same with half the work'
            yield f"strategy.batch = 0: full gradients have no variance to reduce; {same}"

    def first(self, x: Vector, g: Vector) -> Mapping[str, Vector]:
        """Return v_i and u_i, and with ``vr`` x."""
        return self._kept(x, g, g)

    def advance(self, mine: Mapping[str, Vector], x: Vector, oracle: Oracle, rng: Generator) -> Mapping[str, Vector]:
        """Return v_i and u_i, and with ``vr`` x, after one minibatch."""
        if self.vr:
            new, old = _gradients(oracle, [x, mine["x"]], self.batch, rng)
            v: Vector = new + (1 - self.eta) * (mine["v"] - old)
        else:
            v = (1 - self.eta) * mine["v"] + self.eta * gradient(oracle, x, self.batch, rng)
        return self._kept(x, v, (1 - self.eta) * mine["u"] + self.eta * v)

    def _kept(self, x: Vector, v: Vector, u: Vector) -> Mapping[str, Vector]:
        return {"v": v, "u": u, "x": x} if self.vr else {"v": v, "u": u}


def _gradients(oracle: Oracle, points: Sequence[Vector], batch: int, rng: Generator) -> list[Vector]:
    """Return the gradient at each point over ONE minibatch, or over all local data where ``batch`` is 0."""
    return oracle.minibatch_gradients(points, batch, rng) if batch else full_gradients(oracle, points)
