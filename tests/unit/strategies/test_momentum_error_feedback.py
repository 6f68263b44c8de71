"""Byz-EF21-SGDM, Byz-DM21 and Byz-VR-DM21: answers worked out by hand, and what their definitions imply."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian
from strategies.byz_dm21 import ByzDM21
from strategies.byz_ef21 import CHANGE, ByzEF21
from strategies.byz_ef21_sgdm import ByzEF21SGDM, MomentumErrorFeedback
from strategies.compressors import TopK
from strategies.estimates import START
from strategies.method import HELD, STATELESS, Ask, Method, Packet, StateLostError, Vector, WorkerState
from tests.simulation import Logistic, Simulation, optimum
from tests.toys import Quadratic, rng, vector

SHARED: dict[str, Any] = {"n": 7, "f": 2, "gamma": 0.3, "aggregator": CoordinateMedian(), "compressor": TopK(k=1)}
SGDM = ByzEF21SGDM(**SHARED, batch=4, eta=0.25)
DM21 = ByzDM21(**SHARED, batch=4, eta=0.5)
VR = ByzDM21(**SHARED, batch=4, eta=0.5, vr=True)
ALL = {"byz-ef21-sgdm": SGDM, "byz-dm21": DM21, "byz-vr-dm21": VR}


class Drawn:
    """grad f_i(x) = x + r on a minibatch, with the next r of a list for each minibatch that is drawn."""

    dim = 2

    def __init__(self, *noise: float) -> None:
        self.noise = list(noise)

    def full_gradient(self, x: Vector) -> Vector:
        return x.copy()

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        r = self.noise.pop(0)
        return [x + r for x in points]


def asked(round_: int, *x: float) -> Ask:
    return Ask(round_, CHANGE, {"x": vector(*x)})


def kept(mine: WorkerState) -> dict[str, list[float]]:
    return {name: v.tolist() for name, v in mine.vectors.items()}


# --- by hand ---


def test_one_momentum() -> None:
    oracle = Drawn(1, 3)
    mine, packet = SGDM.reply(0, STATELESS, Ask(1, START, {"x": vector(4, 0)}), oracle, rng())
    assert (packet.kind, packet.values.tolist(), packet.version) == ("identity", [5, 1], 0)
    assert (mine.version, kept(mine)) == (1, {"v": [5, 1], "g": [5, 1]})
    mine, packet = SGDM.reply(0, mine, asked(2, 2, 6), oracle, rng())
    # gradient (5, 9): v = 3/4 (5, 1) + 1/4 (5, 9) = (5, 3); v - g = (0, 2)
    assert (packet.values.tolist(), packet.version) == ([2], 1)
    assert (mine.version, kept(mine)) == (2, {"v": [5, 3], "g": [5, 3]})


def test_two_momenta() -> None:
    oracle = Drawn(1, 3)
    mine, _ = DM21.reply(0, STATELESS, Ask(1, START, {"x": vector(4, 0)}), oracle, rng())
    assert kept(mine) == {"v": [5, 1], "u": [5, 1], "g": [5, 1]}
    mine, packet = DM21.reply(0, mine, asked(2, 4, 6), oracle, rng())
    # gradient (7, 9): v = (6, 5), u = (5.5, 3); u - g = (0.5, 2)
    assert packet.values.tolist() == [2]
    assert kept(mine) == {"v": [6, 5], "u": [5.5, 3], "g": [5, 3]}


def test_two_momenta_with_variance_reduction() -> None:
    oracle = Drawn(1, 3)
    mine, _ = VR.reply(0, STATELESS, Ask(1, START, {"x": vector(4, 0)}), oracle, rng())
    assert kept(mine) == {"v": [5, 1], "u": [5, 1], "x": [4, 0], "g": [5, 1]}
    mine, packet = VR.reply(0, mine, asked(2, 4, 6), oracle, rng())
    # new (7, 9), old (7, 3): v = (7, 9) + 1/2 ((5, 1) - (7, 3)) = (6, 8), u = (5.5, 4.5); u - g = (0.5, 3.5)
    assert packet.values.tolist() == [3.5]
    assert kept(mine) == {"v": [6, 8], "u": [5.5, 4.5], "x": [4, 6], "g": [5, 4.5]}


def test_variance_reduction_compares_with_the_workers_own_last_model() -> None:
    mine = WorkerState(1, {"v": vector(5, 1), "u": vector(5, 1), "x": vector(4, 0), "g": vector(5, 1)})
    ask = Ask(9, CHANGE, {"x": vector(4, 6), HELD: vector(0, 0)})
    mine, packet = VR.reply(0, mine, ask, Drawn(3), rng())
    assert kept(mine) == {"v": [6, 8], "u": [5.5, 4.5], "x": [4, 6], "g": [5.5, 0]}, "as if rounds 2 to 8 had not been"
    assert packet.version == 8


# --- states that do not fit ---


@pytest.mark.parametrize("name", ALL)
def test_a_worker_without_its_momentum_restarts_it_and_takes_the_servers_estimate(name: str) -> None:
    method, ask = ALL[name], asked(5, 4, 9)
    with pytest.raises(StateLostError):
        method.reply(0, STATELESS, ask, Drawn(1), rng())
    resynced = replace(ask, vectors={**ask.vectors, HELD: vector(5, 4)})
    undone = WorkerState(5, {key: vector(99, 99) for key in ("v", "u", "x", "g")})
    for mine in (STATELESS, undone):
        after, packet = method.reply(0, mine, resynced, Drawn(1), rng())
        assert (packet.values.tolist(), packet.version) == ([6], 4)  # of (5, 10) - (5, 4)
        assert (after.vectors["v"].tolist(), after.vectors["g"].tolist()) == ([5, 10], [5, 10])


# --- what the definitions imply ---


def same_runs(one: Method, other: Method, rounds: int = 40) -> bool:
    """Whether two methods give the same models, bit for bit, with faults on the way."""
    runs = [Simulation(method, [Logistic(i) for i in range(7)], np.zeros(5)) for method in (one, other)]
    same = True
    for k in range(rounds):
        for run in runs:
            run.round(lost=[k % 7] if k % 5 == 3 else [])
        same &= runs[0].state.x.tobytes() == runs[1].state.x.tobytes()
    return same


def test_with_eta_1_and_full_gradients_it_is_byz_ef21() -> None:
    assert same_runs(ByzEF21SGDM(**SHARED, eta=1.0), ByzEF21(**SHARED))
    assert not same_runs(ByzEF21SGDM(**SHARED, eta=0.9), ByzEF21(**SHARED))


def test_variance_reduction_of_full_gradients_is_one_momentum_and_of_minibatches_is_not() -> None:
    for batch, same in ((0, True), (8, False)):
        one = ByzEF21SGDM(**SHARED, eta=0.2, batch=batch)
        assert same_runs(one, ByzDM21(**SHARED, eta=0.2, batch=batch, vr=True)) is same
        assert not same_runs(one, ByzDM21(**SHARED, eta=0.2, batch=batch))


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "more"), [(ByzEF21SGDM, {}), (ByzDM21, {"vr": False}), (ByzDM21, {"vr": True})])
def test_the_bound_of_stability_is_where_the_run_on_a_quadratic_begins_to_diverge(
    kind: Any, more: dict[str, bool], eta: float
) -> None:
    lengths, oracle, coin = [], Quadratic(), rng()
    for factor in (0.98, 1.02):
        method = kind(**SHARED, eta=eta, **more)
        x = np.ones(2)
        state = method.first(x, x)
        for _ in range(8000):
            x = x - factor * method.stability() * state[method.momentum]
            state = method.advance(state, x, oracle, coin)
            if abs(x).max() > 1e3:
                break
        lengths.append(abs(x).max())
    assert lengths[0] < 0.1 < 10 < lengths[1]


def test_steps_beyond_the_bound_and_a_needless_reduction_are_remarked_on() -> None:
    def remarks(method: MomentumErrorFeedback, at: float) -> list[str]:
        return list(replace(method, gamma=0.5).warnings(2 * at))

    assert remarks(replace(DM21, eta=0.1), 0.234) == []
    [remark] = remarks(replace(DM21, eta=0.1), 0.235)
    assert "gamma L = 0.235, and byz-dm21 with this eta is unstable beyond 0.2346" in remark
    assert remarks(replace(VR, eta=0.1), 37.9) == []
    assert len(remarks(replace(VR, eta=0.1), 38.1)) == 1
    assert len(remarks(replace(SGDM, eta=0.1), 38.1)) == 1
    assert ["no variance to reduce" in remark for remark in remarks(replace(VR, batch=0), 0.1)] == [True]
    assert list(SGDM.warnings(None)) == []


# --- whole runs ---


def opposite(i: int, ask: Ask, packet: Packet) -> Packet:
    return replace(packet, values=-packet.values)


@pytest.mark.parametrize("attacked", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_it_converges_on_logistic_regression(name: str, attacked: bool) -> None:
    method = replace(ALL[name], batch=0, compressor=TopK(k=2))
    oracles, byzantine = [Logistic(0)] * 7, (5, 6) if attacked else ()
    x = Simulation(method, oracles, np.zeros(5), byzantine=byzantine, cheat=opposite).run(600)
    assert np.linalg.norm(x - optimum(oracles[:1])) < 1e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_the_dtype_stays(name: str, dtype: type) -> None:
    run = Simulation(ALL[name], [Quadratic()] * 7, np.array([1, 2], dtype))
    for k in range(6):
        run.round(restarted=[k % 3], lost=[(k + 1) % 3])
        assert run.state.x.dtype == run.state.g.dtype == dtype
        assert all(v.dtype == dtype for mine in run.workers for v in mine.vectors.values())
