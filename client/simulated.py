"""Simulated honest workers: what they would keep and send, recomputed from data and seeds.

What honest workers of this process have computed in the round already is taken from them (``client.honest_replies``).
"""

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator

from client.honest_replies import HonestReplies
from experiment.opened import Experiment
from link.worker_state import Page, StateDict, state_from_dict, state_to_dict, under
from strategies.method import HELD, STATELESS, Ask, Oracle, Packet, StateLostError, Vector, WorkerState, begin
from strategies.randomness import Role, stream
from tasks.backdoor import PoisonedOracle, Trigger


class _Flat:
    """The oracle of a loss whose gradients are 0, with the length and type of a model."""

    def __init__(self, like: Vector) -> None:
        self.dim, self._dtype = like.size, like.dtype

    def full_gradient(self, x: Vector) -> Vector:
        """Return 0."""
        return np.zeros(self.dim, self._dtype)

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: Generator) -> list[Vector]:
        """Return 0 for each point; nothing is drawn."""
        return [self.full_gradient(x) for x in points]


@dataclass
class SimulatedWorker:
    """A worker as it would be if it had been honest all along, up to the latest round that was seen.

    Args:
        round: the latest round that it was followed in, or passed over.
        state: what it keeps after that.
        row: what the server aggregates for it, shape (d,).
        packet: its reply of that round, if it may be sent; dropped when the next one begins.
    """

    round: int = 0
    state: WorkerState = STATELESS
    row: Vector | None = None
    packet: Packet | None = None


