"""A Byzantine coalition: several seats, one brain.

The brain knows what its view allows, works out what every fellow would send if honest as far as the attack looks at it,
lets the attack choose what the server should aggregate, and forges the packet that makes it so. Everything it knows of
others it recomputes from data and seeds: an omniscient coalition receives nothing, so it needs no side channel and its
attack is as reproducible as the rest of the run. For the same reason members may also run as separate processes (as
Flower nodes do) and still act as one. In one process it takes what honest workers have computed already; the bits are
the same.

Where membership is mobile (``attacks.attack``), a seat of it is Byzantine in some rounds, and honest in the others.

Where workers keep state, the brain simulates each one in its view, round by round. It sees only the rounds
that one of its seats is asked in, and hears of its own seats alone what the server sends to one that is behind: under
partial participation, or where honest replies get lost, its simulations of others are as good as it can know. A worker
whose simulation is behind has no message in view.

Memory: one vector for each message in view, of the current round only, and up to three where seats send different
vectors; with a method that keeps state also the simulated workers' states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attacks.attack import Attack, Copy, Individual, Repack, mobile_attackers
from attacks.classical import Silence
from attacks.faults import Fault, Faulty, WireFault
from attacks.view import View
from client.honest_replies import HonestReplies
from client.rollback import Rollback
from client.simulated import SimulatedWorkers
from client.worker import measured, statistics_of
from experiment.opened import Experiment, trigger_of
from foundation.errors import ConfigError
from link.worker_state import Page, StateDict, under
from strategies.claims import Claim
from strategies.local_steps import LocalSteps
from strategies.method import HELD, STATELESS, Ask, Compressor, Method, Packet, Past, Rows, StateLostError, Vector
from strategies.randomness import Role, stream
from strategies.vectors import mean_of_rows
from strategies.weights import Masses

_LATE = 1.25
"""A late reply comes after this many deadlines."""
_OVERSHOT = 0.9
"""A packet that fits its vector best if scaled by less than this reads as too long a one."""


@dataclass
class _Round:
    """The round that the brain is asked about, as its members share it, and what has been worked out.

    Args:
        ask: without what the server sent a single member.
        past: what the brain knows of the server's own vectors.
        x: the model that it asks about.
        peers: who is in view beside the member that answers, and is simulated; None before that was worked out.
        rows: the honest messages of ``peers``.
        target: what the server is to aggregate, once ``decided``.
        plan: where that differs from seat to seat, what each seat's is.
        forged: the packet that was forged last: for which target, of which form, and what it is.
        whom: the worker whose message that is, where the attack copies.
    """

    ask: Ask
    past: Past
    x: Vector
    peers: list[int] | None = None
    rows: Rows | None = None
    target: Vector | None = None
    decided: bool = False
    plan: Callable[[int], Vector] | None = None
    forged: tuple[Vector, Compressor, Packet] | None = None
    whom: int | None = None

    def known(self, target: Vector, form: Compressor) -> Packet | None:
        """Return the packet that was forged for exactly this target in this form; None if that was another."""
        last = self.forged
        return last[2] if last is not None and last[0] is target and last[1] == form else None


@dataclass
class _Memory:
    """All that is carried from round to round.

    Args:
        round: the latest round that was seen.
        x: its model, from which the server's last step can be told; None before round 1.
        held: what the server holds of a member, if all that it sent counted.
        heard: the round after which it held that.
        first: the first reply of a member, and its round; kept for replays alone.
    """

    round: int = 0
    x: Vector | None = None
    held: dict[int, Vector] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)
    first: dict[int, tuple[int, Packet]] = field(default_factory=dict)


class Coalition:
    """The brain. Its members, the seats that it holds, join one by one.

    Args:
        experiment: the opened experiment; its config names the method that is under attack.
        attack: what to do.
        deadline_s: of a round, for replies that are to miss it; None for the one of rounds over the link.
        replies: of the honest workers, where these run in this process.
    """

    def __init__(
        self,
        experiment: Experiment,
        attack: Attack,
        deadline_s: float | None = None,
        replies: HonestReplies | None = None,
    ) -> None:
        self.experiment = experiment
        self._deadline_s = deadline_s or experiment.config.federation.longest_deadline_s
        self._attack = attack
        self._method = experiment.config.for_clients().method  # on Flower a node has the server's config
        self._config = experiment.config
        self._seed = experiment.config.federation.seed
        self._enlisted: set[int] = set()
        self._here: set[int] = set()  # those of them that this process answers for
        self._drawn: frozenset[int] | None = None  # who is Byzantine in this round, where that changes
        self._x0 = experiment.problem.initial()
        self._simulated = SimulatedWorkers(
            experiment,
            sends=lambda i: i in self._enlisted or isinstance(attack, Copy),
            ours=lambda i: i in self._enlisted,
            blank=not attack.looks_at_own and attack.membership != "mobile",
            replies=replies,
            trigger=trigger_of(experiment, attack),
        )
        self._memory = _Memory()
        self._round: _Round | None = None
        self._trail = Rollback(experiment.config.checkpoint.keep)

    def enlist(self, worker: int, *, here: bool = False) -> None:
        """Take a seat into the coalition; ``here`` if this process answers for it, else another one does."""
        self._enlisted.add(worker)
        if here:
            self._here.add(worker)

    @property
    def _members(self) -> set[int]:
        """The seats of the coalition that are Byzantine in this round."""
        return self._enlisted if self._drawn is None else self._enlisted.intersection(self._drawn)

    def remember(self) -> StateDict:
        """Return what the brain carries from round to round, as a state dict."""
        memory = self._memory
        saved: dict[str, Page] = {"round": memory.round, **self._simulated.remember()}
        if memory.x is not None:
            saved["x"] = memory.x
        saved |= {f"held/{worker}": v for worker, v in memory.held.items()}
        saved |= {f"held/{worker}/round": round_ for worker, round_ in memory.heard.items()}
        for worker, (round_, packet) in memory.first.items():
            saved[f"first/{worker}/"] = round_
            saved |= {f"first/{worker}/{name}": value for name, value in vars(packet).items() if value is not None}
        return saved

    def recall(self, saved: StateDict) -> None:
        """Carry on from what was remembered."""
        known: Any = saved
        self._memory = _Memory(known.get("round", 0), known.get("x"))
        for worker, page in under(known, "held").items():
            self._memory.held[int(worker)] = page[""]  # type: ignore[assignment]  # pages of this name are vectors
            round_: Any = page.get("round", self._memory.round)
            self._memory.heard[int(worker)] = round_
        for worker, page in under(known, "first").items():
            round_ = page.pop("")
            self._memory.first[int(worker)] = round_, Packet(**page)  # type: ignore[arg-type]  # its own fields
        self._round = None
        self._simulated.recall(known)

    def follow(self, ask: Ask) -> None:
        """Go back to the server's checkpoint, if the server has; the members share one trail, as one brain."""
        self._trail.follow(ask.epoch, self, ask.round)

    def answer(self, worker: int, ask: Ask) -> Packet | Faulty | None:
        """Return what the member ``worker`` sends in this round; None for silence.

        Raises:
            StateLostError: this process lacks the state that the ask builds on.
        """
        if ask.probe:
            return self._probed(worker, ask)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is the server's to notice
            return self._answer(worker, ask)

    def _probed(self, worker: int, ask: Ask) -> Packet | None:
        """Show that this seat can answer, without a thought: a probe is no round, and nothing is learnt from it."""
        self._draw(ask.round)
        if worker in self._members and isinstance(self._attack, Silence | WireFault):
            return None
        return self._method.compressor_for(ask, worker).forge(np.zeros_like(self._x0), stream(self._seed, Role.ATTACK))

    def _answer(self, worker: int, ask: Ask) -> Packet | Faulty | None:
        self._turn_to(ask)
        if HELD in ask.vectors:
            self._memory.held[worker], self._memory.heard[worker] = ask.vectors[HELD], ask.round - 1
        if self._method.stateful:
            self._simulated.follow(worker, ask)  # also in rounds in which the attack does not look
        opened = self._open(worker, ask)
        attack, form = self._attack, self._method.compressor_for(ask, worker)
        if worker not in self._members:
            return self._sent(worker, ask, self._simulated.packet(worker, ask))
        if isinstance(attack, WireFault):
            return self._faulty(attack.of(worker), worker, ask, self._simulated.packet(worker, ask))
        if isinstance(attack, Repack):
            honest = self._simulated.packet(worker, ask, flipped=attack.flips_labels)
            return self._sent(worker, ask, attack.repack(honest, form))
        if (target := self._decide(worker, ask, opened)) is None:
            return None
        if opened.whom is not None and not self._method.stateful:
            original = self._simulated.packet(opened.whom, opened.ask)
            if self._reads(form, original, target):
                return original
        wanted = self._method.aim(self._held(worker, ask), ask, target)
        adds = wanted is not target  # the server adds what it reads to something
        packet = None if adds or form.shared else opened.known(target, form)
        if packet is None:
            if np.isfinite(target).all():  # what overflows would be screened
                largest = np.finfo(wanted.dtype).max / max(1.0, form.norm_bound(len(wanted)))
                wanted = np.clip(wanted, -largest, largest)
            packet = self._forge(form, wanted, ask, exact=adds)
            opened.forged = target, form, packet
        if self._method.stateful:
            packet = replace(packet, version=self._simulated.packet(worker, ask).version)
        return self._sent(worker, ask, packet)

    def _forge(self, form: Compressor, wanted: Vector, ask: Ask, *, exact: bool) -> Packet:
        """Return the packet that serves best to make the server read a vector.

        Rand-k and its like make the server read d/k times the vector on a few coordinates: as much as from an honest
        packet of it. Where that is added to what the server holds it would overshoot, more every round; ``exact``
        scales the packet down, so that it is right on its coordinates.
        """

        def forge(vector: Vector) -> Packet:
            # An equal generator for every member: they forge packets for the same coordinates.
            return form.forge(vector, stream(self._seed, Role.ATTACK, round_=ask.round))

        packet = forge(wanted)
        if not exact or form.validate(packet, len(wanted), wanted.dtype) is not None:
            return packet
        q = form.decompress(packet, wanted.dtype).astype(np.float64)
        square = float(np.sum(q * q))
        scale = float(np.sum(q * wanted)) / square if 0 < square < np.inf else 1.0
        return forge((scale * wanted).astype(wanted.dtype)) if 0 < scale < _OVERSHOT else packet

    def _turn_to(self, ask: Ask) -> None:
        """Let go of what only an earlier round needed; where the run has gone back, of everything.

        Raises:
            StateLostError: the round is the one before the latest: this seat is slow, and answers in vain.
        """
        memory = self._memory
        self._draw(ask.round)
        if ask.round == memory.round:
            return
        if ask.round == memory.round - 1:
            raise StateLostError(f"round {ask.round} is over: other seats have been asked in round {memory.round}")
        if ask.round < memory.round or memory.round < ask.since:
            self._memory, self._round = _Memory(round=ask.round), None
            self._simulated.forget()
        else:
            self._simulated.turn()
            for worker, round_ in memory.heard.items() if self._drawn is not None else ():
                if round_ == memory.round:  # what it sent while it was Byzantine stays with the server
                    self._simulated.hold(worker, memory.held[worker])

    def _draw(self, round_: int) -> None:
        """Draw who is Byzantine in a round, where that changes."""
        if self._attack.membership == "mobile":
            federation = self._config.federation
            self._drawn = mobile_attackers(federation.clients, federation.byzantine, self._seed, round_)

    def _open(self, worker: int, ask: Ask) -> _Round:
        """Return the round, opened by the first member that is asked in it and knows what it is about."""
        if self._round is None or self._round.ask.round != ask.round:
            memory = self._memory
            mine = self._simulated.follow(worker, ask).state if self._method.stateful else STATELESS
            x = self._method.model(mine, ask)
            shared = {name: v for name, v in ask.vectors.items() if name != HELD}
            x_prev = shared.get("x_prev", memory.x if memory.round == ask.round - 1 else None)
            past = Past()
            if x_prev is not None:  # x^k = x^{k-1} - gamma_{k-1} g^{k-1}
                size = self._method.step_size(replace(ask, round=ask.round - 1)) if ask.step is None else ask.step
                g = (x_prev - x) / size if size > 0 and self._method.steps_along_aggregate else None
                past = Past(shared.get("g", g), x_prev)
            memory.round, memory.x = ask.round, x
            self._round = _Round(replace(ask, vectors=shared) if HELD in ask.vectors else ask, past, x)
            if self._method.stateful and self._attack.looks_at_peers:
                self._known(worker, self._round)  # also in rounds in which the attack does not look
                for fellow in self._members.difference(self._here) if self._drawn is not None else ():
                    if fellow in (ask.cohort or ()):  # it attacks now, and is honest again later
                        self._follows(fellow, self._round.ask)
        return self._round

    def _decide(self, worker: int, ask: Ask, opened: _Round) -> Vector | None:
        """Return what the server is to aggregate for this member; None for silence."""
        if opened.decided:
            return opened.target
        if opened.plan is not None:
            return opened.plan(worker)
        view, attack, plan = self._view(worker, ask, opened), self._attack, None
        if isinstance(attack, Individual):
            plan = attack.plan(view, stream(self._seed, Role.ATTACK, round_=ask.round))
            target: Vector | None = plan(worker)
        elif isinstance(attack, Copy):
            opened.whom = attack.whom(view)
            self._simulated.keep_packets(self._enlisted | {opened.whom})
            target = view.message(opened.whom)
        else:
            target = attack(view, stream(self._seed, Role.ATTACK, round_=ask.round))
        if attack.unites and attack.view != "own" and (opened.peers is None or opened.peers):
            # Members that know the same decide the same.
            opened.target, opened.decided, opened.plan = target, plan is None, plan
        return target

    def _reads(self, form: Compressor, packet: Packet, target: Vector) -> bool:
        """Return whether the server would read this packet of another worker, if this form is due, as the target."""
        if form.validate(packet, self._x0.size, self._x0.dtype) is not None:
            return False
        return np.array_equal(form.decompress(packet, self._x0.dtype), target)

    def _sent(self, worker: int, ask: Ask, packet: Packet) -> Packet:
        """Note what the server holds of a member once it has read this packet."""
        form, memory = self._method.compressor_for(ask, worker), self._memory
        if self._method.stateful and form.validate(packet, self._x0.size, self._x0.dtype) is None:
            q = form.decompress(packet, self._x0.dtype)
            memory.held[worker] = self._method.absorb(self._held(worker, ask), ask, q)
            memory.heard[worker] = ask.round
        return packet

    def _held(self, worker: int, ask: Ask) -> Vector | None:
        """Return what the server holds of a member as this round begins, if all that it sent counted."""
        held = self._memory.held.get(worker)
        return None if held is None else self._method.fade(held, ask.round - 1 - self._memory.heard[worker])

    def _faulty(self, fault: Fault, worker: int, ask: Ask, own: Packet) -> Faulty | None:
        """Return the member's honest packet with what is to go wrong with it."""
        if fault is Fault.SILENCE:
            return None
        round_, packet = ask.round, own
        if fault is Fault.WRONG_ROUND:
            round_ += 1
        elif fault is Fault.REPLAY:
            round_, packet = self._memory.first.setdefault(worker, (ask.round, own))
        delay_s = _LATE * self._deadline_s if fault is Fault.LATE else 0.0
        return Faulty(fault, packet, round_, delay_s, last=ask.round >= self._config.strategy.rounds)

    # --- what is known of others ----------------------------------------------------------------------------------

    def _view(self, worker: int, ask: Ask, opened: _Round) -> View:
        federation = self._config.federation
        n, cohort = federation.clients, ask.cohort
        seats = sorted(self._members if cohort is None else self._members.intersection(cohort))
        return View(
            worker=worker,
            dim=self._x0.size,
            dtype=self._x0.dtype,
            honestly=lambda: self._simulated.row(worker, ask),
            flipped=lambda: self._simulated.row(worker, ask, flipped=True),
            ids=lambda: self._known(worker, opened),
            peers=lambda: self._rows(worker, opened),
            message=lambda i: self._message(i, worker, opened),
            n=n,
            f=federation.byzantine,
            sampled=n if cohort is None else len(cohort),
            sampled_byzantine=len(seats),
            seats=seats,
            x=opened.x,
            x0=self._x0,
            g=None if self._sends_differences(ask) else opened.past.g,
            gamma=self._method.step_size(ask),
            reach=self._reach(ask),
            aggregate=lambda rows: self._aggregate(opened, rows),
            rule=self._config.aggregator.kind,
            draw=lambda seat: stream(self._seed, Role.ATTACK, 1 + seat, ask.round),  # 0 is what all seats share
            all_rows=self._method.aggregates_all,
        )

    def _reach(self, ask: Ask) -> float:
        """Return how far a worker's own way goes in a round, in units of its message."""
        method = self._method
        if not isinstance(method, LocalSteps) or method.local_gamma is None:
            return method.step_size(ask)
        return method.local_steps * method.local_size(ask.round)

    def _sends_differences(self, ask: Ask) -> bool:
        """Return whether messages of this round are differences of gradients, which no g is to be compared with."""
        absorb: object = type(self._method).absorb
        return "x_prev" in ask.vectors and absorb is Method.absorb

    def _in_view(self, worker: int, ask: Ask) -> Sequence[int]:
        """Return the workers whose honest messages this attack's view covers."""
        if self._attack.view == "own":
            return [worker]
        if self._attack.view == "coalition":
            return sorted(self._members)
        if ask.cohort is None:
            raise ConfigError("an omniscient attacker needs the cohort, which this server does not send")
        if self._method.aggregates_all:
            return [i for i in range(self._config.federation.clients) if i not in self._members]
        return [i for i in ask.cohort if i not in self._members]

    def _known(self, worker: int, opened: _Round) -> list[int]:
        """Return those of them that are simulated up to this round."""
        if self._attack.view == "own":
            return [worker]
        if opened.peers is None:
            opened.peers = [i for i in self._in_view(worker, opened.ask) if self._follows(i, opened.ask)]
        return opened.peers

    def _follows(self, i: int, ask: Ask) -> bool:
        """Simulate a worker in this round, whether it is asked or not, and return whether its past is known."""
        if self._rests(i, ask):
            self._simulated.resting(i, ask)
            return True
        return self._simulated.try_to_follow(i, ask)

    def _rests(self, i: int, ask: Ask) -> bool:
        """Return whether a worker is not asked in this round, and the server aggregates what it holds of it."""
        return self._method.aggregates_all and ask.cohort is not None and i not in ask.cohort

    def _row(self, i: int, ask: Ask) -> Vector:
        """Return what the server aggregates for a worker in view."""
        if not self._rests(i, ask):
            return self._simulated.row(i, ask)
        row = self._simulated.resting(i, ask)
        return np.zeros_like(self._x0) if row is None else row

    def _rows(self, worker: int, opened: _Round) -> Rows:
        if self._attack.view == "own":
            return self._simulated.row(worker, opened.ask)[None, :]
        if opened.rows is None:
            known = self._known(worker, opened)
            opened.rows = np.empty((len(known), self._x0.size), self._x0.dtype)
            for row, i in zip(opened.rows, known, strict=True):
                row[:] = self._row(i, opened.ask)
                if not self._rests(i, opened.ask):
                    self._simulated.follow(i, opened.ask).row = row  # so that every message is in memory once
        return opened.rows

    def _message(self, i: int, worker: int, opened: _Round) -> Vector | None:
        covered = i in self._in_view(worker, opened.ask) and self._follows(i, opened.ask)
        return self._row(i, opened.ask) if covered else None

    def _aggregate(self, opened: _Round, rows: Rows) -> Vector:
        """Return what the server would make of these rows: of those that it would not screen, and 0 if of none."""
        past, sound = opened.past, np.isfinite(rows).all(axis=1)
        if (mass := self._mass_of(opened, len(rows))) is not None:
            past = replace(past, mass=mass[sound])
        if not sound.all():
            rows = rows[sound]
        if not len(rows) or not np.isfinite(opened.x).all():
            return np.zeros_like(self._x0)
        rng, ask = stream(self._seed, Role.AGGREGATE, round_=opened.ask.round), opened.ask
        if getattr(self._method.aggregator, "needs_root", False):
            # Only the server knows its own row: the mean of the honest ones is like it.
            honest = rows if opened.rows is None or not len(opened.rows) else opened.rows
            ask = replace(ask, root=mean_of_rows(honest))
        vector = self._method.combine(ask, rows, rng, past).vector
        return np.zeros_like(self._x0) if vector is None else vector

    def _mass_of(self, opened: _Round, count: int) -> Masses | None:
        """Return the weights of rows that an omniscient attack tries: those of the honest in view, then of its own."""
        cohort = range(self._method.n) if self._method.aggregates_all else opened.ask.cohort
        if cohort is None or not self._method.weights:
            return None
        seats = sorted(self._members.intersection(cohort))
        peers = opened.peers or seats[:1]  # repeated where not all are known, see ``attacks.search``
        workers = [*(peers[j % len(peers)] for j in range(max(1, len(cohort) - len(seats)))), *seats]
        return self._method.mass_of(workers[:count]) if count <= len(workers) else None


class CoalitionMember:
    """One seat of a coalition, as a worker."""

    attacks = True

    def __init__(self, coalition: Coalition, index: int) -> None:
        self.index = index
        self._coalition = coalition
        coalition.enlist(index, here=True)

    def follow(self, ask: Ask) -> None:
        """Let the brain go back to the server's checkpoint, if the server has."""
        self._coalition.follow(ask)

    def answer(self, ask: Ask) -> Packet | Faulty | None:
        """Return what the brain decides."""
        return self._coalition.answer(self.index, ask)

    def measure(self, x: Vector, stats: Vector | None = None) -> Claim:
        """Measure a model as an honest worker does."""
        return measured(self._coalition.experiment, self.index, x, stats)

    def batch_statistics(self, x: Vector, round_: int) -> Vector:
        """Return the statistics of batches as an honest worker does."""
        return statistics_of(self._coalition.experiment, self.index, x, round_)

    def remember(self) -> StateDict:
        """Return what the brain must know when this seat is asked again."""
        return self._coalition.remember()

    def recall(self, saved: StateDict) -> None:
        """Give the brain this seat's memory, and nothing else."""
        self._coalition.recall(saved)
