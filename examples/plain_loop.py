"""Byz-VR-MARINA-PP as one plain loop: the whole method on one page, without Flower, messages or processes.

    python examples/plain_loop.py                                  the demo's federation under its attack, 200 rounds
    python examples/plain_loop.py deploy/configs/a9a.toml strategy.rounds=60

It is written from the paper and not from our classes. It shares with the product what defines a run to the last bit
(config, random streams, task, rule, compressor, norm) and nothing of how a run is carried out. The tests compare
whole runs with it, over the network too: every x^k must be equal bit for bit.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from breakwater.compressors import Identity
from breakwater.methods import Ask, ByzVRMarinaPP, Packet, Role, Vector, norm, stream
from client.coalition import Coalition, CoalitionMember
from experiment.config import load
from experiment.opened import Experiment, open_experiment

Attacker = Callable[[int, int, Vector, Vector | None, list[int]], Vector | None]
"""(round, worker, x, x_prev, cohort) -> the vector that the server reads, or None for silence."""


def attackers(experiment: Experiment) -> Attacker | None:
    """Return the coalition of a local run, called directly."""
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
        if not isinstance(packet, Packet) or form.validate(packet, x.size, x.dtype) is not None:
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
    assert config.attack is None or config.attack.membership == "fixed"
    alpha = np.inf if s.alpha is None else s.alpha
    attack = attackers(experiment)
    x, x_prev, g = problem.initial(), None, np.zeros(problem.dim, problem.dtype)
    for k in range(1, rounds + 1):
        # A coin decides: full gradients from a large cohort, or gradient differences from a small one.
        full = bool(stream(seed, Role.COIN, round_=k).random() < s.p) or k == 1
        size = s.full_cohort if full else s.cohort
        cohort = sorted(stream(seed, Role.COHORT, round_=k).permutation(n)[:size].tolist())
        rows: dict[int, Vector] = {}
        for i in cohort:
            row: Vector | None
            if attack is not None and i >= n - f:  # the last f workers are Byzantine
                row = attack(k, i, x, None if full else x_prev, cohort)
            elif full:
                row = problem.oracle(i).full_gradient(x)
            else:  # Q(grad f_i(x) - grad f_i(x_prev)), both on the same minibatch
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
            rows[i] = row
        if rows:
            share = int(np.ceil(f * len(rows) / n))
            rule_rng = stream(seed, Role.AGGREGATE, round_=k)
            share = min(share, config.aggregator.tolerates(len(rows)))
            weights = [s.weights[i] for i in rows] if s.weights else None  # as the server declares them
            total = config.aggregator(np.stack(list(rows.values())), share, rule_rng, weights=weights)
            g = total if full else g + total
        x, x_prev = x - s.gamma_at(k) * g, x
        yield x


def main(arguments: list[str]) -> None:
    """Run a config, the demo's unless the first argument names another, and print how the model gets on."""
    demo = Path(__file__).resolve().parents[1] / "deploy" / "configs" / "demo.toml"
    path = Path(arguments[0]) if arguments else demo
    config = load(path, arguments[1:] or ["strategy.rounds=200"])
    data = os.environ.get("BREAKWATER_DATA")
    experiment = open_experiment(config.to_toml(), Path(data) if data else None, path.parent)
    attack, federation = experiment.config.attack, experiment.config.federation
    threat = "no attack" if attack is None else f"{federation.byzantine} of them run the attack {attack.kind}"
    print(f"{federation.clients} clients; {threat}; {experiment.problem.dim} parameters")
    print("round      loss  accuracy")
    for k, x in enumerate(trajectory(experiment), start=1):
        if k == 1 or k % max(1, experiment.config.strategy.rounds // 10) == 0:
            measured = experiment.problem.evaluate(x)
            print(f"{k:5d}  {measured.loss:8.4f}  {'' if measured.accuracy is None else f'{measured.accuracy:8.1%}'}")


if __name__ == "__main__":
    main(sys.argv[1:])
