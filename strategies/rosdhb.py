"""RoSDHB and RoSDHB-Local: the server keeps a heavy-ball momentum of every client and aggregates the momenta.

Source: Gupta, Honsell, Xu, Gupta, Neglia, "Reconciling Communication Compression and Byzantine-Robustness in
Distributed Learning", AISTATS 2026 (arXiv 2508.17129), Algorithm RoSDHB and its variant with local sparsification.

Indices: round t asks for gradients at theta_{t-1}, here x, and ends with R_t and the step to theta_t. Clients are
stateless; the server holds n d floats. A client that is not sampled, or does not answer, keeps its momentum, and all n
of them are aggregated in every round; under the clipping heuristic (``descent``) only those of the sampled.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.random import Generator

from strategies.compressors import Identity
from strategies.descent import Descent, gradient, local_gradient
from strategies.hyperparameters import Key, Written
from strategies.local_steps import LocalSteps
from strategies.method import (
    FIXED_MOMENTUM,
    Ask,
    Compressor,
    Oracle,
    Packet,
    RoundKind,
    Stateful,
    Traits,
    Vector,
    WorkerState,
)


@dataclass(frozen=True, kw_only=True)
class RoSDHB(Descent, Stateful):
    """RoSDHB (Gupta et al., AISTATS 2026): one mask a round, drawn by the server.

    Args:
        beta: Momentum: m_i = beta m_i + (1 - beta) gradient, kept by the server.
    """

    kind: ClassVar[str] = "rosdhb"
    traits: ClassVar[Traits] = Traits(sampling="clipped", noise="averaged", rows=True)
    holds: ClassVar[bool] = True
    on_schedules: ClassVar[str] = FIXED_MOMENTUM
    no_server_step: ClassVar[str] = "the server keeps a momentum of every client already"
    masks: ClassVar[tuple[str, str]] = ("masked", "draws one mask for all workers of a round")
    """The compressor that it needs, and why."""

    beta: Annotated[float, Key(ge=0, lt=1)] = 0.9

    @classmethod
    def conflicts(cls, written: Written, compressor: Compressor) -> Iterator[str]:
        """Refuse a compressor that masks otherwise, or not at all; k = d is fine."""
        needed, why = cls.masks
        if compressor.kind not in (needed, Identity().kind):
            fix = f'choose "{needed}" (or "identity", to send everything)'
            yield f'compressor.kind = "{compressor.kind}": {cls.kind} {why}; {fix}'

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the one kind of round: without clipping all momenta count, whoever is sampled."""
        [round_] = super().plan(rounds, samples)
        whole = (True, "the momenta of all clients are aggregated, sampled or not")
        return [replace(round_, survives=whole) if self.alpha is None else round_]

    # The server draws the mask: `Descent.ask` sends its seed, as the compressor is a shared one.

    # --- worker i ------------------------------------------------------------------------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Send the masked values of g_i."""
        return mine, self.compressor_for(ask, i).compress(self.local(oracle, ask.vectors["x"], ask.round, rng), rng)

    def local(self, oracle: Oracle, x: Vector, round_: int, rng: Generator) -> Vector:
        """Return g_i, the full or a minibatch gradient."""
        return gradient(oracle, x, self.batch, rng)

    # --- server: gt_i = (d/k) g_i on the mask, which is what the compressor reads; m_i; R = F(m_1 .. m_n) --------

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """m_i = beta m_i + (1 - beta) gt_i, from m_i = 0. Rows of the aggregator are momenta."""
        fresh = (1.0 - self.beta) * q
        return fresh if held is None else self.beta * held + fresh

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return (target - beta m_i) / (1 - beta)."""
        return (target if held is None else target - self.beta * held) / (1.0 - self.beta)

    def aggregated(self, held: Mapping[int, Vector], came: Mapping[int, Vector]) -> Mapping[int, Vector]:
        """Return the momenta of all n clients; those never heard have 0. Nothing before anybody was heard."""
        if not held:
            return {}
        zero = np.zeros_like(next(iter(held.values())))
        return {i: held.get(i, zero) for i in range(self.n)}


@dataclass(frozen=True, kw_only=True)
class RoSDHBLocal(LocalSteps, RoSDHB):
    """RoSDHB-Local: every worker draws its own masks, and may take local steps.

    Args:
        local_steps: H: local steps of a round; with more than one, workers send model deltas in gradient units.
        local_gamma: eta: step size of a local step.
    """

    kind: ClassVar[str] = "rosdhb-local"
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "local_steps", "local_gamma", "local_momentum", "local_schedule")
    masks: ClassVar[tuple[str, str]] = ("rand-k", "lets every worker draw its own masks")

    local_steps: Annotated[int, Key(ge=1, le=10_000)] = 1
    local_gamma: Annotated[float | None, Key(gt=0, allow_inf_nan=False)] = None

    @classmethod
    def conflicts(cls, written: Written, compressor: Compressor) -> Iterator[str]:
        """Ask for the step size too, where there are local steps."""
        if written["local_steps"] > 1 and written["local_gamma"] is None:
            yield f"strategy.local_gamma: missing; local_steps = {written['local_steps']} need a step size"
        yield from super().conflicts(written, compressor)

    @property
    def steps(self) -> int:
        return self.local_steps

    def local(self, oracle: Oracle, x: Vector, round_: int, rng: Generator) -> Vector:
        """Return g_i, the mean gradient along the local steps."""
        if self.local_gamma is None:  # one step needs none
            return super().local(oracle, x, round_, rng)
        eta = self.local_size(round_)
        return local_gradient(oracle, x, self.batch, self.local_steps, eta, rng, self.local_momentum)
