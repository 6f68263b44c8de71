"""The contract of a method: what the server asks, what a worker replies, how the server updates.

A method is a frozen dataclass of its hyper-parameters. Both halves, server and worker, stand in the method's one file,
in the order of the paper's algorithm; state goes in and comes out, and nothing here knows of processes or networks.

One round, as ``RobustStrategy`` drives it::

    ask    = method.ask(state, stream(seed, COIN, round_=k))                      # server
    packet = method.reply(worker_state, ask, oracle, stream(seed, WORKER, i, k))  # each sampled worker i
    row_i  = method.form(ask).decompress(packet)                                  # server, once screened
    state  = method.update(state, ask, {i: row_i}, stream(seed, AGGREGATE, round_=k))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.floating]
"""A vector of R^d: shape (d,), float32 or float64."""
Rows = NDArray[np.floating]
"""Vectors of several workers, one a row: shape (n', d)."""


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
    """A compressed vector as it travels: see the compressor of the same ``kind`` for what the fields mean.

    Args:
        kind: the compressor's ``kind``.
        dim: length d of the vector that it stands for.
        values: shape (number of values,), float32 or float64.
        seed: where the compressor draws its coordinates at random, the seed that names them.
    """

    kind: str
    dim: int
    values: Vector
    seed: int | None = None


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

    @property
    def kind(self) -> str:
        """Name in configs and packets."""

    def compress(self, v: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of Q(v)."""

    def decompress(self, packet: Packet) -> Vector:
        """Return Q(v), shape (d,). The packet must have passed ``flaw``."""

    def flaw(self, packet: Packet, dim: int, dtype: np.dtype[Any]) -> str | None:
        """Say why this packet is not one of this compressor for a vector of that length, or None if it is."""

    def forge(self, target: Vector, rng: np.random.Generator) -> Packet:
        """Return the packet of this form that serves an attacker best who wants the server to read ``target``."""

    def n_values(self, dim: int) -> int:
        """Return how many values a packet of a d-vector carries."""

    def omega(self, dim: int) -> float:
        """Return omega with E||Q(v) - v||^2 <= omega ||v||^2."""

    def norm_bound(self, dim: int) -> float:
        """Return D_Q with ||Q(v)|| <= D_Q ||v|| always."""


class Aggregator(Protocol):
    """A robust aggregation rule with its pre-steps."""

    def __call__(self, rows: Rows, f: int, rng: np.random.Generator) -> Vector:
        """Aggregate n' vectors of which up to ``f`` may be Byzantine.

        Args:
            rows: shape (n', d); never modified.
            f: how many rows to defend against; at most ``tolerates(n')``.
            rng: for random pre-steps.

        Returns:
            Shape (d,), dtype of ``rows``.
        """

    def tolerates(self, n: int) -> int:
        """Return the largest f for n rows that rule and pre-steps can take; -1 if they cannot take n rows at all."""


@dataclass(frozen=True, eq=False)
class Ask:
    """What the server wants from the workers that it samples in one round.

    Args:
        round: k, counted from 1.
        kind: the method's word for this kind of round, for example ``"full"`` or ``"difference"``.
        vectors: what every sampled worker is sent, by name; shape (d,) each.
        sample: how many clients to sample. Stays on the server.
        cohort: the sampled workers, in ascending order, where the experiment reveals them; else None.
    """

    round: int
    kind: str
    vectors: Mapping[str, Vector]
    sample: int = 0
    cohort: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Combined:
    """What the server makes of the rows of a round.

    Args:
        vector: shape (d,); None where these rows cannot be aggregated, and ``note`` says why.
        lam: the clipping radius used; None where nothing is clipped.
        clipped: row numbers that were longer than ``lam``.
        note: why there is no vector.
    """

    vector: Vector | None
    lam: float | None = None
    clipped: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What an update did, for the metrics of the round.

    Args:
        lam: the clipping radius used, or None where nothing is clipped.
        step_norm: length of the step that led to the model which this round asked about.
        clipped: workers whose vector was longer than ``lam``, in ascending order.
        note: what a reader of the log should know ("no quorum: ...").
    """

    lam: float | None = None
    step_norm: float = 0.0
    clipped: Sequence[int] = ()
    note: str = ""


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


@dataclass(frozen=True)
class NoWorkerState:
    """The state of a worker that keeps nothing between rounds."""


STATELESS = NoWorkerState()


class Method(Protocol):
    """A distributed optimisation method: both halves. Server state and worker state are the method's own types."""

    def start(self, x0: Vector) -> Any:
        """Return the server's state before round 0."""

    def ask(self, state: Any, rng: np.random.Generator) -> Ask:
        """Open the round ``state.round``."""

    def form(self, ask: Ask) -> Compressor:
        """Return the compressor whose packets answer this ask."""

    def reply(self, worker: Any, ask: Ask, oracle: Oracle, rng: np.random.Generator) -> tuple[Any, Packet]:
        """Answer as an honest worker; returns its next state and the packet."""

    def combine(self, ask: Ask, rows: Rows, rng: np.random.Generator) -> Combined:
        """Clip and aggregate the rows of a round. ``update`` calls it, and so does an attacker who plans ahead."""

    def update(self, state: Any, ask: Ask, replies: Mapping[int, Vector], rng: np.random.Generator) -> Any:
        """Close the round (clip, aggregate, step) with the decompressed replies by worker, in ascending order.

        Only replies that passed screening are here; a missing or rejected one is simply absent.
        """


@dataclass(frozen=True)
class Evaluation:
    """The model measured by the server.

    Args:
        loss: the full training objective f(x), over the honest workers' data.
        accuracy: share of correct predictions in [0, 1], on the test set where the task has one.
        gap: f(x) - f* where the task knows f*; else None.
    """

    loss: float
    accuracy: float
    gap: float | None = None
