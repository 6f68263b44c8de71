"""Byz-NSGDM: a step of a given length along the robust aggregate of worker momenta.

    worker i  m_i^k = beta m_i^{k-1} + (1 - beta) g_i^k,  from m_i = 0;  send Q(m_i)
    server    g^k = ARAgg(NNM({m_i})),  x^{k+1} = x^k - gamma_k g^k / ||g^k||,  gamma_k = gamma / sqrt(k + 1), k from 0

With g^k = 0 the model stays. NNM is the first pre-aggregator of the rule, ``pre = ["nnm"]``.

Source: Bolatov, Horvath, Takac, Gorbunov, "Byzantine-Robust Optimization under (L0, L1)-Smoothness", CPAL 2026
(arXiv 2603.12512), as the released code runs it: momentum at the workers, one norm over all parameters, and
gamma_k = gamma / sqrt(k + 1). There the momentum is beta m + gradient: from 0 a multiple of this one, so that any rule
that commutes with scaling gives the same steps.

A step has the length gamma_k whatever the rows are: no attack makes one longer or shorter, and none needs to know L.
Three things follow. A far start is reached only if 2 gamma sqrt(K) exceeds its distance from the optimum. Near the
optimum the direction is that of noise, or the attackers'; only gamma_k -> 0 ends that. And a cohort with a Byzantine
majority would steer a whole step: all clients take part.

A lost momentum is noticed, and replaced by the last aggregate, as in ``robust_momentum_sgd``. A round in which so few
replies came that the rule does not tolerate f among them makes no step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from numpy.random import Generator

from strategies.aggregators.preaggregators import NearestNeighbourMixing
from strategies.cohorts import common_seed, stack
from strategies.descent import gradient
from strategies.hyperparameters import Key, Written
from strategies.method import (
    Aggregator,
    Ask,
    Compressor,
    Oracle,
    Packet,
    Past,
    Report,
    RoundKind,
    Stateful,
    Traits,
    Vector,
    WorkerState,
    reported,
)
from strategies.schedules import Schedule, ScheduledStep
from strategies.vectors import norm

MOMENTUM = "momentum"


@dataclass(frozen=True, eq=False)
class ByzNSGDMState:
    """The server's state between rounds.

    Args:
        round: the round that comes next, from 1.
        x: the model of that round, x^k.
        g: the last aggregate; None before the first.
        step_norm: length of the last step; 0 where x stayed.
        counted: the round of the last reply that counted, by worker.
        missed: workers whose latest reply did not count.
        report: what the last update did.
        root: see ``Method.takes_root``.
    """

    round: int
    x: Vector
    g: Vector | None = None
    step_norm: float = 0.0
    counted: Mapping[int, int] = field(default_factory=dict)
    missed: frozenset[int] = frozenset()
    report: Report = field(default_factory=Report)
    root: tuple[tuple[str, Vector], ...] = ()


@dataclass(frozen=True, kw_only=True)
class _StepLength(ScheduledStep):
    """A positive number, or a falling schedule of these: the length of a step, which L says nothing about."""

    def check(self, name: str, written: Written) -> None:
        given = written[name]
        for number in given.numbers if isinstance(given, Schedule) else (given,):
            if isinstance(number, str):
                why = "this method takes steps of a given length, whatever L is; give a number"
                raise ValueError(f'{name} = "{number}": {why}')
        super().check(name, written)
        if isinstance(given, Schedule) and not given.falls:
            raise ValueError(f"{name}: steps of a given length must get shorter; set {name}.end below {name}.start")


@dataclass(frozen=True, kw_only=True)
class ByzNSGDM(Stateful):
    """Byz-NSGDM (Bolatov, Horvath, Takac, Gorbunov): normalised steps along the robust aggregate of worker momenta.

    Args:
        gamma: Length of the first step; step k + 1 has the length gamma / sqrt(k + 1). Or a schedule of the lengths
            that falls, { kind = "cosine", start = 0.1, ... }.
        beta: Momentum: m_i = beta m_i + (1 - beta) gradient, from 0.
        batch: b: minibatch size; 0 for the full local gradient.
    """

    kind: ClassVar[str] = "byz-nsgdm"
    takes_root: ClassVar[bool] = True
    traits: ClassVar[Traits] = Traits(noise="averaged", keeps=True)
    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "beta")
    no_server_step: ClassVar[str] = "it normalises the aggregate, so that its length says nothing"
    on_schedules: ClassVar[str] = (
        "theory needs steps that get shorter, and has gamma / sqrt(k + 1), which a number gives"
    )

    gamma: Annotated[float | Schedule, _StepLength()]
    beta: Annotated[float, Key(ge=0, lt=1)] = 0.9
    batch: Annotated[int, Key(ge=0)] = 0

    @property
    def steps_along_aggregate(self) -> bool:
        return False

    def gamma_at(self, round_: int) -> float:
        """Return gamma / sqrt(k + 1), k + 1 the round, or what the schedule gives."""
        return super().gamma_at(round_) if isinstance(self.gamma, Schedule) else self.gamma / math.sqrt(round_)

    # --- the config -----------------------------------------------------------------------------------------------

    @classmethod
    def remarks(cls, n: int, f: int, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Warn where NNM is missing, of a compressor, and where f silent clients can stop the run."""
        steps: Sequence[Any] = getattr(aggregator, "pre", ())
        nnm = NearestNeighbourMixing().kind
        if f and all(step.kind != nnm for step in steps):
            yield f'{cls.kind} mixes nearest neighbours before the rule; set aggregator.pre = ["{nnm}"]'
        if compressor.kind != "identity":
            why = f"{cls.kind} takes it as it is unbiased, but no theory covers it"
            yield f'compressor.kind = "{compressor.kind}": {why}'
        needed = _least(aggregator, n, f)
        if needed > n - f:
            yield f"a step needs {needed} usable replies of {n}: {f} silent clients can stop the run"

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Say how far the steps reach."""
        lengths = [self.gamma_at(round_) for round_ in range(1, rounds + 1)]
        span = f"from length {max(lengths):.4g} down to {lengths[-1]:.4g}, together {sum(lengths):.4g}"
        yield "steps", f"normalised: {span} in {rounds} rounds"
        yield "", "an optimum further from the start than that is not reached, whatever the attack"

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the one kind of round."""
        return [RoundKind(MOMENTUM, 1.0, self.n, self.compressor, self.batch or samples)]

    # --- server: broadcast x^k --------------------------------------------------------------------------------------

    def start(self, x0: Vector) -> ByzNSGDMState:
        return ByzNSGDMState(round=1, x=x0)

    def ask(self, state: ByzNSGDMState, rng: Generator) -> Ask:
        """Ask all n clients at x^k."""
        return Ask(state.round, MOMENTUM, {"x": state.x}, self.n, common_seed(self.compressor, rng))

    def resync(self, state: ByzNSGDMState, i: int) -> Mapping[str, Vector]:
        """Return the last aggregate for a worker whose last reply did not count; one with a momentum ignores it."""
        return {MOMENTUM: state.g} if i in state.missed and state.g is not None else {}

    def accepts_version(self, state: ByzNSGDMState, i: int, version: int) -> bool:
        """Return whether the reply knows of the worker's last one that counted."""
        return version >= state.counted.get(i, 0)

    # --- worker i ---------------------------------------------------------------------------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Update m_i and send Q(m_i)."""
        m, version = mine.vectors.get(MOMENTUM), mine.version
        if m is None and MOMENTUM in ask.vectors:
            m, version = ask.vectors[MOMENTUM], ask.round - 1
        fresh = (1 - self.beta) * gradient(oracle, ask.vectors["x"], self.batch, rng)
        m = fresh if m is None else self.beta * m + fresh
        packet = self.compressor_for(ask, i).compress(m, rng)
        return WorkerState(ask.round, {MOMENTUM: m}), replace(packet, version=version)

    # --- server: g^k, x^{k+1} -----------------------------------------------------------------------------------------

    def quorum(self, state: ByzNSGDMState, ask: Ask) -> int:
        """Return the least number of rows among which the rule tolerates f."""
        return _least(self.aggregator, self.n, self.f)

    def update(self, state: ByzNSGDMState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> ByzNSGDMState:
        """Aggregate, and step by gamma_k along the aggregate's direction."""
        x, g, step_norm, quorum = state.x, None, 0.0, self.quorum(state, ask)
        report = Report(step_norm=state.step_norm)
        if len(replies) < quorum or self.aggregator.tolerates(len(replies)) < self.f:
            needed = f"{len(replies)} usable replies of the {quorum} that the rule needs for f = {self.f}"
            report = replace(report, note=f"no quorum: {needed}; x stays")
        else:
            combined = self.combine(
                ask,
                stack(x, replies),
                rng,
                Past(ask.root if ask.root is not None else state.g, mass=self.mass_of(replies)),
            )
            g = combined.vector
            length = 0.0 if g is None else norm(g)
            if g is not None and length > 0:
                # Python floats, so the step has the dtype of the model; g first, as gamma_k / length may overflow.
                x_next = x - self.step_size(ask) * (g / length)
                x, step_norm = x_next, norm(x_next - x)
            note = combined.note or ("" if length > 0 else "the aggregate is 0; x stays")
            report = reported(combined, list(replies), note, rng, state.step_norm)
        asked = frozenset(range(self.n) if ask.cohort is None else ask.cohort)
        return ByzNSGDMState(
            round=state.round + 1,
            x=x,
            g=state.g if g is None else g,
            step_norm=step_norm,
            counted={**state.counted, **dict.fromkeys(replies, ask.round)},
            missed=(state.missed | asked).difference(replies),
            report=report,
        )


def _least(aggregator: Aggregator, n: int, f: int) -> int:
    """Return the least number of rows, above 2f and at most n, among which the rule tolerates f."""
    return next((rows for rows in range(2 * f + 1, n) if aggregator.tolerates(rows) >= f), n)