class SimulatedWorkers:
    """Simulations of any workers, each followed round by round as far as its past is known.

    Args:
        experiment: the opened experiment.
        sends: returns whether the packets of a worker may be asked for; only those are kept, for the round.
        ours: returns whether no ask of a worker is missed here, as it is a member of the coalition.
        blank: nobody looks at what they send, but only at the version of their states: gradients are then taken for 0.
        replies: of honest workers in this process.
        trigger: returns what a worker plants into its images; None where it flips labels.
    """

    def __init__(
        self,
        experiment: Experiment,
        sends: Callable[[int], bool],
        ours: Callable[[int], bool],
        *,
        blank: bool = False,
        replies: HonestReplies | None = None,
        trigger: Callable[[int], Trigger] | None = None,
    ) -> None:
        self._trigger = trigger
        self._dirty: dict[int, Oracle] = {}  # by worker: all of its images have the trigger
        self.known: dict[tuple[int, bool], SimulatedWorker] = {}
        """By worker and whether its data are falsified: labels flipped, or a trigger planted."""
        self._experiment = experiment
        self._method = experiment.method
        self._seed = experiment.config.federation.seed
        self._dtype = experiment.problem.dtype
        self._sends, self._ours = sends, ours
        self._blank = _Flat(experiment.problem.initial()) if blank else None
        self._replies = HonestReplies() if replies is None else replies

    def turn(self) -> None:
        """Let go of what only the past round needed: everything, where workers keep no state."""
        if not self._method.stateful:
            self.known.clear()
        for copy in self.known.values():
            copy.packet = None

    def hold(self, worker: int, row: Vector) -> None:
        """Note what the server holds of a worker that has not always been honest."""
        if (copy := self.known.get((worker, False))) is not None:
            copy.row = row

    def forget(self) -> None:
        """Let go of everything."""
        self.known.clear()

    def remember(self) -> dict[str, Page]:
        """Return the simulations as a state dict, without the packets; nothing where workers keep no state."""
        saved: dict[str, Page] = {}
        for (worker, flipped), copy in self.known.items() if self._method.stateful else ():
            page = f"shadow/{worker}{'-' if flipped else ''}"
            saved |= {f"{page}/{name}": value for name, value in state_to_dict(copy.state).items()}
            saved[f"{page}/round"] = copy.round
            if copy.row is not None:
                saved[f"{page}/row"] = copy.row
        return saved

    def recall(self, saved: StateDict) -> None:
        """Know the simulations that a state dict holds, and no others."""
        self.known.clear()
        for name, page in under(saved, "shadow").items():
            round_: Any = page["round"]
            row: Any = page.get("row")
            self.known[int(name.rstrip("-")), name.endswith("-")] = SimulatedWorker(round_, state_from_dict(page), row)

    def keep_packets(self, workers: Container[int]) -> None:
        """Let go of the packets of all others: it has turned out that they are not sent."""
        for (worker, _), copy in self.known.items():
            if worker not in workers:
                copy.packet = None

    def follow(self, worker: int, ask: Ask, flipped: bool = False) -> SimulatedWorker:
        """Return the simulation of a worker after this round; worked out once a round.

        Args:
            worker: 0 .. n-1.
            ask: as the worker is asked.
            flipped: follow it on flipped labels, or images with a trigger.

        Raises:
            StateLostError: its past is not known up to here.
        """
        copy = self.known.get((worker, flipped))
        if copy is None or copy.round < ask.since:  # the run went back: nobody kept anything
            copy = SimulatedWorker()
        if copy.round != ask.round:
            replied = None if flipped else self._replies.find(worker, ask, copy.state)
            if replied is None:
                oracle = self._blank or self._oracle(worker, ask, copy.state, falsified=flipped)
                rng = stream(self._seed, Role.WORKER, worker, ask.round)
                begin(oracle, partial(stream, self._seed, Role.MODEL, worker, ask.round))
                replied = self._method.reply(worker, copy.state, ask, oracle, rng)
            state, packet = replied
            q = self._method.compressor_for(ask, worker).decompress(packet, self._dtype)
            held = ask.vectors.get(HELD, copy.row)
            if held is copy.row and held is not None and self._ours(worker):
                held = self._method.fade(held, ask.round - copy.round - 1)
            row = self._method.absorb(held, ask, q)
            copy = SimulatedWorker(ask.round, state, row, packet if self._sends(worker) else None)
            self.known[worker, flipped] = copy
        return copy

    def _oracle(self, worker: int, ask: Ask, state: WorkerState, *, falsified: bool) -> Oracle:
        """Return a worker's oracle; a falsified one is on flipped labels, or images with a trigger."""
        problem: Any = self._experiment.problem  # an attack with a trigger has looked whether it has images
        if not falsified or self._trigger is None:
            oracle: Oracle = problem.oracle(worker, flipped=falsified)
            return oracle
        trigger = self._trigger(worker)
        if worker not in self._dirty:
            self._dirty[worker] = problem.poisoned(worker, trigger)
        return PoisonedOracle(problem.oracle(worker), self._dirty[worker], trigger, self._method.model(state, ask))

    def resting(self, worker: int, ask: Ask) -> Vector | None:
        """Return what the server holds of a worker after a round in which it is not asked; None for nothing yet.

        A worker that is not ours may have been asked in rounds that nobody here has seen. Its vector is then taken to
        have stayed: that is what fading and fresh replies come to on average, once they balance.
        """
        copy = self.known.get((worker, False))
        if copy is None or copy.row is None or copy.round < ask.since:
            return None
        if self._ours(worker):
            return self._method.fade(copy.row, ask.round - copy.round)
        if copy.round != ask.round:
            copy = SimulatedWorker(ask.round, copy.state, self._method.fade(copy.row, 1))
            self.known[worker, False] = copy
        return copy.row

    def try_to_follow(self, worker: int, ask: Ask) -> bool:
        """Follow a worker and return whether its past is known."""
        with suppress(StateLostError):
            self.follow(worker, ask)
            return True
        return False

    def packet(self, worker: int, ask: Ask, flipped: bool = False) -> Packet:
        """Return what the worker sends; see ``follow``."""
        packet = self.follow(worker, ask, flipped).packet
        assert packet is not None  # noqa: S101  # it is among those who send
        return packet

    def row(self, worker: int, ask: Ask, flipped: bool = False) -> Vector:
        """Return what the server aggregates for the worker, shape (d,); see ``follow``."""
        row = self.follow(worker, ask, flipped).row
        assert row is not None  # noqa: S101  # a simulation that was followed has one
        return row
