"""RoSDHB and RoSDHB-Local on vectors of two numbers, with the answers worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian
from strategies.compressors import Identity, Masked, RandK
from strategies.descent import DescentState
from strategies.method import STATELESS, Ask, Packet
from strategies.rosdhb import RoSDHB, RoSDHBLocal
from tests.simulation import Logistic, Simulation, optimum
from tests.toys import Quadratic, rng, vector

ROSDHB = RoSDHB(
    n=3, f=1, gamma=0.5, cohort=3, beta=0.75, batch=0, aggregator=CoordinateMedian(), compressor=Masked(k=1)
)  # fmt: skip
LOCAL = RoSDHBLocal(
    n=3, f=1, gamma=0.5, cohort=3, beta=0.75, batch=2, aggregator=CoordinateMedian(), compressor=RandK(k=1)
)  # fmt: skip


# --- the server's mask, and what workers send ---


def test_all_workers_of_a_round_have_the_servers_mask() -> None:
    state = ROSDHB.start(vector(1, 2))
    ask, again = ROSDHB.ask(state, np.random.default_rng(1)), ROSDHB.ask(state, np.random.default_rng(2))
    assert ask.seed is not None
    assert ask.seed != again.seed
    assert (ask.sample, list(ask.vectors)) == (3, ["x"])
    packets = [ROSDHB.reply(i, STATELESS, ask, Quadratic(), np.random.default_rng(i))[1] for i in range(3)]
    assert [len(packet.values) for packet in packets] == [1, 1, 1]
    read = [ROSDHB.compressor_for(ask, i).decompress(packets[i], np.dtype(np.float64)).tolist() for i in range(3)]
    assert read[0] == read[1] == read[2]
    assert read[0] in ([2, 0], [0, 4])  # d/k = 2 times one of (1, 2)


def test_local_workers_draw_their_own_masks() -> None:
    ask = LOCAL.ask(LOCAL.start(vector(1, 2)), rng())
    assert ask.seed is None
    packets = [LOCAL.reply(i, STATELESS, ask, Quadratic(), np.random.default_rng(i))[1] for i in range(3)]
    assert len({packet.seed for packet in packets}) == 3


def test_local_steps_send_the_model_delta_in_gradient_units() -> None:
    method = replace(LOCAL, compressor=Identity(), local_steps=3, local_gamma=0.5)
    oracle = Quadratic()
    ask = Ask(1, "gradient", {"x": vector(8, 16)})
    mine, packet = method.reply(0, STATELESS, ask, oracle, rng())
    # Every step halves x: (8, 4, 2), (16, 8, 4); (x - y_H) / (eta H) = (7, 14) / 1.5
    assert packet.values == pytest.approx(vector(14 / 3, 28 / 3))
    assert (mine, packet.version, oracle.batches) == (STATELESS, 0, [2, 2, 2])


# --- the momenta ---


def ask_at(state: DescentState, method: RoSDHB = ROSDHB) -> Ask:
    return replace(method.ask(state, rng()), cohort=(0, 1, 2))


def test_momenta_start_at_zero_and_decay_where_nothing_is_read() -> None:
    assert ROSDHB.absorb(None, Ask(1, "gradient", {}), vector(8, 0)).tolist() == [2, 0]
    assert ROSDHB.absorb(vector(2, 4), Ask(2, "gradient", {}), vector(8, 0)).tolist() == [3.5, 3]


def test_an_attacker_that_aims_hits() -> None:
    ask, target = Ask(2, "gradient", {}), vector(-1, 7)
    for held in (None, vector(2, 4)):
        assert ROSDHB.absorb(held, ask, ROSDHB.aim(held, ask, target)) == pytest.approx(target)


def test_a_round_aggregates_the_momenta_of_all_clients() -> None:
    state = ROSDHB.start(vector(1, 2))
    first = ROSDHB.update(state, ask_at(state), {0: vector(8, 0), 1: vector(16, 0)}, rng())
    assert {i: m.tolist() for i, m in first.held.items()} == {0: [2, 0], 1: [4, 0]}
    assert first.x.tolist() == [1 - 0.5 * 2, 2]  # the median of 2, 4 and the 0 of who was never heard
    second = ROSDHB.update(first, ask_at(first), {2: vector(0, 40)}, rng())
    assert {i: m.tolist() for i, m in second.held.items()} == {0: [2, 0], 1: [4, 0], 2: [0, 10]}
    assert second.x.tolist() == [0 - 0.5 * 2, 2], "who is not heard keeps its momentum"
    third = ROSDHB.update(second, ask_at(second), {}, rng())
    assert third.x.tolist() == [-2, 2], "a round without replies still steps"


def test_nothing_moves_before_anybody_was_heard() -> None:
    state = ROSDHB.start(vector(1, 2))
    after = ROSDHB.update(state, ask_at(state), {}, rng())
    assert (after.x.tolist(), after.round, after.report.note) == ([1, 2], 2, "no usable reply; the model stays")


def test_under_clipping_only_the_sampled_are_updated_and_aggregated() -> None:
    method = replace(ROSDHB, cohort=2, alpha=1.0)
    state = method.start(vector(1, 2))
    first = method.update(state, replace(method.ask(state, rng()), cohort=(0, 1)), {0: vector(8, 0)}, rng())
    assert first.x.tolist() == [0, 2]  # not clipped, as x had not moved; only client 0 counts
    ask = replace(method.ask(first, rng()), cohort=(1, 2))
    second = method.update(first, ask, {1: vector(0, 80)}, rng())
    assert {i: m.tolist() for i, m in second.held.items()} == {0: [2, 0], 1: [0, 20]}
    assert second.report.lam == 1.0
    assert second.g is not None
    assert np.linalg.norm(second.g - vector(2, 0)) == pytest.approx(1.0)


def test_updating_changes_no_argument() -> None:
    state = ROSDHB.start(vector(1, 2))
    first = ROSDHB.update(state, ask_at(state), {0: vector(8, 0)}, rng())
    replies = {0: vector(1, 1), 2: vector(5, 5)}
    ROSDHB.update(first, ask_at(first), replies, rng())
    assert (first.held[0].tolist(), list(first.held), first.x.tolist()) == ([2, 0], [0], [1, 2])
    assert replies[2].tolist() == [5, 5]


# --- whole runs ---


def opposite(i: int, ask: Ask, packet: Packet) -> Packet:
    return replace(packet, values=-packet.values)


@pytest.mark.parametrize("attacked", [False, True])
@pytest.mark.parametrize("kind", ["masked", "local", "local steps", "clipped"])
def test_it_converges_on_logistic_regression(kind: str, attacked: bool) -> None:
    common: dict[str, Any] = {"n": 7, "f": 2, "gamma": 0.2, "cohort": 7, "aggregator": CoordinateMedian(), "beta": 0.9}
    method: Any = RoSDHB(**common, batch=0, compressor=Masked(k=3))
    if kind == "local":
        method = RoSDHBLocal(**common, batch=0, compressor=RandK(k=3))
    elif kind == "local steps":
        method = RoSDHBLocal(**common, batch=0, compressor=RandK(k=3), local_steps=2, local_gamma=0.02)
    elif kind == "clipped":
        method = replace(method, cohort=5, alpha=4.0)
    oracles = [Logistic(0)] * 7
    byzantine = (5, 6) if attacked else ()
    x = Simulation(method, oracles, np.zeros(5), byzantine=byzantine, cheat=opposite).run(400)
    start = np.linalg.norm(optimum(oracles[:1]))
    assert np.linalg.norm(x - optimum(oracles[:1])) < 0.1 * start


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", [ROSDHB, LOCAL, replace(ROSDHB, alpha=2.0)])
def test_the_dtype_stays(method: Any, dtype: type) -> None:
    run = Simulation(method, [Quadratic() for _ in range(3)], np.array([1, 2], dtype))
    for k in range(4):
        run.round(lost=[k % 3])
        assert run.state.x.dtype == run.state.g.dtype == dtype
        assert all(m.dtype == dtype for m in run.state.held.values())
