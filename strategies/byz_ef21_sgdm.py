"""Byz-EF21-SGDM: Byzantine-robust error feedback with momentum, for biased compressors (top-k) and minibatches.

    start     v_i = g_i = minibatch gradient at x^0, sent uncompressed
    worker i  v_i = (1 - eta) v_i + eta (minibatch gradient of f_i at x^{k+1});  c_i = C(v_i - g_i);  send c_i
    both      g_i = g_i + c_i
    server    g = ARAgg({g_i : i = 1..n}),  x^{k+1} = x^k - gamma g

Source: Liu, Li, Yi, Johansson, "Byzantine-Robust and Communication-Efficient Distributed Learning via Compressed
Momentum Filtering", IEEE TNNLS 2026 (arXiv 2409.08640). With eta = 1 and full gradients it is Byz-EF21. eta is the
weight of the new gradient; their code calls 1 - eta the momentum.

Indices as in ``byz_ef21``: round 1 is the start, round k > 1 asks about x^{k-1}.

A worker that missed a round, or whose reply did not count, continues its own v_i from the server's g_i: v_i moves in
the rounds in which the worker computes. A worker that has lost v_i restarts it from the current minibatch gradient.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.byz_ef21 import CHANGE, ErrorFeedback
from strategies.cohorts import common_seed
from strategies.compressors import Identity
from strategies.descent import gradient
from strategies.estimates import START, EstimatesState
from strategies.hyperparameters import Key
from strategies.method import FIXED_MOMENTUM, Ask, Oracle, Packet, RoundKind, Traits, Vector, WorkerState
from strategies.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class MomentumErrorFeedback(ErrorFeedback[EstimatesState]):
    """Error feedback towards a momentum that the worker keeps; a method defines the momentum.

    Args:
        batch: b: minibatch size; 0 for the full local gradient.
    """

    momentum: ClassVar[str] = "v"
    """The name of the vector that g_i follows."""
    on_schedules: ClassVar[str] = FIXED_MOMENTUM

    batch: Annotated[int, Key(ge=0)] = 0

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the first round, of minibatch gradients too, and the later ones."""
        return super().plan(rounds, self.batch or samples)

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Say up to which L the step size is stable."""
        bound = self.stability()
        limit = f"gamma L < {bound:.4g}, here L < {bound / self.peak:.4g}"
        yield "stability", f"this eta needs {limit}; compression lowers the bound"

    def warnings(self, smoothness: float | None) -> Iterator[str]:
        """Warn of a step size with which the momentum oscillates."""
        at, bound = self.peak * (smoothness or 0.0), self.stability()
        if at > bound:
            why = f"unstable beyond {bound:.4g}, and earlier with compression; reduce gamma, or choose another eta"
            where = " at its start" if isinstance(self.gamma, Schedule) else ""
            yield f"strategy.gamma: gamma L = {at:.4g}{where}, and {self.kind} with this eta is {why}"

    @abstractmethod
    def stability(self) -> float:
        """Return the least gamma L for which the method diverges on a quadratic, without compression or attack."""

    @abstractmethod
    def first(self, x: Vector, g: Vector) -> Mapping[str, Vector]:
        """Return what a worker keeps beside g_i once it has computed its first gradient g, at x."""

    @abstractmethod
    def advance(self, mine: Mapping[str, Vector], x: Vector, oracle: Oracle, rng: Generator) -> Mapping[str, Vector]:
        """Return what a worker keeps beside g_i after it has computed at x, given what it kept before."""

    # --- server: broadcast x^{k+1} -----------------------------------------------------------------------------------

    def next_ask(self, state: EstimatesState, rng: Generator) -> Ask:
        """Broadcast x^{k+1}."""
        return Ask(state.round, CHANGE, {"x": state.x}, seed=common_seed(self.compressor, rng))

    # --- worker i: the momentum, then c_i = C(momentum - g_i) --------------------------------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Update the momentum and send c_i; in the first round send the minibatch gradient at x^0."""
        x = ask.vectors["x"]
        if ask.kind == START:
            g = gradient(oracle, x, self.batch, rng)
            return WorkerState(ask.round, {**self.first(x, g), "g": g}), Identity().compress(g, rng)
        held = self.own(mine, ask)
        # A state of a later round belongs to rounds that the server has undone.
        if 0 < mine.version < ask.round:
            kept = self.advance(mine.vectors, x, oracle, rng)
        else:
            kept = self.first(x, gradient(oracle, x, self.batch, rng))
        g, c = self.send(i, ask, held, kept[self.momentum] - held, rng)
        return WorkerState(ask.round, {**kept, "g": g}), c


@dataclass(frozen=True, kw_only=True)
class ByzEF21SGDM(MomentumErrorFeedback):
    """Byz-EF21-SGDM (Liu et al., IEEE TNNLS 2026): c_i = C(v_i - g_i) with the momentum v_i.

    Args:
        eta: weight of the new gradient in the momentum: v_i = (1 - eta) v_i + eta gradient.
    """

    kind: ClassVar[str] = "byz-ef21-sgdm"
    traits: ClassVar[Traits] = Traits(noise="averaged", differences=True, keeps=True, rows=True)
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "eta")

    eta: Annotated[float, Key(gt=0, le=1)] = 0.1

    def stability(self) -> float:
        """Return 2 (2 - eta) / eta."""
        return single_momentum_bound(self.eta)

    def first(self, x: Vector, g: Vector) -> Mapping[str, Vector]:
        """Return v_i."""
        return {"v": g}

    def advance(self, mine: Mapping[str, Vector], x: Vector, oracle: Oracle, rng: Generator) -> Mapping[str, Vector]:
        """Return v_i = (1 - eta) v_i + eta grad_B f_i(x)."""
        return {"v": (1 - self.eta) * mine["v"] + self.eta * gradient(oracle, x, self.batch, rng)}


def single_momentum_bound(eta: float) -> float:
    """Return the least gamma L for which descent along one momentum of weight eta diverges on a quadratic."""
    return 2 * (2 - eta) / eta
