"""The contract of a method: what the server asks, what a worker replies, how the server updates.

A method is a frozen dataclass of its hyper-parameters. Its one file has both halves, server and worker,
in the order of the paper's algorithm; state goes in and comes out, and nothing here knows of processes or networks.

One round k, as ``RobustStrategy`` drives it::

    ask     = method.ask(state, stream(seed, COIN, round_=k))                        # server
    extra_i = method.resync(state, i)                                                # server, for whom it is behind
    mine_i, packet = method.reply(i, mine_i, ask, oracle, stream(seed, WORKER, i, k))  # each sampled worker i
    method.accepts_version(state, i, packet.version)                                 # server: built on the right state?
    q_i     = method.compressor_for(ask, i).decompress(packet)                       # server, once screened
    state   = method.update(state, ask, {i: q_i}, stream(seed, AGGREGATE, round_=k))

``Method`` is what every method has. It answers what a host asks about single workers as a method that keeps nothing of
them; a ``Stateful`` one, which does, overrides these answers. So no host needs to know which of the two it runs.

A method also defines its config. Its fields are the keys of ``[strategy]`` (``strategies.hyperparameters``); it reports
what conflicts with it, and how many rounds of which kind to expect. ``strategies.methods`` lists the methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_type_hints

import numpy as np
from numpy.random import Generator

from strategies.cohorts import aggregate
from strategies.evidence import Evidence, examine
from strategies.hyperparameters import Cohort, Constants, Key, Written
from strategies.operators import Aggregator as Aggregator
from strategies.operators import Combined as Combined
from strategies.operators import Compressor as Compressor
from strategies.operators import Packet as Packet
from strategies.operators import PacketLayout as PacketLayout
from strategies.operators import Rows as Rows
from strategies.operators import Vector as Vector
from strategies.operators import Weights as Weights
from strategies.schedules import Schedule, ScheduledStep
from strategies.weights import Masses

Kept = tuple[Any, ...]
"""What a server step keeps between rounds: numbers and vectors of shape (d,)."""


class Oracle(Protocol):
    """What a worker can compute about its own loss f_i. Every returned vector has shape (d,) and the dtype of x."""

    @property
    def dim(self) -> int:
        """The number of parameters, d."""

    def full_gradient(self, x: Vector) -> Vector:
        """Return grad f_i(x) over all local data."""

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: Generator) -> list[Vector]:
        """Draw ONE minibatch of ``batch`` samples with ``rng`` and return its mean gradient at each point."""


def begin(oracle: Oracle, rng: Callable[[], Generator]) -> None:
    """Start a worker's round: give its oracle the stream that the model draws from, where the oracle takes one.

    An oracle whose gradients draw at random (dropout, augmentation) has a method ``begin(rng)``. Each later call draws
    afresh from that stream, and the same at all of its points, so that a difference compares one function.

    Args:
        oracle: of the worker.
        rng: returns the MODEL stream of this worker and round.
    """
    if (start := getattr(oracle, "begin", None)) is not None:
        start(rng())


def prepare(oracle: Oracle, model: Callable[[], Generator], worker: Callable[[], Generator]) -> None:
    """Let an oracle prepare the minibatch of a later round, if it has a method ``prepare(model, worker)``.

    It guesses that the method draws a minibatch first, as large as the last one; nothing but time depends on that.

    Args:
        oracle: of the worker.
        model: returns the MODEL stream of this worker and that round.
        worker: returns its WORKER stream, with which the method draws minibatches.
    """
    if (start := getattr(oracle, "prepare", None)) is not None:
        start(model(), worker())


def full_gradients(oracle: Oracle, points: Sequence[Vector]) -> list[Vector]:
    """Return the gradient over all local data at each point, of one random function where the model draws at random.

    An oracle has a method ``full_gradients(points)`` for that; without it nothing is drawn.
    """
    several: Callable[[Sequence[Vector]], list[Vector]] | None = getattr(oracle, "full_gradients", None)
    return [oracle.full_gradient(x) for x in points] if several is None else several(points)


@dataclass(frozen=True)
class Rejected:
    """A reply that does not count: ``reason`` is "slug: detail", for example "wrong round: 3, expected 5"."""

    reason: str

    @property
    def slug(self) -> str:
        """The part that reasons are counted by."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class CheckpointEpoch:
    """Where the server would go on if it were killed now.

    Args:
        incarnation: how often it has been started for this run; a worker that sees it grow knows that the server is
            back from its checkpoint, and that all it did since is undone.
        round: of its newest checkpoint.
    """

    incarnation: int
    round: int


