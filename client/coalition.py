"""A Byzantine coalition: several seats, one brain.

The brain knows what its view allows, works out what every fellow would send if honest, lets the attack choose what the
server should read, and forges the packet that says so. Everything it knows of others it recomputes from data and seeds:
an omniscient coalition listens to nobody, so it needs no side channel and its attack is as reproducible as the rest of
the run. For the same reason members may also run as separate processes (as Flower nodes do) and still act as one.
"""

from functools import partial

import numpy as np

from attacks.attack import Attack, Repack
from attacks.view import View
from link.errors import ConfigError
from link.experiment import Experiment
from strategies.algorithm import STATELESS, Ask, Packet, Rows, Vector
from strategies.cohorts import stack
from strategies.randomness import Role, stream


class Coalition:
    """The brain. Its members, the seats that it holds, join one by one.

    Args:
        experiment: the opened experiment; its config names the method that is under attack.
        attack: what to do.
    """

    def __init__(self, experiment: Experiment, attack: Attack) -> None:
        self.experiment = experiment
        self._attack = attack
        self._members: set[int] = set()
        self._x0 = experiment.problem.initial()
        self._round = 0
        self._packets: dict[tuple[int, bool], Packet] = {}
        self._common: Packet | None = None

    def enlist(self, worker: int) -> None:
        """Take a seat into the coalition."""
        self._members.add(worker)

    def answer(self, worker: int, ask: Ask) -> Packet | None:
        """Return what the member ``worker`` sends in this round; None for silence."""
        seed = self.experiment.config.federation.seed
        if ask.round != self._round:
            self._round, self._packets, self._common = ask.round, {}, None
        if self._common is not None:
            return self._common
        # An equal generator for every member: they forge packets for the same coordinates.
        rng = stream(seed, Role.ATTACK, round_=ask.round)
        form = self.experiment.method.form(ask)
        packet = self._attack.packet(self._view(worker, ask), form, rng, partial(self._packet, worker, ask))
        if not isinstance(self._attack, Repack) and len(self._peers(worker, ask)) and self._attack.view != "own":
            self._common = packet  # all members know the same and draw the same, so all would say the same
        return packet

    def _view(self, worker: int, ask: Ask) -> View:
        federation = self.experiment.config.federation
        cohort = ask.cohort if ask.cohort is not None else tuple(sorted(self._members))
        return View(
            worker=worker,
            own=self._row(worker, ask),
            flipped=lambda: self._row(worker, ask, flipped=True),
            peers=lambda: self._rows(self._peers(worker, ask), ask),
            n=federation.clients,
            f=federation.byzantine,
            sampled=len(cohort),
            sampled_byzantine=len(self._members.intersection(cohort)),
            x=ask.vectors["x"],
            x0=self._x0,
            gamma=float(self.experiment.config.strategy.gamma),
            aggregate=lambda rows: self._aggregate(ask, rows),
        )

    def _peers(self, worker: int, ask: Ask) -> list[int]:
        """Return the workers whose honest messages this attack's view covers."""
        if self._attack.view == "own":
            return [worker]
        if self._attack.view == "coalition":
            return sorted(self._members)
        if ask.cohort is None:
            raise ConfigError("an omniscient attacker needs to know the cohort, which this server does not tell")
        return [i for i in ask.cohort if i not in self._members]

    def _packet(self, worker: int, ask: Ask, flipped: bool = False) -> Packet:
        """Return what ``worker`` sends if it is honest; worked out once a round for all members."""
        known = self._packets.get((worker, flipped))
        if known is None:
            oracle = self.experiment.problem.oracle(worker, flipped=flipped)
            rng = stream(self.experiment.config.federation.seed, Role.WORKER, worker, ask.round)
            _, known = self.experiment.method.reply(STATELESS, ask, oracle, rng)
            self._packets[worker, flipped] = known
        return known

    def _row(self, worker: int, ask: Ask, *, flipped: bool = False) -> Vector:
        return self.experiment.method.form(ask).decompress(self._packet(worker, ask, flipped))

    def _rows(self, workers: list[int], ask: Ask) -> Rows:
        return stack(self._x0, {i: self._row(i, ask) for i in workers})

    def _aggregate(self, ask: Ask, rows: Rows) -> Vector:
        """Return what the server would make of these rows: nothing where it could not aggregate them."""
        rng = stream(self.experiment.config.federation.seed, Role.AGGREGATE, round_=ask.round)
        vector = self.experiment.method.combine(ask, rows, rng).vector
        return np.zeros_like(self._x0) if vector is None else vector


class CoalitionMember:
    """One seat of a coalition, as a worker."""

    def __init__(self, coalition: Coalition, index: int) -> None:
        self.index = index
        self._coalition = coalition
        coalition.enlist(index)

    def answer(self, ask: Ask) -> Packet | None:
        """Return what the brain decides."""
        return self._coalition.answer(self.index, ask)
