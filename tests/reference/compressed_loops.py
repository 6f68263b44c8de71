"""Byz-DASHA-PAGE, the methods with error feedback and RoSDHB as one loop each: the papers' lines in order.

What is under test (strategies, codec, apps) must give the same models bit for bit. Compressors, rules, gradients and
attacks are the project's own; they have tests of their own. Nothing gets lost here, and a client says either something
in every round or nothing ever.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from client.coalition import Coalition, CoalitionMember
from experiment.opened import Experiment
from strategies.byz_dasha_page import ByzDashaPage
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import ByzEF21, ByzEF21BC
from strategies.byz_ef21_sgdm import ByzEF21SGDM
from strategies.compressors import Identity
from strategies.method import Ask, Packet, Vector
from strategies.randomness import Role, stream
from strategies.rosdhb import RoSDHB, RoSDHBLocal
from tests.reference.plain_steps import gamma_of, scheduled


class Parties:
    """The workers of a local run: who sends which packet.

    Args:
        experiment: the opened experiment.
    """

    def __init__(self, experiment: Experiment) -> None:
        config = experiment.config
        self.n, self.f, self.seed = config.federation.clients, config.federation.byzantine, config.federation.seed
        self.problem, self.dtype, self.everybody = experiment.problem, experiment.problem.dtype, range(self.n)
        self._told = config.reveals_cohort
        self._members: dict[int, CoalitionMember] = {}
        if config.attack is not None:
            brain = Coalition(experiment, config.attack)
            self._members = {i: CoalitionMember(brain, i) for i in range(self.n - self.f, self.n)}

    def rng(self, i: int, k: int) -> np.random.Generator:
        """The stream of worker i in round k."""
        return stream(self.seed, Role.WORKER, i, k)

    def attacks(self, i: int) -> bool:
        """Whether worker i is Byzantine."""
        return i in self._members

    def attack(self, i: int, k: int, kind: str, vectors: dict[str, Vector], **more: Any) -> Packet | None:
        """What the Byzantine worker i sends when asked so."""
        cohort = tuple(self.everybody) if self._told else None
        packet = self._members[i].answer(Ask(k, kind, vectors, cohort=cohort, **more))
        return packet if isinstance(packet, Packet) else None

    def first_gradients(self, x: Vector) -> dict[int, Vector]:
        """Everybody's full gradient at x^0, as the server reads it; silent ones are left out."""
        rows = {}
        for i in self.everybody:
            if not self.attacks(i):
                rows[i] = self.problem.oracle(i).full_gradient(x)
            elif (packet := self.attack(i, 1, "start", {"x": x})) is not None:
                rows[i] = Identity().decompress(packet, self.dtype)
        return rows

    def aggregate(self, rule: Any, rows: dict[int, Vector], k: int, center: Vector | None) -> Vector:
        """ARAgg of the rows in the order of workers, all f defended against."""
        aggregated: Vector = rule(
            np.stack([rows[i] for i in sorted(rows)]),
            min(self.f, rule.tolerates(len(rows))),
            stream(self.seed, Role.AGGREGATE, round_=k),
            center,
        )
        return aggregated


def dasha_page(experiment: Experiment) -> Iterator[Vector]:
    """Yield the models after round 1, 2, ... of a run whose config says byz-dasha-page."""
    s, q, rule = experiment.method, experiment.config.compressor, experiment.config.aggregator
    assert isinstance(s, ByzDashaPage)
    parties, config = Parties(experiment), experiment.config.strategy
    rounds = config.rounds
    x = parties.problem.initial()
    g_server = parties.first_gradients(x)
    h = {i: g.copy() for i, g in g_server.items()}
    g_worker = {i: g.copy() for i, g in g_server.items()}
    g = parties.aggregate(rule, g_server, 1, None)
    for k in range(2, rounds + 2):
        x_new = x - gamma_of(config, k - 1) * g
        yield x_new
        coin = stream(parties.seed, Role.COIN, round_=k)
        c = bool(coin.random() < s.p)
        seed = int(coin.bit_generator.random_raw()) if q.shared else None
        for i in parties.everybody:
            form = q.of_round(seed, i)
            packet: Packet | None
            if parties.attacks(i):
                vectors = {"x": x_new} if c else {"x": x_new, "x_prev": x}
                packet = parties.attack(i, k, "full" if c else "difference", vectors, seed=seed)
                if packet is None:
                    continue
            else:
                rng, oracle = parties.rng(i, k), parties.problem.oracle(i)
                if c:
                    h_new = oracle.full_gradient(x_new)
                else:
                    new, old = oracle.minibatch_gradients([x_new, x], s.batch, rng)
                    h_new = h[i] + (new - old)
                packet = form.compress(h_new - h[i] - s.a * (g_worker[i] - h[i]), rng)
                g_worker[i] = g_worker[i] + form.decompress(packet, parties.dtype)
                h[i] = h_new
            g_server[i] = g_server[i] + form.decompress(packet, parties.dtype)
        g = parties.aggregate(rule, g_server, k, g)
        x = x_new