@dataclass(frozen=True, eq=False)
class Ask:
    """What the server wants from the workers that it samples in one round.

    Args:
        round: k, counted from 1.
        kind: the method's word for this kind of round, for example ``"full"`` or ``"difference"``.
        vectors: what every sampled worker is sent, by name; shape (d,) each. At a worker, what ``resync`` had for it
            is among them.
        sample: how many clients to sample. Stays on the server.
        seed: the round's common seed, where the compressor is ``shared``.
        packet: a compressed vector for every sampled worker, where the method broadcasts one.
        cohort: the sampled workers, in ascending order. Always known to the server; at a worker None, unless the
            experiment reveals it.
        epoch: of the server's checkpoints, where it keeps any.
        probe: the server only wants to know whether a worker can answer: it replies as to any ask, and keeps nothing.
        since: the run went back to an earlier model before this round: what workers kept in rounds before it is void.
        root: what the server computes as a worker itself, where the rule needs that; shape (d,). Stays on the server.
        step_scale: what the server multiplies the step size of this round by; see ``RobustStrategy``.
        alpha_scale: what it multiplies the clipping multiplier of this round by.
        step: size of the step from the last model to that of this round, where the worker takes that step itself and
            the config alone does not give its size; else None.
    """

    round: int
    kind: str
    vectors: Mapping[str, Vector]
    sample: int = 0
    seed: int | None = None
    packet: Packet | None = None
    cohort: tuple[int, ...] | None = None
    epoch: CheckpointEpoch | None = None
    probe: bool = False
    since: int = 0
    root: Vector | None = None
    step_scale: float = 1.0
    alpha_scale: float = 1.0
    step: float | None = None


@dataclass(frozen=True, eq=False)
class Past:
    """What ``combine`` needs beside the rows of a round: what came before it, and how much each row counts.

    The server has it from its state. An attacker who plans ahead fills in what it has worked out.

    Args:
        g: the previous aggregate, g^{k-1}; None before the first, or where it is not known.
        x_prev: the model that the last step started from; None before the first step, or where it is not known.
        ratios: the notes of a clipping radius that is learnt, see ``radius.observe``.
        mass: declared weights of the rows, see ``Method.mass_of``.
    """

    g: Vector | None = None
    x_prev: Vector | None = None
    ratios: Sequence[float] = ()
    mass: Masses | None = None


@dataclass(frozen=True)
class Report:
    """What an update did, for the metrics of the round.

    Args:
        lam: the clipping radius used, or None where nothing is clipped.
        step_norm: length of the step that led to the model which this round asked about.
        clipped: workers whose vector was longer than ``lam``, in ascending order.
        note: what a reader of the log should know ("no quorum: ...").
        evidence: what the round shows about each client; None where nothing was aggregated, and after a restart.
        below_quorum: nothing was aggregated because too little of the declared weight came.
    """

    lam: float | None = None
    step_norm: float = 0.0
    clipped: Sequence[int] = ()
    note: str = ""
    evidence: Evidence | None = None
    below_quorum: bool = False


def reported(combined: Combined, workers: Sequence[int], note: str, rng: Generator, step_norm: float = 0.0) -> Report:
    """Return the report of a round that aggregated the vectors of these workers."""
    clipped = [workers[row] for row in combined.clipped]
    return Report(combined.lam, step_norm, clipped, note, examine(workers, combined, rng), combined.below_quorum)


class State(Protocol):
    """What a method keeps on the server between rounds; every method has its own."""

    @property
    def round(self) -> int:
        """The round that the next ``ask`` opens, counted from 1; so after round r it is r + 1 and ``x`` is x^r."""

    @property
    def x(self) -> Vector:
        """The model, shape (d,)."""

    @property
    def report(self) -> Report:
        """What the last update did."""


@dataclass(frozen=True, eq=False)
class WorkerState:
    """What a worker keeps between rounds. One type for all methods, so that any host can store it.

    Args:
        version: the round of the worker's last reply; 0 where it keeps nothing or has lost what it kept.
        vectors: the method's vectors by name, shape (d,) each.
    """

    version: int = 0
    vectors: Mapping[str, Vector] = field(default_factory=dict)


STATELESS = WorkerState()


def kept_since(state: WorkerState, ask: Ask) -> WorkerState:
    """Return what a worker may build its reply to this ask on: nothing where the run went back since its last one."""
    return state if state.version >= ask.since else STATELESS


