"""DeMoA: the server keeps a momentum of every client, and aggregates all of them in every round, sampled or not.

    server    S_k: C of n clients;  send x^k
    worker i  g_i = a minibatch gradient of f_i at x^k;  send Q(g_i)
    server    decay:  m_i <- (1 - alpha p) m_i + alpha q_i  for i in S_k that replied,  (1 - alpha p) m_i  for others
              hold:   m_i <- (1 - alpha) m_i + alpha q_i    for i in S_k that replied,  m_i unchanged      for others
              x^{k+1} = x^k - gamma ARAgg({m_i : all n})

with p = C/n and m_i = 0 at the start. Workers keep nothing; the server keeps n d floats.

Source: Otsuka, Takezawa, Yamada, "Delayed Momentum Aggregation: Communication-efficient Byzantine-robust Federated
Learning with Partial Participation", ICML 2026 (arXiv 2509.02970). ``stale = "decay"`` is the published method,
``stale = "hold"`` its first version, D-Byz-SGDM. In the papers a client updates its momentum and sends it; for an
honest client that is the same sequence, but needs a state there.

A client that is silent, or whose reply is rejected, is treated as one that was not sampled. What a cohort sends changes
only its own rows, so a Byzantine majority in it is harmless: what counts is f/n against the breakdown point of the
rule. The price is spread: honest rows differ by their age too. The median of all rows is 0 until more than half of the
clients were heard, so with C = 4 of 20 the model stays where it is for about three rounds. Rows that were never heard
are not left out, because attackers can be a majority among the others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.random import Generator

from strategies.cohorts import common_seed
from strategies.compressors import Identity
from strategies.descent import gradient
from strategies.hyperparameters import Cohort, Constants, Key, Written
from strategies.method import (
    FIXED_MOMENTUM,
    Aggregator,
    Ask,
    Combined,
    Compressor,
    Kept,
    Oracle,
    Packet,
    Past,
    Report,
    RoundKind,
    Rows,
    Stateful,
    Traits,
    Vector,
    WorkerState,
    reported,
)
from strategies.server_step import ServerSteps
from strategies.vectors import bounded_sum, norm

DECAY: Literal["decay"] = "decay"
HOLD: Literal["hold"] = "hold"
_SHARE = 0.1
"""alpha p by default."""
_FADED = 3.0
"""A row that decays is faded after this many times 1/(alpha p) rounds."""
_HELD = 50.0
"""A row that is held is left out after this many times 1/p rounds, by default."""


@dataclass(frozen=True, eq=False)
class DeMoAState:
    """The server's state between rounds.

    Args:
        round: the round that comes next, from 1.
        x: the model of that round, x^k.
        momenta: m_i by worker; 0 where there is none.
        heard: the round of the last reply that counted, by worker.
        g: the last aggregate; None before the first.
        step_norm: length of the last step; 0 where x stayed.
        server: what a server step keeps, see ``server_step``; empty without one.
        report: what the last update did.
    """

    round: int
    x: Vector
    momenta: Mapping[int, Vector] = field(default_factory=dict)
    heard: Mapping[int, int] = field(default_factory=dict)
    g: Vector | None = None
    step_norm: float = 0.0
    server: Kept = ()
    report: Report = field(default_factory=Report)


def _default_alpha(written: Written, constants: Constants) -> float:
    """Return alpha with alpha p = 0.1, at most 1."""
    return min(1.0, _SHARE * constants.n / (written["cohort"] or constants.n))


@dataclass(frozen=True, kw_only=True)
class DeMoA(ServerSteps, Stateful):
    """DeMoA (Otsuka, Takezawa, Yamada, ICML 2026), and its first version D-Byz-SGDM.

    Args:
        cohort: C: clients sampled in a round; default: all.
        alpha: Weight of the new gradient in a momentum, in (0, 1]; default 0.1 n/C, at most 1. No clipping multiplier.
        stale: What becomes of the momentum of a client that is not heard: "decay" (DeMoA) or "hold" (D-Byz-SGDM).
        max_age: With stale = "hold": rounds after which a momentum that was not refreshed is left out of the
            aggregation; default 50 n/C.
        batch: b: minibatch size; 0 for the full local gradient.
    """

    kind: ClassVar[str] = "demoa"
    traits: ClassVar[Traits] = Traits(sampling="any", noise="averaged", rows=True)
    aggregates_all: ClassVar[bool] = True
    on_schedules: ClassVar[str] = FIXED_MOMENTUM

    cohort: Annotated[int, Cohort()]
    alpha: Annotated[float, Key(gt=0, le=1, fill=_default_alpha)]
    stale: Literal["decay", "hold"] = DECAY
    max_age: Annotated[int | None, Key(ge=1)] = None
    batch: Annotated[int, Key(ge=0)] = 0

    @property
    def participation(self) -> float:
        """p = C/n, the probability that a client is sampled."""
        return self.cohort / self.n

    @property
    def keep(self) -> float:
        """What a momentum is multiplied by when a gradient is added to it."""
        return 1.0 - self.alpha * (self.participation if self.stale == DECAY else 1.0)

    @property
    def limit(self) -> int:
        """The age in rounds beyond which a momentum is left out ("hold") or counts as faded ("decay")."""
        if self.stale == DECAY:
            return math.ceil(_FADED / (self.alpha * self.participation))
        return math.ceil(_HELD / self.participation) if self.max_age is None else self.max_age

    # --- the config -----------------------------------------------------------------------------------------------

    @classmethod
    def conflicts(cls, written: Written, compressor: Compressor) -> Iterator[str]:
        """Refuse a biased compressor, and an age limit for momenta that decay."""
        if written["max_age"] is not None and written["stale"] != HOLD:
            fix = 'momenta that decay are never left out; set stale = "hold" or leave it out'
            yield f"strategy.max_age = {written['max_age']}: {fix}"
        yield from super().conflicts(written, compressor)

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Say what alpha is here, as it is a clipping multiplier in other methods."""
        yield from super().meanings(rounds)
        fades = f"1 - alpha C/n = {self.keep:.4g}" if self.stale == DECAY else f"1 - alpha = {self.keep:.4g}"
        when = "in every round" if self.stale == DECAY else "when a new gradient comes"
        weight = f"alpha = {self.alpha:.6g} is the weight of the new gradient, not a clipping multiplier"
        yield "momentum", f"{weight} (this method clips nothing); a momentum is multiplied by {fades} {when}"
        if self.stale == DECAY:
            yield (
                "",
                f"a momentum that was not refreshed for {self.limit} rounds counts as faded: a vote for standing still",
            )
        else:
            yield "", f"a momentum that was not refreshed for {self.limit} rounds is left out of the aggregation"

    @classmethod
    def remarks(cls, n: int, f: int, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Warn of a compressor, which no theory covers."""
        if compressor.kind != Identity().kind:
            why = f"{cls.kind} takes it as it is unbiased, but no theory covers it"
            yield f'compressor.kind = "{compressor.kind}": {why}'

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the one kind of round."""
        survives = (True, "the momenta of all clients are aggregated, sampled or not")
        work = self.batch or samples
        return [RoundKind("gradient", 1.0, self.cohort, self.compressor, work, survives, rows=self.n)]

    # --- server: broadcast x^k --------------------------------------------------------------------------------------

    def start(self, x0: Vector) -> DeMoAState:
        return DeMoAState(round=1, x=x0)

    def restart(self, state: DeMoAState, round_: int) -> DeMoAState:
        """Begin again from the model; the momenta, 0 again, are as old as this."""
        return DeMoAState(round_, state.x, heard=dict.fromkeys(range(self.n), round_ - 1))

    def ask(self, state: DeMoAState, rng: Generator) -> Ask:
        """Ask C clients at x^k."""
        return Ask(state.round, "gradient", {"x": state.x}, self.cohort, common_seed(self.compressor, rng))

    # --- worker i ---------------------------------------------------------------------------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Send Q(g_i), the full or a minibatch gradient at x^k."""
        g = gradient(oracle, ask.vectors["x"], self.batch, rng)
        return mine, self.compressor_for(ask, i).compress(g, rng)

    # --- server: m_i of those who replied, and of all others --------------------------------------------------------

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """m_i <- (1 - alpha p) m_i + alpha q, from m_i = 0; "hold": (1 - alpha) m_i + alpha q."""
        fresh = self.alpha * q
        return fresh if held is None else bounded_sum(self.keep * held, fresh)

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return (target - (1 - alpha p) m_i) / alpha, in "hold" with 1 - alpha."""
        return (target if held is None else target - self.keep * held) / self.alpha

    def fade(self, held: Vector, rounds: int) -> Vector:
        """Return (1 - alpha p)^rounds m_i; "hold": m_i."""
        return held if rounds == 0 or self.stale == HOLD else self.keep**rounds * held

    # --- server: x^{k+1} --------------------------------------------------------------------------------------------

    def combine(self, ask: Ask, rows: Rows, rng: Generator, past: Past) -> Combined:
        """Return ARAgg of the momenta, defended against all f; nothing where the rule does not tolerate that many."""
        most = self.aggregator.tolerates(len(rows)) if len(rows) else -1
        if most < self.f:
            return Combined(None, note=f"{len(rows)} momenta: too few for the rule with f = {self.f}")
        return super().combine(ask, rows, rng, past)

    def update(self, state: DeMoAState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> DeMoAState:
        """Refresh the momenta, aggregate those of all n clients and step; without a reply too."""
        momenta = {i: self.fade(m, 1) for i, m in state.momenta.items() if i not in replies}
        momenta |= {i: self.absorb(state.momenta.get(i), ask, q) for i, q in replies.items()}
        heard = {**state.heard, **dict.fromkeys(replies, ask.round)}
        old, before = self._old(ask.round, heard), self._old(ask.round - 1, state.heard)
        left_out = set(old) if self.stale == HOLD else set()
        workers = [i for i in range(self.n) if i not in left_out]
        rows = np.zeros((len(workers), state.x.size), state.x.dtype)
        for row, i in zip(rows, workers, strict=True):
            if i in momenta:
                row[:] = momenta[i]
        combined = self.combine(ask, rows, rng, Past(state.g, mass=self.mass_of(workers)))
        g, notes = combined.vector, [combined.note]
        if g is None:
            notes.append("the model stays")
        if old and old != before:
            notes.append(self._aged(old))
        x, server = state.x, state.server
        if g is not None:
            along, server = self.along(g, server)
            x = state.x - self.step_size(ask) * along  # a Python float, so the step has the dtype of the model
        return DeMoAState(
            round=state.round + 1,
            x=x,
            momenta=dict(sorted(momenta.items())),
            heard=dict(sorted(heard.items())),
            g=state.g if g is None else g,
            step_norm=norm(x - state.x),
            server=server,
            report=reported(combined, workers, "; ".join(filter(None, notes)), rng, state.step_norm),
        )

    def _old(self, round_: int, heard: Mapping[int, int]) -> list[int]:
        """Return the workers whose momenta are older than the limit; those never heard are as old as the run."""
        return [i for i in range(self.n) if round_ - heard.get(i, 0) > self.limit]

    def _aged(self, old: Sequence[int]) -> str:
        """Return what is to be said about momenta that are too old, when their set changes; "" if nothing is."""
        age = f"not heard for more than {self.limit} rounds"
        if self.stale == HOLD:
            return f"the momenta of {_named(old)} are left out, {age}"
        if 2 * (len(old) + self.f) < self.n:
            return ""
        faded = f"the momenta of {_named(old)} have faded, {age}"
        return f"{faded}; with f = {self.f} attackers that send 0 they can keep the model where it is"


def _named(workers: Sequence[int]) -> str:
    """Return the workers in words, the first few by number."""
    names = ", ".join(map(str, workers[:5]))
    return f"{len(workers)} clients ({names}{', ...' if len(workers) > 5 else ''})"
