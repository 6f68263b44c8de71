"""The contract of a method: what the server asks, what a worker replies, how the server updates.

A method is a frozen dataclass of its hyper-parameters. Both halves, server and worker, stand in the method's one file,
in the order of the paper's algorithm; state goes in and comes out, and nothing here knows of processes or networks.

One round k, as ``RobustStrategy`` drives it::

    ask     = method.ask(state, stream(seed, COIN, round_=k))                        # server
    extra_i = method.resync(state, i)                                                # server, for whom it is behind
    mine_i, packet = method.reply(i, mine_i, ask, oracle, stream(seed, WORKER, i, k))  # each sampled worker i
    method.knows(state, i, packet.version)                                           # server: built on the right state?
    q_i     = method.form(ask, i).decompress(packet)                                 # server, once screened
    state   = method.update(state, ask, {i: q_i}, stream(seed, AGGREGATE, round_=k))

Three methods of the contract are there for what single workers mean to the server. A plain method keeps nothing about
them and inherits ``Plain``. One that does says with ``absorb`` what it aggregates for a worker (a momentum, an
estimate), and with ``aim`` which reply makes it aggregate a wanted vector: a Byzantine worker steers with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from strategies.evidence import Evidence

Vector = NDArray[np.floating]
"""A vector of R^d: shape (d,), float32 or float64."""
Rows = NDArray[np.floating]
"""Vectors of several workers, one a row: shape (n', d)."""
Weights = NDArray[np.float64]
"""A number for each row: shape (n',)."""


class Oracle(Protocol):
    """What a worker can compute about its own loss f_i. Every returned vector has shape (d,) and the dtype of x."""

    @property
    def dim(self) -> int:
        """The number of parameters, d."""

    def full_gradient(self, x: Vector) -> Vector:
        """Return grad f_i(x) over all local data."""

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw ONE minibatch of ``batch`` samples with ``rng`` and return its mean gradient at each point."""


@dataclass(frozen=True, eq=False)
class Packet:
    """A compressed vector as it travels. What the fields mean is up to the compressor of the same ``kind``.

    Args:
        kind: the compressor's ``kind``.
        dim: length d of the vector that it stands for.
        values: shape (``layout.count``,), dtype ``layout.dtype``: the vector's values, or codes for them.
        seed: where the compressor draws its coordinates itself, the seed that names them.
        scale: where values are relative to a common scale, that scale.
        marks: where it has more to say about coordinates (indices, signs), ``layout.marks`` bytes, dtype uint8.
        version: of the worker's state that the reply builds on: the round of the worker's last reply; 0 for none.
    """

    kind: str
    dim: int
    values: NDArray[Any]
    seed: int | None = None
    scale: float | None = None
    marks: NDArray[np.uint8] | None = None
    version: int = 0


@dataclass(frozen=True)
class Layout:
    """The exact size and form of a compressor's packets for vectors of one length and type.

    Args:
        count: how many values it carries.
        dtype: their type on the wire.
        seed: whether it names a seed, 8 bytes.
        scale: whether it carries a scale, 8 bytes.
        marks: how many bytes of marks.
    """

    count: int
    dtype: np.dtype[Any]
    seed: bool = False
    scale: bool = False
    marks: int = 0

    @property
    def nbytes(self) -> int:
        """The packet's size in bytes, its envelope not counted."""
        return self.count * self.dtype.itemsize + 8 * self.seed + 8 * self.scale + self.marks


@dataclass(frozen=True)
class Rejected:
    """A reply that does not count: ``reason`` is "slug: detail", for example "wrong round: 3, expected 5"."""

    reason: str

    @property
    def slug(self) -> str:
        """The part that reasons are counted by."""
        return self.reason.partition(":")[0]


class Compressor(Protocol):
    """An operator Q: R^d -> R^d in two halves, so that what travels is the packet and not the vector."""

    unbiased: ClassVar[bool]
    """Whether E[Q(v)] = v. If so ``omega`` says how good it is, else ``contraction``."""
    shared: ClassVar[bool]
    """Whether all workers of a round draw from one seed of the server's; see ``of_round``."""

    @property
    def kind(self) -> str:
        """Name in configs and packets."""

    def of_round(self, seed: int | None, worker: int) -> Self:
        """Return the operator of one worker in one round: itself, unless ``shared``.

        Args:
            seed: the round's seed, in [0, 2^64); None where the method gives none.
            worker: 0 .. n-1.

        Raises:
            ValueError: it is shared and there is no seed.
        """

    def compress(self, v: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of Q(v)."""

    def decompress(self, packet: Packet, dtype: np.dtype[Any]) -> Vector:
        """Return Q(v), shape (d,), of that type. The packet must have passed ``flaw``."""

    def flaw(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say why this packet is not one of this compressor for a vector of that length and type, or None if it is."""

    def forge(self, target: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``."""

    def opposite(self, packet: Packet) -> Packet:
        """Return the packet that reads as minus this one."""

    def layout(self, dim: int, dtype: np.dtype[Any]) -> Layout:
        """Return what a packet of a vector of that length and type holds.

        Raises:
            ValueError: it cannot carry such a vector (k > d); one line for the user.
        """

    def omega(self, dim: int) -> float:
        """Return omega with E||Q(v) - v||^2 <= omega ||v||^2."""

    def norm_bound(self, dim: int) -> float:
        """Return D_Q with ||Q(v)|| <= D_Q ||v|| always."""

    def contraction(self, dim: int) -> float:
        """Return delta with E||Q(v) - v||^2 <= (1 - delta) ||v||^2; 0 or less where there is none."""


class Aggregator(Protocol):
    """A robust aggregation rule with its pre-aggregators."""

    def __call__(self, rows: Rows, f: int, rng: np.random.Generator, center: Vector | None = None) -> Vector:
        """Aggregate n' vectors of which up to ``f`` may be Byzantine.

        Args:
            rows: shape (n', d); never modified.
            f: how many rows to defend against; at most ``tolerates(n')``.
            rng: for random pre-aggregators.
            center: where the caller believes the answer to lie, usually its previous aggregate; shape (d,). Rules that
                need a centre (centred clipping) start from it; None leaves the choice to them. Others ignore it.

        Returns:
            Shape (d,), dtype of ``rows``.
        """

    def weigh(
        self, rows: Rows, f: int, rng: np.random.Generator, center: Vector | None = None
    ) -> tuple[Vector, Weights | None]:
        """Return the same, and the weight by which each row was taken, shape (n',).

        Weights are those of a mean of rows, or of rows and a centre; None from rules that look at every coordinate by
        itself.
        """

    def tolerates(self, n: int) -> int:
        """Return the largest f that rule and pre-aggregators take for n rows; -1 if they cannot take n rows at all."""


@dataclass(frozen=True)
class Mark:
    """Where the server would go on if it were killed now.

    Args:
        life: how often it has been started for this run; a worker that sees it grow knows that the server is back from
            its checkpoint, and that all it did since is undone.
        round: of its newest checkpoint.
    """

    life: int
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
        private: what ``combine`` needs beside the rows and no worker is sent, by name: the server's own vectors. An
            attacker who plans ahead puts in what it has worked out: ``"g"``, the previous estimate, if it can.
        mark: the server's, where it keeps checkpoints.
        probe: the server only wants to know whether a worker can answer: it replies as to any ask, and keeps nothing.
    """

    round: int
    kind: str
    vectors: Mapping[str, Vector]
    sample: int = 0
    seed: int | None = None
    packet: Packet | None = None
    cohort: tuple[int, ...] | None = None
    private: Mapping[str, Vector] = field(default_factory=dict)
    mark: Mark | None = None
    probe: bool = False


@dataclass(frozen=True, eq=False)
class Combined:
    """What the server makes of the rows of a round.

    Args:
        vector: shape (d,); None where these rows cannot be aggregated, and ``note`` says why.
        lam: the clipping radius used; None where nothing is clipped.
        clipped: row numbers that were longer than ``lam``.
        note: why there is no vector.
        rows: what was aggregated, before any clipping; shape (n', d).
        center: the aggregate of these rows, clipped or not; shape (d,). It is ``vector`` unless the method adds to it.
        weights: see ``Aggregator.weigh``.
    """

    vector: Vector | None
    lam: float | None = None
    clipped: Sequence[int] = ()
    note: str = ""
    rows: Rows | None = None
    center: Vector | None = None
    weights: Weights | None = None


@dataclass(frozen=True)
class Report:
    """What an update did, for the metrics of the round.

    Args:
        lam: the clipping radius used, or None where nothing is clipped.
        step_norm: length of the step that led to the model which this round asked about.
        clipped: workers whose vector was longer than ``lam``, in ascending order.
        note: what a reader of the log should know ("no quorum: ...").
        evidence: what the round shows about each client; None where nothing was aggregated, and after a restart.
    """

    lam: float | None = None
    step_norm: float = 0.0
    clipped: Sequence[int] = ()
    note: str = ""
    evidence: "Evidence | None" = None


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

ATTACK_FAILED = "attack failed"
"""The slug of the reason why an attacker of ours sends no reply where its attack cannot be carried out."""
STALE = "stale state"
"""The slug of the reason why a reply does not count that builds on another worker state than the server's."""
HELD = "held"
"""The name under which ``resync`` sends a worker what the server holds of it, where the server holds something."""


class StateLostError(Exception):
    """Raised by ``Method.reply``: this worker lacks the state that the ask builds on. The server will resync it."""


class Method(Protocol):
    """A distributed optimisation method: both halves. The server's state is the method's own type."""

    @property
    def stateful(self) -> bool:
        """Whether a worker's next message depends on its earlier ones: its own state, or what the server holds."""

    def start(self, x0: Vector) -> Any:
        """Return the server's state before round 1."""

    def ask(self, state: Any, rng: np.random.Generator) -> Ask:
        """Open the round ``state.round``."""

    def resync(self, state: Any, i: int) -> Mapping[str, Vector]:
        """Return what worker i must be sent beside the ask because it may be behind; nothing for most."""

    def form(self, ask: Ask, i: int) -> Compressor:
        """Return the compressor whose packets worker i answers this ask with."""

    def reply(
        self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[WorkerState, Packet]:
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

    def quorum(self, ask: Ask) -> int:
        """Return how many replies ``update`` needs to use any of them; 0 where it uses whatever comes."""

    def knows(self, state: Any, i: int, version: int) -> bool:
        """Return whether a reply of worker i that builds on this version of its state can be used."""

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return the model x that the ask is about, as a worker knows it; shape (d,)."""

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return the vector that the server aggregates for a worker, given what it held of it and what it now reads.

        Args:
            held: the same of the worker's last reply that counted; None before the first.
            ask: what was asked.
            q: the decompressed reply.
        """

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the q for which ``absorb`` gives ``target``: the way an attacker steers what is aggregated."""

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """Clip and aggregate what ``absorb`` gave, shape (n', d). ``update`` calls it, and so does an attacker who
        plans ahead (with an ``ask.private`` that may lack things)."""

    def update(self, state: Any, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator) -> Any:
        """Close the round (clip, aggregate, step) with the decompressed replies by worker, in ascending order.

        Only replies that passed screening are here; a missing or rejected one is simply absent. ``ask.cohort`` tells
        who was asked.
        """


class Plain:
    """What a method inherits that keeps nothing about single workers, at either end."""

    stateful: ClassVar[bool] = False

    def quorum(self, ask: Ask) -> int:
        """Return that the method uses whatever comes."""
        return 0

    def resync(self, state: Any, i: int) -> Mapping[str, Vector]:
        """Return nothing."""
        return {}

    def knows(self, state: Any, i: int, version: int) -> bool:
        """Return whether the reply builds on no state either."""
        return version == 0

    def model(self, mine: WorkerState, ask: Ask) -> Vector:
        """Return the x that the ask carries."""
        return ask.vectors["x"]

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        """Return what came."""
        return q

    def aim(self, held: Vector | None, ask: Ask, target: Vector) -> Vector:
        """Return the target."""
        return target


@dataclass(frozen=True)
class Evaluation:
    """The model measured by the server.

    Args:
        loss: the full training objective f(x), over the honest workers' data.
        accuracy: share of correct predictions in [0, 1], on the test set where the task has one; None for tasks that
            predict no classes.
        gap: f(x) - f* where the task knows f*; else None.
    """

    loss: float
    accuracy: float | None
    gap: float | None = None