ATTACK_FAILED = "attack failed"
"""The slug of the reason why an attacker of ours sends no reply where its attack cannot be carried out."""
UNPREPARED, DECLINED, FAILED = "unprepared", "declined", "failed"
"""The same of a client with its own data: it has not been sent the agreement of the run, its owner does not allow the
answer, or something failed whose text stays with the client."""
AGREEMENT = "agreement"
"""Name of the record in an instruction that holds what was agreed on with such clients."""
STALE = "stale state"
"""The slug of the reason why a reply does not count that builds on another worker state than the server's."""
HELD = "held"
"""The name under which ``resync`` sends a worker what the server holds of it, where the server holds something."""


class StateLostError(Exception):
    """Raised by ``Method.reply``: this worker lacks the state that the ask builds on. The server will resync it."""


EVERYBODY = (True, "all clients take part, and they have no majority")


@dataclass(frozen=True)
class RoundKind:
    """One kind of round of a method: how often it comes, what travels and what it costs; for ``breakwater check``.

    Args:
        name: the method's word for it.
        share: probability of a round of this kind.
        sampled: clients sampled.
        up: the compressor of the replies.
        gradients: gradients of single samples that one worker computes.
        survives: whether the method survives such a round with a Byzantine majority, and why, in a few words.
        down: dense vectors that every sampled client is sent.
        broadcast: the compressor of what else it is sent, if anything.
        rows: vectors that are aggregated, where these are not those of the sampled clients.
    """

    name: str
    share: float
    sampled: int
    up: Compressor
    gradients: int
    survives: tuple[bool, str] = EVERYBODY
    down: int = 1
    broadcast: Compressor | None = None
    rows: int | None = None


