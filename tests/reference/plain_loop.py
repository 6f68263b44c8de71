"""Byz-VR-MARINA-PP as one plain loop, written from the paper and not from our classes: the reference for whole runs.

It shares with the product what defines a run to the last bit (the config, the random streams, the problem, the rule,
the compressor, the norm) and nothing of how a run is carried out: no Ask, no Flower, no processes.
"""

from collections.abc import Callable, Iterator

import numpy as np

from client.coalition import Coalition, CoalitionMember
from experiment.opened import Experiment
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity
from strategies.method import Ask, Packet, Vector
from strategies.randomness import Role, stream
from strategies.vectors import norm

Attacker = Callable[[int, int, Vector, Vector | None, list[int]], Vector | None]
"""(round, worker, x, x_prev, cohort) -> the vector that the server reads, or None for silence."""


def attackers(experiment: Experiment) -> Attacker | None:
    """The coalition of a local run, called directly."""
    config = experiment.config
    if config.attack is None:
        return None
    n, f = config.federation.clients, config.federation.byzantine
    brain = Coalition(experiment, config.attack)
    members = {i: CoalitionMember(brain, i) for i in range(n - f, n)}

    def attack(round_: int, worker: int, x: Vector, x_prev: Vector | None, cohort: list[int]) -> Vector | None:
        vectors = {"x": x} if x_prev is None else {"x": x, "x_prev": x_prev}
        told = tuple(cohort) if config.reveals_cohort else None
        ask = Ask(round_, "full" if x_prev is None else "difference", vectors, cohort=told)
        packet = members[worker].answer(ask)
        form = Identity() if x_prev is None else config.compressor
        if not isinstance(packet, Packet) or form.flaw(packet, x.size, x.dtype) is not None:
            return None
        return form.decompress(packet, x.dtype)

    return attack


def trajectory(experiment: Experiment) -> Iterator[Vector]:
    """Yield x^1, x^2, ... of a run whose config says byz-vr-marina-pp."""
    config, problem = experiment.config, experiment.problem
    n, f, seed = config.federation.clients, config.federation.byzantine, config.federation.seed
    s, rounds = experiment.method, config.strategy.rounds
    assert isinstance(s, ByzVRMarinaPP)
    assert s.alpha != "auto"
    alpha = np.inf if s.alpha is None else s.alpha
    attack = attackers(experiment)
    x, x_prev, g = problem.initial(), None, np.zeros(problem.dim, problem.dtype)
    for k in range(1, rounds + 1):
        full = bool(stream(seed, Role.COIN, round_=k).random() < s.p) or k == 1
        size = s.full_cohort if full else s.cohort
        cohort = sorted(stream(seed, Role.COHORT, round_=k).permutation(n)[:size].tolist())
        rows = []
        for i in cohort:
            row: Vector | None
            if attack is not None and i >= n - f:
                row = attack(k, i, x, None if full else x_prev, cohort)
            elif full:
                row = problem.oracle(i).full_gradient(x)
            else:
                assert x_prev is not None
                rng = stream(seed, Role.WORKER, i, k)
                new, old = problem.oracle(i).minibatch_gradients([x, x_prev], s.batch, rng)
                row = config.compressor.decompress(config.compressor.compress(new - old, rng), x.dtype)
            if row is None:
                continue
            if not full:
                assert x_prev is not None
                lam = alpha * norm(x - x_prev) if np.isfinite(alpha) else np.inf
                length = norm(row)
                if length > lam:  # min(1, lam / ||row||) row, scaled in double precision
                    row = (row.astype(np.float64) / length * lam).astype(row.dtype)
            rows.append(row)
        if rows:
            share = int(np.ceil(f * len(rows) / n))
            rule_rng = stream(seed, Role.AGGREGATE, round_=k)
            total = config.aggregator(np.stack(rows), min(share, config.aggregator.tolerates(len(rows))), rule_rng)
            g = total if full else g + total
        x, x_prev = x - s.gamma * g, x
        yield x
