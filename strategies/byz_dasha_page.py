"""Byz-DASHA-PAGE: compressed, variance-reduced and Byzantine-robust; every round is compressed and nothing is clipped.

Source: Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, "Communication Compression for Byzantine Robust Learning: New
Efficient Algorithms and Improved Rates", AISTATS 2024 (arXiv 2310.09804), Algorithm Byz-DASHA-PAGE.

Worker i keeps h_i, its PAGE estimate of grad f_i, and g_i, what the server knows of it; the server keeps every g_i.
Indices: round 1 asks for grad f_i(x^0), which is h_i^0 = g_i^0; round k > 1 is the paper's t = k - 2: it asks about
x^{t+1} and ends with g^{t+1} and the step to x^{t+2}. Only the first gradients travel uncompressed: the coin of PAGE
decides what a worker computes, not what it sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from numpy.random import Generator

from strategies.cohorts import common_seed
from strategies.compressors import Identity
from strategies.estimates import START, Estimates, EstimatesState
from strategies.hyperparameters import Constants, Key, Written
from strategies.method import NOT_NEEDED, Ask, Oracle, Packet, RoundKind, Traits, Vector, WorkerState

FULL = "full"
DIFFERENCE = "difference"


def _full_gradients(written: Written, constants: Constants) -> float:
    """Return b/m."""
    return min(1.0, int(written["batch"]) / constants.m("p"))


def _momentum(written: Written, constants: Constants) -> float:
    """Return 1/(2 omega + 1), the momentum of the theory."""
    return 1.0 / (2.0 * constants.compressor.omega(constants.dim) + 1.0)


@dataclass(frozen=True, kw_only=True)
class ByzDashaPage(Estimates[EstimatesState]):
    """Byz-DASHA-PAGE (Rammal et al., AISTATS 2024).

    Args:
        batch: b: minibatch size of a gradient difference.
        p: Probability of a round of full gradients; default: b/m, with m the samples of a client.
        a: Momentum; default: 1/(2 omega + 1), with omega the variance of the compressor.
    """

    kind: ClassVar[str] = "byz-dasha-page"
    traits: ClassVar[Traits] = Traits(noise="vanishes", differences=True, full_gradients=True, keeps=True, rows=True)
    on_schedules: ClassVar[str] = NOT_NEEDED

    batch: Annotated[int, Key(ge=1)]
    p: Annotated[float, Key(gt=0, le=1, fill=_full_gradients)]
    a: Annotated[float, Key(gt=0, le=1, fill=_momentum)]

    def later(self, share: float, samples: int) -> Sequence[RoundKind]:
        """Return the rounds of either side of the coin."""
        q = self.compressor
        full = RoundKind(FULL, share * self.p, self.n, q, samples)
        return [full, RoundKind(DIFFERENCE, share * (1 - self.p), self.n, q, 2 * self.batch, down=2)]

    # --- server: c ~ Bernoulli(p), broadcast x^{t+1} -------------------------------------------------------------

    def next_ask(self, state: EstimatesState, rng: Generator) -> Ask:
        """Toss the coin: full gradients at x^{t+1}, or gradient differences from x^t to x^{t+1}."""
        coin = bool(rng.random() < self.p)
        seed = common_seed(self.compressor, rng)
        if coin or state.x_prev is None:
            return Ask(state.round, FULL, {"x": state.x}, seed=seed)
        return Ask(state.round, DIFFERENCE, {"x": state.x, "x_prev": state.x_prev}, seed=seed)

    # --- worker i: h_i^{t+1}, then m_i = Q(h_i^{t+1} - h_i^t - a (g_i^t - h_i^t)) --------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Update h_i and send m_i; in the first round send grad f_i(x^0).

        A worker that has lost h_i starts it afresh as grad f_i(x^{t+1}), as if it had been there in the round before:
        m_i = Q(a (h_i - g_i)). One that has kept it needs the server's g_i alone.
        """
        x = ask.vectors["x"]
        if ask.kind == START:
            h = oracle.full_gradient(x)
            return WorkerState(ask.round, {"h": h, "g": h}), Identity().compress(h, rng)
        g = self.own(mine, ask)
        kept = mine.version == ask.round - 1
        if kept and ask.kind == DIFFERENCE:
            new, old = oracle.minibatch_gradients([x, ask.vectors["x_prev"]], self.batch, rng)
            h_next: Vector = mine.vectors["h"] + (new - old)
        else:
            h_next = oracle.full_gradient(x)
        h = mine.vectors["h"] if kept else h_next
        g, m = self.send(i, ask, g, h_next - h - self.a * (g - h), rng)
        return WorkerState(ask.round, {"h": h_next, "g": g}), m
