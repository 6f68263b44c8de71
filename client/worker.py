"""The worker behind a client: an honest one, or a member of a Byzantine coalition.

A worker of the link lives as long as its process. Where Flower runs every message in a new process, what a worker knows
is kept in the state of the node between messages: ``link.worker_state``.
"""

import math
from functools import partial
from typing import Any, Protocol, cast

from attacks.faults import Faulty
from client.honest_replies import HonestReplies
from client.rollback import Rollback
from experiment.opened import Experiment
from foundation.errors import ConfigError
from link.worker_state import StateDict, state_from_dict, state_to_dict
from strategies.claims import Claim
from strategies.method import STATELESS, Ask, Packet, Vector, begin, kept_since, prepare
from strategies.randomness import Role, stream
from tasks.contract import MeasuredByClients

_STREAMS = Role.MODEL, Role.WORKER
"""Of a worker in a round: what its model draws from, and what its method does."""


class Worker(Protocol):
    """Answers the server's instructions for one seat."""

    index: int
    attacks: bool
    """Whether it is Byzantine: what it cannot do is then no fault of the task."""

    def follow(self, ask: Ask) -> None:
        """Go back to the server's checkpoint, if the server has; see ``client.rollback``.

        To be called before every ``answer`` of a worker that stays in its process.
        """

    def answer(self, ask: Ask) -> Packet | Faulty | None:
        """Return the reply to an instruction; None for no reply, Faulty if it is to go wrong on the way."""

    def measure(self, x: Vector, stats: Vector | None = None) -> Claim:
        """Return what this worker claims about a model; it changes nothing that the worker keeps.

        Args:
            x: shape (d,).
            stats: the running statistics that the server sent with it; None for none.
        """

    def batch_statistics(self, x: Vector, round_: int) -> Vector:
        """Return the statistics of batches of this worker's data at a model; it changes nothing that it keeps."""

    def remember(self) -> StateDict:
        """Return what the worker must know when it is asked again; nothing where it keeps nothing."""

    def recall(self, saved: StateDict) -> None:
        """Know exactly what ``remember`` returned; nothing at all where the state dict is empty."""


def measured(experiment: Experiment, worker: int, x: Vector, stats: Vector | None = None) -> Claim:
    """Return the measures of a model on what a worker has kept back, or else on its training data.

    Args:
        experiment: whose problem can measure.
        worker: which one.
        x: the model, shape (d,).
        stats: its running statistics, from the server; None for those that the task has for it.

    Raises:
        TaskError: these do not fit the model.
    """
    if (take := getattr(experiment.problem, "set_norm_stats", None)) is not None:
        take(stats)
    problem = cast(MeasuredByClients, experiment.problem)  # which has been checked when it was loaded
    found = problem.measure(worker, x)
    accuracy = None if found.accuracy is None or math.isnan(found.accuracy) else float(found.accuracy)
    declared = experiment.config.federation.declare_samples
    return Claim(float(found.loss), accuracy, int(problem.kept_back(worker)) if declared else None)


def statistics_of(experiment: Experiment, worker: int, x: Vector, round_: int) -> Vector:
    """Return batch statistics of a worker's own data.

    Args:
        experiment: whose model has running statistics.
        worker: which one.
        x: the model, shape (d,).
        round_: r, the model is x^r.

    Raises:
        ConfigError: it has none that clients answer.
    """
    problem: Any = experiment.problem
    if not getattr(problem, "answers_statistics", False):
        raise ConfigError("the model has no running statistics that clients answer")
    found: Vector = problem.batch_statistics(worker, x, round_)
    return found


class HonestWorker:
    """Runs the worker half of the method on its own data.

    Args:
        experiment: the opened experiment.
        index: which worker this is, 0 .. n-1; decides its data and its random streams.
        replies: where its replies are kept for a coalition of this process; None for nowhere.
    """

    attacks = False

    def __init__(self, experiment: Experiment, index: int, replies: HonestReplies | None = None) -> None:
        self.index = index
        self._replies = replies
        self._experiment = experiment
        self._method = experiment.method
        self._seed = experiment.config.federation.seed
        self._oracle = experiment.problem.oracle(index)
        self._state = STATELESS
        self._trail = Rollback(experiment.config.checkpoint.keep)

    def follow(self, ask: Ask) -> None:
        """Go back to the server's checkpoint, if the server has."""
        if self._method.stateful:
            self._trail.follow(ask.epoch, self, ask.round)

    def answer(self, ask: Ask) -> Packet:
        """Return the honest reply.

        Raises:
            StateLostError: this process lacks the state that the ask builds on.
        """
        rng = stream(self._seed, Role.WORKER, self.index, ask.round)
        mine = kept_since(self._state, ask)
        begin(self._oracle, partial(stream, self._seed, Role.MODEL, self.index, ask.round))
        state, packet = self._method.reply(self.index, mine, ask, self._oracle, rng)
        if not ask.probe:
            if self._replies is not None:
                self._replies.add(self.index, ask, mine, (state, packet))
            self._state = state
            following = (partial(stream, self._seed, role, self.index, ask.round + 1) for role in _STREAMS)
            prepare(self._oracle, *following)
        return packet

    def measure(self, x: Vector, stats: Vector | None = None) -> Claim:
        """Measure a model on this worker's data."""
        return measured(self._experiment, self.index, x, stats)

    def batch_statistics(self, x: Vector, round_: int) -> Vector:
        """Return the statistics of batches of this worker's data."""
        return statistics_of(self._experiment, self.index, x, round_)

    def remember(self) -> StateDict:
        """Return the worker's state; nothing where the method keeps none."""
        return state_to_dict(self._state) if self._method.stateful else {}

    def recall(self, saved: StateDict) -> None:
        """Take up a state that was remembered."""
        self._state = state_from_dict(saved)