_FLOORS = "the noise floor falls with gamma, the error that attackers cause among unlike clients does not"
NOT_NEEDED = "theory has a constant gamma; no schedule is needed, as the variance vanishes by itself"
FIXED_MOMENTUM = f"no theorem covers it, as theory ties the momentum to gamma, and here it is fixed; {_FLOORS}"
"""What theory says of a schedule of gamma, for methods with variance reduction and for those with a momentum."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is made for; ``breakwater check`` compares methods by it.

    Args:
        sampling: of clients: "any" where the theorem covers a Byzantine majority in a cohort, "clipped" where only a
            heuristic limits it, "none" where all clients take part.
        noise: what becomes of the noise of minibatches: it "vanishes", is "averaged" over rounds, or "stays"; "none"
            where the method computes full gradients only.
        differences: whether differences are compressed that vanish, so that the error of compression does, too.
        full_gradients: whether workers compute full gradients in some rounds.
        keeps: whether a client must keep vectors between rounds.
        rows: whether the server keeps a vector of each client.
    """

    sampling: Literal["any", "clipped", "none"] = "none"
    noise: Literal["vanishes", "averaged", "stays", "none"] = "stays"
    differences: bool = False
    full_gradients: bool = False
    keeps: bool = False
    rows: bool = False


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A distributed optimisation method: both halves. The server's state is the method's own type.

    Args:
        n: clients.
        f: Byzantine clients to defend against.
        gamma: step size: a number, "c/L" where the task knows its L, or a schedule of these over the rounds such as
            { kind = "cosine", start = 0.1, end = 0.001, warmup = 20 }.
        aggregator: ARAgg.
        compressor: Q.
        weights: of the clients by seat, as the server declares them: whole numbers of which only the ratios matter;
            () where all count the same. Workers need none.
    """

    kind: ClassVar[str]
    """Name in configs."""
    traits: ClassVar[Traits] = Traits()
    """What it is made for."""
    worker_keys: ClassVar[tuple[str, ...]] = ("batch",)
    """The keys of the config that an honest client must agree on with the server: what a worker computes."""
    stateful: ClassVar[bool] = False
    """Whether a worker's next message depends on its earlier ones: its own state, or what the server holds."""
    takes_root: ClassVar[bool] = False
    """Whether the rows that it aggregates are what a worker sends, so that a row of the server's own is comparable. Its
    state then has a field ``root``: the vectors of the server's own ``WorkerState``, as pairs of name and vector."""
    aggregates_all: ClassVar[bool] = False
    """Whether every round aggregates a vector of each of the n clients, whoever is sampled."""
    no_server_step: ClassVar[str] = "its recursion needs x^{k+1} - x^k = -gamma g^k"
    """Why the method takes no server step; see ``server_step.ServerSteps`` for those that do."""
    on_schedules: ClassVar[str] = f"theory has a constant gamma; {_FLOORS}"
    """What theory says of a schedule of gamma; for ``breakwater check``."""

    n: int
    f: int
    gamma: Annotated[float | Schedule, ScheduledStep()]
    aggregator: Aggregator
    compressor: Compressor
    weights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != self.n or min(self.weights) < 1):
            wanted = f"must be n = {self.n} whole numbers of at least 1; those of a config are made such"
            raise ValueError(f"weights: {len(self.weights)} numbers from {min(self.weights)}: {wanted}")

    # --- both halves: what every method has -----------------------------------------------------------------------

    @abstractmethod
    def start(self, x0: Vector) -> Any:
        """Return the server's state before round 1."""

    @abstractmethod
    def ask(self, state: Any, rng: Generator) -> Ask:
        """Open the round ``state.round``."""

    def compressor_for(self, ask: Ask, i: int) -> Compressor:
        """Return the compressor whose packets worker i answers this ask with."""
        return self.compressor.of_round(ask.seed, i)

    @abstractmethod
    def reply(self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: Generator) -> tuple[WorkerState, Packet]:
        """Answer as the honest worker i.

        Args:
            i: the worker.
            mine: its state; STATELESS at first.
            ask: what the server wants.
            oracle: its loss.
            rng: its WORKER stream of the round.

        Returns:
            Its next state and the packet.

        Raises:
            StateLostError: ``mine`` is not what the ask builds on, and the ask has no resync.
        """

    def restart(self, state: Any, round_: int) -> Any:
        """Return the server's state to begin again with, from the model of a state, while workers keep nothing.

        Args:
            state: after any round, or what this returned.
            round_: the round that comes next.
        """
        return replace(self.start(state.x), round=round_)

    def quorum(self, state: Any, ask: Ask) -> int:
        """Return how many replies ``update`` needs to use any of them; 0 where it uses whatever comes."""
        return 0

    def combine(self, ask: Ask, rows: Rows, rng: Generator, past: Past) -> Combined:
        """Clip and aggregate the vectors that ``absorb`` gave, shape (n', d).

        ``update`` calls it, and so does an attacker who plans ahead. Without clipping only numbers protect the
        aggregate: none of the rows that are missing is known to be Byzantine, so the rule defends against all f.
        """
        return aggregate(self.aggregator, rows, max(len(rows), 1), self.f, rng, past.g, mass=past.mass)

    def mass_of(self, workers: Iterable[int]) -> Masses | None:
        """Return the declared weights of these workers, shape (n',); None where all count the same."""
        return np.array([self.weights[i] for i in workers], np.int64) if self.weights else None

    def asked(self, ask: Ask) -> int:
        """Return how many clients this ask went to, as far as that is known; else n."""
        return ask.sample or len(ask.cohort or ()) or self.n

    @abstractmethod
    def update(self, state: Any, ask: Ask, replies: Mapping[int, Vector], rng: Generator) -> Any:
        """Close the round (clip, aggregate, step) with the decompressed replies by worker, in ascending order.

        Only replies that passed screening are here; a missing or rejected one is simply absent. ``ask.cohort`` has
        those who were asked.
        """

    @property
    def steps_along_aggregate(self) -> bool:
        """Whether x^{k+1} = x^k - gamma_k g^k, so that g^k, its length too, can be worked out from a step."""
        return True

    @property
    def peak(self) -> float:
        """The largest step size of the run, which bounds of stability are compared with."""
        # Once resolved, a schedule starts at a number.
        return float(self.gamma.start) if isinstance(self.gamma, Schedule) else self.gamma  # type: ignore[arg-type]

    def gamma_at(self, round_: int) -> float:
        """Return gamma_k by the config, k + 1 the round."""
        return self.gamma.at(round_ - 1) if isinstance(self.gamma, Schedule) else self.gamma

    def step_size(self, ask: Ask) -> float:
        """Return the size of the step that ends this round, gamma_k times the server's scale."""
        return self.gamma_at(ask.round) * ask.step_scale

    def along(self, g: Vector, kept: Kept) -> tuple[Vector, Kept]:
        """Return what the server steps along, given the aggregate, and what a server step keeps for the next one."""
        return g, kept

    # --- about single workers: the answers of a method that keeps nothing of them, see ``Stateful`` -----------------

    def resync(self, state: Any, i: int) -> Mapping[str, Vector]:
        """Return what worker i must be sent beside the ask because it may be behind."""
        return {}

    def accepts_version(self, state: Any, i: int, version: int) -> bool:
        """Return whether a reply of worker i that builds on this version of its state can be used."""
        return version == 0

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return the model x that the ask is about, as a worker knows it; shape (d,)."""
        return ask.vectors["x"]

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return the vector that the server aggregates for a worker whose decompressed reply is q."""
        return q

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the q for which ``absorb`` gives ``target``: an attacker steers with it what is aggregated."""
        return target

    def fade(self, held: Vector, rounds: int) -> Vector:
        """Return what the server holds of a worker after further rounds without a reply of it that counted."""
        return held

    # --- the config -----------------------------------------------------------------------------------------------

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """Return how a config writes each hyper-parameter, by field."""
        hints = get_type_hints(cls, include_extras=True)
        marks = {each.name: getattr(hints[each.name], "__metadata__", ()) for each in fields(cls)}
        keys = {name: next((key for key in of if isinstance(key, Key)), Key()) for name, of in marks.items()}
        return {name: key for name, key in keys.items() if name not in _SURROUNDINGS}

    @classmethod
    def of(cls, written: Written, constants: Constants) -> Self:
        """Return the method with these hyper-parameters.

        Raises:
            ConfigError: a value needs something that the task or the compressor does not have; one line.
        """
        values = {name: key.value(name, written, constants) for name, key in cls.keys().items()}
        return cls(**{name: getattr(constants, name) for name in _SURROUNDINGS}, **values)

    def written(self) -> dict[str, Any]:
        """Return the keys of the config that give this method, with numbers for all that was left open."""
        parts = (key.back(name, getattr(self, name)) for name, key in self.keys().items())
        return {k: v for part in parts for k, v in part.items()}

    @classmethod
    def cohorts(cls, written: Written, n: int, f: int, aggregator: Aggregator) -> dict[str, int]:
        """Return the cohort sizes by key."""
        keys = cls.keys().items()
        sizes = {name: key.size(written[name], n, f, aggregator) for name, key in keys if isinstance(key, Cohort)}
        return sizes or {"cohort": n}

    @classmethod
    def conflicts(cls, written: Written, compressor: Compressor) -> Iterator[str]:
        """Yield what in the config does not go with this method, one line each: for most a biased compressor."""
        if not compressor.unbiased:
            why = f"biased, and {cls.kind} needs an unbiased one"
            fix = 'strategy.kind = "byz-ef21" or, with minibatches, "byz-ef21-sgdm" takes it'
            yield f'compressor.kind = "{compressor.kind}": {why}; {fix}'

    @classmethod
    def remarks(cls, n: int, f: int, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Yield what this method allows but deserves a second thought, one line each; for ``breakwater check``."""
        yield from ()

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Yield what ``breakwater check`` says about the hyper-parameters as (word, sentence); "" goes on.

        Args:
            rounds: of the run.
        """
        yield from ()

    def plan(self, rounds: int, samples: int) -> Sequence[RoundKind]:
        """Return the kinds of rounds, whose shares sum to 1.

        Args:
            rounds: of the run.
            samples: m, the samples of a worker.
        """
        return [RoundKind("round", 1.0, self.n, self.compressor, samples)]

    def warnings(self, smoothness: float | None) -> Iterator[str]:
        """Yield warnings about these hyper-parameters, one line each, for ``breakwater check``.

        Args:
            smoothness: L; None where the task does not know it.
        """
        yield from ()


_SURROUNDINGS = ("n", "f", "aggregator", "compressor", "weights")
"""Fields that other sections of the config give."""


class Stateful(Method):
    """A method that keeps something of single workers: a worker its own state, or the server a vector of each.

    It overrides, as far as they are not trivial for it:

    * ``resync(state, i)``: vectors for worker i alone, which reads them among ``ask.vectors``. ``HELD`` is the name of
      what the server holds of it. Empty for a worker that is not behind.
    * ``knows(state, i, version)``: a reply that builds on another state than the server's does not count.
    * ``model(mine, ask)``: where the ask does not carry x itself.
    * ``absorb(held, ask, q)``: what the server aggregates for a worker (a momentum, an estimate), given what it held
      of it, which is the same of the worker's last reply that counted; None before the first.
    * ``aim(held, ask, target)``: its inverse.
    * ``fade(held, rounds)``: where what the server holds changes in rounds without a reply, too.
    """

    stateful: ClassVar[bool] = True


@dataclass(frozen=True)
class Evaluation:
    """The model measured by the server.

    Args:
        loss: the full training objective f(x), over the honest workers' data.
        accuracy: share of correct predictions in [0, 1], on the test set where the task has one; None for tasks that
            predict no classes.
        gap: f(x) - f* where the task knows f*; else None.
        trigger: share of test images with an attacker's trigger that are taken for its class, of those of another; None
            without such an attack.
    """

    loss: float
    accuracy: float | None
    gap: float | None = None
    trigger: float | None = None
