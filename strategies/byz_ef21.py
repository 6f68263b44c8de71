"""Byz-EF21 and Byz-EF21-BC: Byzantine-robust error feedback, for compressors that are biased but contractive (top-k).

Source: Rammal, Gruntkowska, Fedin, Gorbunov, Richtarik, "Communication Compression for Byzantine Robust Learning: New
Efficient Algorithms and Improved Rates", AISTATS 2024 (arXiv 2310.09804), Algorithms Byz-EF21 and Byz-EF21-BC.

Indices: round 1 asks for g_i^0 = grad f_i(x^0), which travels uncompressed; round k > 1 is the papers' t = k - 2: it
asks about x^{t+1} and ends with g^{t+1} and the step to x^{t+2}. Workers compute full local gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from numpy.random import Generator

from foundation.errors import ConfigError
from strategies.cohorts import common_seed
from strategies.compressors import Identity
from strategies.estimates import START, Estimates, EstimatesState, StateT
from strategies.hyperparameters import Constants, Written
from strategies.method import NOT_NEEDED, Ask, Compressor, Oracle, Packet, RoundKind, Traits, Vector, WorkerState

CHANGE = "change"


class ErrorFeedback(Estimates[StateT]):
    """What the methods with error feedback share: full gradients, and a compressor that is a contraction."""

    traits: ClassVar[Traits] = Traits(noise="none", differences=True, full_gradients=True, keeps=True, rows=True)
    worker_keys: ClassVar[tuple[str, ...]] = ()
    on_schedules: ClassVar[str] = NOT_NEEDED

    @classmethod
    def conflicts(cls, written: Written, compressor: Compressor) -> Iterator[str]:
        """Take a biased compressor too."""
        yield from ()

    @classmethod
    def of(cls, written: Written, constants: Constants) -> Self:
        """Return the method.

        Raises:
            ConfigError: the compressor is no contraction.
        """
        delta = constants.compressor.contraction(constants.dim)
        if not delta > 0:
            bound = f"E||C(v) - v||^2 <= (1 - delta) ||v||^2 holds with delta = {delta:.3g} only"
            fix = "error feedback needs delta > 0; choose top-k, for example"
            raise ConfigError(f'[compressor] kind = "{constants.compressor.kind}": {bound}, and {fix}')
        return super().of(written, constants)

    def later(self, share: float, samples: int) -> Sequence[RoundKind]:
        return [RoundKind(CHANGE, share, self.n, self.compressor, samples)]


@dataclass(frozen=True, kw_only=True)
class ByzEF21(ErrorFeedback[EstimatesState]):
    """Byz-EF21 (Rammal et al., AISTATS 2024): m_i = C(grad f_i(x^{t+1}) - g_i^t)."""

    kind: ClassVar[str] = "byz-ef21"

    def next_ask(self, state: EstimatesState, rng: Generator) -> Ask:
        """Broadcast x^{t+1}."""
        return Ask(state.round, CHANGE, {"x": state.x}, seed=common_seed(self.compressor, rng))

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Send m_i; in the first round grad f_i(x^0)."""
        if ask.kind == START:
            g = oracle.full_gradient(ask.vectors["x"])
            return WorkerState(ask.round, {"g": g}), Identity().compress(g, rng)
        g = self.own(mine, ask)
        g, m = self.send(i, ask, g, oracle.full_gradient(ask.vectors["x"]) - g, rng)
        return WorkerState(ask.round, {"g": g}), m


@dataclass(frozen=True, eq=False)
class EF21BCState(EstimatesState):
    """The server's state between rounds: ``w`` is the model as the workers know it, w^t; w^0 = x^0."""

    w: Vector = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class ByzEF21BC(ErrorFeedback[EF21BCState]):
    """Byz-EF21-BC: the broadcast is compressed as well, by the same compressor (Rammal et al., AISTATS 2024).

    Workers are sent s = C(x^{t+1} - w^t) and follow w^{t+1} = w^t + s. They compute gradients at w, which chases x.
    """

    kind: ClassVar[str] = "byz-ef21-bc"

    def later(self, share: float, samples: int) -> Sequence[RoundKind]:
        """Return the one kind: s is sent in place of x."""
        return [RoundKind(CHANGE, share, self.n, self.compressor, samples, down=0, broadcast=self.compressor)]

    def start(self, x0: Vector) -> EF21BCState:
        return EF21BCState(round=1, x=x0, w=x0)

    # --- server: s^{t+1} = C(x^{t+1} - w^t) ----------------------------------------------------------------------

    def next_ask(self, state: EF21BCState, rng: Generator) -> Ask:
        """Broadcast s^{t+1}."""
        seed = common_seed(self.compressor, rng)
        s = self.compressor.of_round(seed, 0).compress(state.x - state.w, rng)
        return Ask(state.round, CHANGE, {}, seed=seed, packet=s)

    def resync(self, state: EF21BCState, i: int) -> Mapping[str, Vector]:
        """Return g_i and w^t, to which the worker then adds s^{t+1} like the others."""
        held = super().resync(state, i)
        return {**held, "w": state.w} if held else held

    # --- worker i: w^{t+1} = w^t + s^{t+1}, m_i = C(grad f_i(w^{t+1}) - g_i^t) -----------------------------------

    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Follow w and send m_i; in the first round grad f_i(x^0)."""
        if ask.kind == START:
            w = ask.vectors["x"]
            g = oracle.full_gradient(w)
            return WorkerState(ask.round, {"g": g, "w": w}), Identity().compress(g, rng)
        g, w = self.own(mine, ask), self.model(mine, ask)
        g, m = self.send(i, ask, g, oracle.full_gradient(w) - g, rng)
        return WorkerState(ask.round, {"g": g, "w": w}), m

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return w^{t+1}, which is x^0 in the first round.

        Raises:
            StateLostError: w^t is not sent, and the worker's own is of another round than the last.
        """
        if ask.kind == START:
            return ask.vectors["x"]
        if "w" in ask.vectors:
            return self._moved(ask.vectors["w"], ask)
        if mine.version == ask.round:  # it has answered already
            return mine.vectors["w"]
        self.check(mine, ask)
        return self._moved(mine.vectors["w"], ask)

    # --- server: w^{t+1}, g_i, g, x ----------------------------------------------------------------------------------

    def update(self, state: EF21BCState, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> EF21BCState:
        """Follow w as the workers do, whether or not they answered; the rest is as ever."""
        after = super().update(state, ask, replies, rng)
        return after if ask.kind == START else replace(after, w=self._moved(state.w, ask))

    def _moved(self, w: Vector, ask: Ask) -> Vector:
        """Return w + s."""
        assert ask.packet is not None  # noqa: S101  # an ask for changes has one
        return w + self.compressor.of_round(ask.seed, 0).decompress(ask.packet, w.dtype)
