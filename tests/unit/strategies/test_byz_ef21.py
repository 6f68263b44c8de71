"""Byz-EF21 and Byz-EF21-BC on vectors of two numbers, with the answers worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian
from strategies.byz_ef21 import CHANGE, ByzEF21, ByzEF21BC, EF21BCState
from strategies.compressors import Identity, TopK
from strategies.estimates import START, EstimatesState
from strategies.method import HELD, STATELESS, Ask, Packet, StateLostError, WorkerState
from tests.simulation import Logistic, Simulation, optimum
from tests.toys import Quadratic, rng, vector

EF21 = ByzEF21(n=3, f=1, gamma=0.5, aggregator=CoordinateMedian(), compressor=TopK(k=1))
BC = ByzEF21BC(n=3, f=1, gamma=0.5, aggregator=CoordinateMedian(), compressor=TopK(k=1))


STARTED: dict[str, Any] = {
    "round": 2,
    "x": vector(1, 2),
    "x_prev": vector(3, 4),
    "g": vector(4, 4),
    "estimates": {i: vector(i, 10 * i) for i in range(3)},
}


# --- Byz-EF21 ---


def test_every_round_asks_everybody_and_only_the_first_is_uncompressed() -> None:
    first, later = EF21.ask(EF21.start(vector(1, 2)), rng()), EF21.ask(EstimatesState(**STARTED), rng())
    assert (first.kind, first.sample, EF21.compressor_for(first, 0)) == (START, 3, Identity())
    assert (later.kind, later.sample, EF21.compressor_for(later, 0)) == (CHANGE, 3, TopK(k=1))
    assert later.vectors["x"].tolist() == [1, 2]


def test_a_worker_sends_what_its_estimate_lacks_most() -> None:
    oracle = Quadratic()
    mine, packet = EF21.reply(0, STATELESS, Ask(1, START, {"x": vector(5, 6)}), oracle, rng())
    assert (packet.values.tolist(), packet.version, mine.vectors["g"].tolist()) == ([5, 6], 0, [5, 6])
    mine, packet = EF21.reply(0, mine, Ask(2, CHANGE, {"x": vector(4, 9)}), oracle, rng())
    assert (packet.values.tolist(), packet.version) == ([3], 1)
    assert (mine.version, mine.vectors["g"].tolist()) == (2, [5, 9])
    mine, packet = EF21.reply(0, mine, Ask(3, CHANGE, {"x": vector(4, 9)}), oracle, rng())
    assert mine.vectors["g"].tolist() == [4, 9], "what was left out comes later"
    assert (oracle.full, oracle.batches) == (3, []), "error feedback computes full gradients"


def test_a_worker_without_its_state_says_so_and_goes_on_from_the_servers() -> None:
    ask = Ask(5, CHANGE, {"x": vector(4, 9)})
    with pytest.raises(StateLostError):
        EF21.reply(0, STATELESS, ask, Quadratic(), rng())
    told = replace(ask, vectors={**ask.vectors, HELD: vector(4, 1)})
    mine, packet = EF21.reply(0, STATELESS, told, Quadratic(), rng())
    assert (packet.values.tolist(), packet.version) == ([8], 4)
    assert (mine.version, mine.vectors["g"].tolist()) == (5, [4, 9])


def test_the_server_adds_and_aggregates() -> None:
    state = EstimatesState(**STARTED)
    after = EF21.update(state, EF21.ask(state, rng()), {0: vector(0, 5), 2: vector(9e9, 0)}, rng())
    assert after.g is not None
    assert after.g.tolist() == [1, 10]
    assert after.x.tolist() == [0.5, -3]
    assert after.behind == {1}


# --- Byz-EF21-BC ---


def test_the_broadcast_is_compressed_after_the_first_round() -> None:
    first = BC.ask(BC.start(vector(1, 2)), rng())
    assert (first.kind, first.packet, first.vectors["x"].tolist()) == (START, None, [1, 2])
    later = BC.ask(EF21BCState(**STARTED, w=vector(0, -5)), rng())
    assert (later.kind, dict(later.vectors)) == (CHANGE, {})
    assert later.packet is not None
    assert TopK(k=1).decompress(later.packet, np.dtype(np.float64)).tolist() == [0, 7]  # of x - w = (1, 7)


def test_workers_follow_the_broadcast_and_compute_gradients_there() -> None:
    state = EF21BCState(**STARTED, w=vector(0, -5))
    ask = BC.ask(state, rng())
    mine = WorkerState(1, {"g": vector(3, 1), "w": vector(0, -5)})
    assert BC.model(mine, ask).tolist() == [0, 2]
    mine, packet = BC.reply(0, mine, ask, Quadratic(), rng())
    assert (mine.version, mine.vectors["w"].tolist()) == (2, [0, 2])
    assert packet.values.tolist() == [-3]  # of grad f(w) - g = (-3, 1)
    assert mine.vectors["g"].tolist() == [0, 1]
    assert BC.model(mine, ask).tolist() == [0, 2], "it moves once a round"


def test_the_first_model_is_the_starting_point() -> None:
    ask = BC.ask(BC.start(vector(1, 2)), rng())
    assert BC.model(STATELESS, ask).tolist() == [1, 2]
    mine, packet = BC.reply(0, STATELESS, ask, Quadratic(), rng())
    assert {name: v.tolist() for name, v in mine.vectors.items()} == {"g": [1, 2], "w": [1, 2]}
    assert (packet.kind, packet.version) == ("identity", 0)


def test_the_server_follows_its_own_broadcast_whoever_answers() -> None:
    state = EF21BCState(**STARTED, w=vector(0, -5))
    for replies in ({}, {0: vector(0, 5), 2: vector(9e9, 0)}):
        after = BC.update(state, BC.ask(state, rng()), replies, rng())
        assert after.w.tolist() == [0, 2]
        assert after.round == 3
    start = BC.start(vector(1, 2))
    after = BC.update(start, BC.ask(start, rng()), {i: vector(2, 2) for i in range(3)}, rng())
    assert (after.w.tolist(), after.x.tolist()) == ([1, 2], [0, 1])


def test_who_missed_a_broadcast_is_sent_the_model_before_it() -> None:
    state = EF21BCState(**STARTED, w=vector(0, -5), behind=frozenset({1}))
    assert BC.resync(state, 0) == {}
    extra = BC.resync(state, 1)
    assert {name: v.tolist() for name, v in extra.items()} == {HELD: [1, 10], "w": [0, -5]}
    ask = BC.ask(state, rng())
    with pytest.raises(StateLostError):
        BC.reply(1, STATELESS, ask, Quadratic(), rng())
    with pytest.raises(StateLostError):
        BC.model(STATELESS, ask)
    mine, packet = BC.reply(1, STATELESS, replace(ask, vectors=extra), Quadratic(), rng())
    assert mine.vectors["w"].tolist() == [0, 2]
    assert (packet.values.tolist(), packet.version) == ([-8], 1)  # of (0, 2) - (1, 10)


@pytest.mark.parametrize("version", [0, 1, 2, 7])
def test_what_the_server_sends_is_believed_whatever_the_worker_has(version: int) -> None:
    state = EF21BCState(**STARTED, w=vector(0, -5), behind=frozenset({1}))
    ask = BC.ask(state, rng())
    mine = WorkerState(version, {"g": vector(7, 7), "w": vector(7, 7)})
    mine, packet = BC.reply(1, mine, replace(ask, vectors=BC.resync(state, 1)), Quadratic(), rng())
    assert (mine.vectors["w"].tolist(), packet.values.tolist(), mine.version) == ([0, 2], [-8], 2)


# --- whole runs ---


def opposite(i: int, ask: Ask, packet: Packet) -> Packet:
    return replace(packet, values=-packet.values)


@pytest.mark.parametrize("attacked", [False, True])
@pytest.mark.parametrize("kind", [ByzEF21, ByzEF21BC])
def test_it_converges_on_logistic_regression(kind: Any, attacked: bool) -> None:
    method = kind(n=7, f=2, gamma=0.3, aggregator=CoordinateMedian(), compressor=TopK(k=2))
    oracles = [Logistic(0)] * 7
    byzantine = (5, 6) if attacked else ()
    x = Simulation(method, oracles, np.zeros(5), byzantine=byzantine, cheat=opposite).run(400)
    assert np.linalg.norm(x - optimum(oracles[:1])) < 1e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", [EF21, BC])
def test_the_dtype_stays(method: Any, dtype: type) -> None:
    run = Simulation(method, [Quadratic()] * 3, np.array([1, 2], dtype))
    for k in range(6):
        run.round(restarted=[k % 3], lost=[(k + 1) % 3])
        assert run.state.x.dtype == run.state.g.dtype == getattr(run.state, "w", run.state.x).dtype == dtype
        assert all(v.dtype == dtype for mine in run.workers for v in mine.vectors.values())