def ef21(experiment: Experiment) -> Iterator[Vector]:
    """Yield the models after round 1, 2, ... of a run whose config says byz-ef21 or byz-ef21-bc."""
    s, q, rule = experiment.method, experiment.config.compressor, experiment.config.aggregator
    assert isinstance(s, ByzEF21 | ByzEF21BC)
    rounds = experiment.config.strategy.rounds
    parties, config, both_ways = Parties(experiment), experiment.config.strategy, s.kind == "byz-ef21-bc"
    x = w = parties.problem.initial()
    g_server = parties.first_gradients(x)
    g_worker = {i: g.copy() for i, g in g_server.items()}
    g = parties.aggregate(rule, g_server, 1, None)
    for k in range(2, rounds + 2):
        x = x - gamma_of(config, k - 1) * g
        yield x
        s_packet = None
        if both_ways:
            s_packet = q.compress(x - w, stream(parties.seed, Role.COIN, round_=k))
            w = w + q.decompress(s_packet, parties.dtype)
        else:
            w = x
        for i in parties.everybody:
            packet: Packet | None
            if parties.attacks(i):
                packet = parties.attack(i, k, "change", {} if both_ways else {"x": x}, packet=s_packet)
                if packet is None:
                    continue
            else:
                packet = q.compress(parties.problem.oracle(i).full_gradient(w) - g_worker[i], parties.rng(i, k))
                g_worker[i] = g_worker[i] + q.decompress(packet, parties.dtype)
            g_server[i] = g_server[i] + q.decompress(packet, parties.dtype)
        g = parties.aggregate(rule, g_server, k, g)


def momenta(experiment: Experiment) -> Iterator[Vector]:
    """Yield the models after round 1, 2, ... of a run whose config says byz-ef21-sgdm or byz-dm21."""
    s, q, rule = experiment.method, experiment.config.compressor, experiment.config.aggregator
    assert isinstance(s, ByzEF21SGDM | ByzDM21)
    rounds, batch, eta = experiment.config.strategy.rounds, s.batch, s.eta
    parties, config = Parties(experiment), experiment.config.strategy
    x = x_old = parties.problem.initial()
    v: dict[int, Vector] = {}
    u, g_worker, g_server = v.copy(), v.copy(), v.copy()
    for i in parties.everybody:
        if not parties.attacks(i):
            [first] = parties.problem.oracle(i).minibatch_gradients([x], batch, parties.rng(i, 1))
            v[i] = u[i] = g_worker[i] = g_server[i] = first
        elif (packet := parties.attack(i, 1, "start", {"x": x})) is not None:
            g_server[i] = Identity().decompress(packet, parties.dtype)
    g = parties.aggregate(rule, g_server, 1, None)
    for k in range(2, rounds + 2):
        x, x_old = x - gamma_of(config, k - 1) * g, x
        yield x
        for i in parties.everybody:
            if parties.attacks(i):
                sent = parties.attack(i, k, "change", {"x": x})
                if sent is None:
                    continue
            else:
                rng, oracle = parties.rng(i, k), parties.problem.oracle(i)
                new, old = oracle.minibatch_gradients([x, x_old], batch, rng)
                if isinstance(s, ByzEF21SGDM):
                    u[i] = v[i] = (1 - eta) * v[i] + eta * new
                elif s.vr:
                    v[i] = new + (1 - eta) * (v[i] - old)
                    u[i] = (1 - eta) * u[i] + eta * v[i]
                else:
                    v[i] = (1 - eta) * v[i] + eta * new
                    u[i] = (1 - eta) * u[i] + eta * v[i]
                sent = q.compress(u[i] - g_worker[i], rng)
                g_worker[i] = g_worker[i] + q.decompress(sent, parties.dtype)
            g_server[i] = g_server[i] + q.decompress(sent, parties.dtype)
        g = parties.aggregate(rule, g_server, k, g)


def rosdhb(experiment: Experiment) -> Iterator[Vector]:
    """Yield theta_1, theta_2, ... of a run whose config says rosdhb or rosdhb-local, all clients in every round."""
    s, q, rule = experiment.method, experiment.config.compressor, experiment.config.aggregator
    assert isinstance(s, RoSDHB)
    rounds = experiment.config.strategy.rounds
    parties, config, beta = Parties(experiment), experiment.config.strategy, s.beta
    local = s if isinstance(s, RoSDHBLocal) else None
    steps, mu = (local.local_steps, local.local_momentum) if local else (1, 0.0)
    x = parties.problem.initial()
    m = {i: np.zeros(parties.problem.dim, parties.dtype) for i in parties.everybody}
    g = None
    for t in range(1, rounds + 1):
        coin = stream(parties.seed, Role.COIN, round_=t)
        seed = int(coin.bit_generator.random_raw()) if q.shared else None
        for i in parties.everybody:
            form = q.of_round(seed, i)
            packet: Packet | None
            if parties.attacks(i):
                packet = parties.attack(i, t, "gradient", {"x": x}, seed=seed)
                if packet is None:
                    continue
            else:
                rng, oracle = parties.rng(i, t), parties.problem.oracle(i)
                eta = scheduled(local.local_schedule, local.local_gamma or 0.0, t - 1) if local else 0.0
                y, gradients = x, []
                for _ in range(steps):
                    if s.batch:
                        gradients.append(oracle.minibatch_gradients([y], s.batch, rng)[0])
                    else:
                        gradients.append(oracle.full_gradient(y))
                    if len(gradients) > 1 and mu:
                        gradients[-1] = mu * gradients[-2] + gradients[-1]
                    y = y - eta * gradients[-1]
                # (x - y_H) / (eta H)
                mean = gradients[0] if steps == 1 else sum(gradients[1:], gradients[0]) / steps
                packet = form.compress(mean, rng)
            m[i] = beta * m[i] + (1.0 - beta) * form.decompress(packet, parties.dtype)
        g = parties.aggregate(rule, m, t, g)
        x = x - gamma_of(config, t) * g
        yield x
