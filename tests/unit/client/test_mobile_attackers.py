"""Attackers that change from round to round: who attacks when, what stays of it, and what is said about it."""

from functools import cache

import numpy as np
import pytest

from attacks.attack import mobile_attackers
from client.coalition import Coalition, CoalitionMember
from client.worker import HonestWorker
from deploy.inprocess import grid_of
from experiment.config import Config, changed, parse, parse_attack
from experiment.explain import sentences
from experiment.opened import Experiment, open_experiment
from foundation.errors import ConfigError
from strategies.method import Ask, Packet, Vector

TEXT = """
[federation]
clients = 5
byzantine = 2
seed = 4
[task]
kind = "digits"
model = "softmax"
dtype = "float64"
[strategy]
kind = "robust-sgd"
rounds = 10
gamma = 0.1
batch = 8
[attack]
kind = "bf"
membership = "mobile"
"""
ROUNDS = range(1, 5)


@cache
def opened(*overrides: str) -> Experiment:
    return open_experiment(changed(parse(TEXT), overrides).to_toml(), None, None)


def crew(experiment: Experiment) -> tuple[Coalition, list[CoalitionMember]]:
    assert experiment.config.attack is not None
    brain = Coalition(experiment, experiment.config.attack)
    return brain, [CoalitionMember(brain, i) for i in experiment.config.attackers]


def asked(experiment: Experiment, round_: int, **vectors: Vector) -> Ask:
    x = experiment.problem.initial() + 0.01 * round_
    return Ask(round_, "gradient", {"x": x, **vectors}, cohort=tuple(range(5)))


def drawn(round_: int) -> frozenset[int]:
    return mobile_attackers(5, 2, 4, round_)


def values(answer: object) -> Vector:
    assert isinstance(answer, Packet)
    return answer.values


def test_the_draw_takes_f_others_in_every_round() -> None:
    draws = [mobile_attackers(20, 5, 1, k) for k in range(1, 101)]
    assert all(len(draw) == 5 and max(draw) < 20 for draw in draws)
    assert len(set(draws)) == 100
    assert min(sum(i in draw for draw in draws) for i in range(20)) >= 10
    assert draws[0] == mobile_attackers(20, 5, 1, 1) != mobile_attackers(20, 5, 2, 1)


@pytest.mark.parametrize("method", ["robust-sgd", "robust-momentum-sgd"])
def test_a_seat_is_honest_but_for_the_rounds_that_it_is_drawn_in(method: str) -> None:
    experiment = opened(f"strategy.kind={method}", "strategy.batch=8")
    _, members = crew(experiment)
    honest = [HonestWorker(experiment, i) for i in range(5)]
    for k in ROUNDS:
        for i in range(5):
            ask = asked(experiment, k)
            sign = -1 if i in drawn(k) else 1
            assert np.array_equal(values(members[i].answer(ask)), sign * values(honest[i].answer(ask))), (k, i)


def single(experiment: Experiment, worker: int) -> CoalitionMember:
    """Return the member whose fellows are other processes, as on Flower."""
    assert experiment.config.attack is not None
    brain = Coalition(experiment, experiment.config.attack)
    for fellow in experiment.config.attackers:
        brain.enlist(fellow)
    return CoalitionMember(brain, worker)


@pytest.mark.parametrize("method", ["robust-sgd", "robust-momentum-sgd"])
def test_processes_of_their_own_agree_with_one_for_all(method: str) -> None:
    kind = f"strategy.kind={method}"
    experiment = opened(kind, "attack.kind=ipm", "attack.view=omniscient", "attack.membership=mobile")
    _, members = crew(experiment)
    alone = [single(experiment, i) for i in range(5)]
    for k in ROUNDS:
        ask = asked(experiment, k)
        for one, other in zip(members, alone, strict=True):
            assert np.array_equal(values(one.answer(ask)), values(other.answer(ask)))


def test_what_was_planted_stays_with_the_server_and_attackers_know_it() -> None:
    experiment = opened("strategy.kind=demoa")
    brain, members = crew(experiment)
    held: dict[int, Vector] = {}
    for k in ROUNDS:
        ask = asked(experiment, k)
        for i, member in enumerate(members):
            sent = values(member.answer(ask))
            assert np.array_equal(sent, -values(HonestWorker(experiment, i).answer(ask))) or i not in drawn(k)
            held[i] = experiment.method.absorb(held.get(i), ask, sent)
    for member in members:
        member.answer(asked(experiment, 5))
    known = brain.remember()
    for i in range(5):  # what honest workers add to is what their attack has left
        g = values(HonestWorker(experiment, i).answer(asked(experiment, 5)))
        row = experiment.method.absorb(held[i], asked(experiment, 5), g)
        assert np.allclose(known[f"shadow/{i}/row"], row, atol=1e-15)


def test_a_brain_that_is_restored_goes_on_as_one_that_was_not() -> None:
    experiment = opened("strategy.kind=robust-momentum-sgd", "attack.kind=ipm", "attack.membership=mobile")
    brain, members = crew(experiment)
    for k in (1, 2):
        for member in members:
            member.answer(asked(experiment, k))
    again, restored = crew(experiment)
    again.recall(brain.remember())
    for k in (3, 4):
        for one, other in zip(members, restored, strict=True):
            ask = asked(experiment, k)
            assert np.array_equal(values(one.answer(ask)), values(other.answer(ask)))


def test_all_clients_may_attack_and_the_data_of_all_count() -> None:
    experiment = opened()
    assert list(experiment.config.attackers) == list(range(5))
    assert experiment.setting is not None
    assert experiment.setting.honest == 5
    grid = grid_of(experiment)
    assert [seat.name for seat in grid.seats().values()] == [f"client-{i}" for i in range(5)]


def test_a_client_started_as_an_attacker_takes_membership_from_the_server() -> None:
    config = parse(TEXT)
    assert parse_attack("alie", (), config).membership == "mobile"
    assert parse(config.to_toml()) == config


def said(config: Config) -> str:
    return "\n".join(f"{word} {sentence}" for word, sentence in sentences(config, None))


def test_check_warns_of_methods_that_keep_something_of_each_client() -> None:
    stateless, stateful = parse(TEXT), parse(TEXT, ["strategy.kind=robust-momentum-sgd"])
    assert "2 clients drawn anew in every round" in said(stateless)
    assert "theory needs the same attackers" not in said(stateless)
    assert "same attackers throughout; after 10 rounds 99.4 % of clients have attacked" in said(stateful)


def test_parties_with_data_of_their_own_cannot_take_turns() -> None:
    own = ["task.kind=custom", "task.path=t.py:T", "task.partition=own"]
    with pytest.raises(ConfigError, match='membership = "mobile" needs one party that starts all clients'):
        parse(TEXT, own)
