"""Byz-NSGDM on vectors of two numbers, with the answers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from server.run_folder.state_dict import put_together, take_apart
from strategies.aggregators import CoordinateMedian, Krum
from strategies.aggregators.preaggregators import NearestNeighbourMixing
from strategies.byz_nsgdm import MOMENTUM, ByzNSGDM, ByzNSGDMState
from strategies.compressors import Identity
from strategies.method import STATELESS, Ask, Vector
from tests.simulation import Simulation
from tests.toys import Quadratic, rng, vector

METHOD = ByzNSGDM(
    n=5, f=1, gamma=0.5, beta=0.75, aggregator=CoordinateMedian(pre=(NearestNeighbourMixing(),)), compressor=Identity()
)


def after(state: ByzNSGDMState, *rounds: dict[int, Vector]) -> ByzNSGDMState:
    for replies in rounds:
        state = METHOD.update(state, replace(METHOD.ask(state, rng()), cohort=tuple(range(5))), replies, rng())
    return state


def alike(*numbers: float) -> dict[int, Vector]:
    return {i: vector(*numbers) for i in range(5)}


def test_a_workers_momentum_starts_at_zero() -> None:
    ask = Ask(1, MOMENTUM, {"x": vector(8, 16)})
    mine, packet = METHOD.reply(0, STATELESS, ask, Quadratic(), rng())
    assert packet.values.tolist() == [2, 4]
    _, packet = METHOD.reply(0, mine, replace(ask, round=2), Quadratic(), rng())
    assert packet.values.tolist() == [0.75 * 2 + 2, 0.75 * 4 + 4]
    assert packet.version == 1


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e150])
def test_steps_have_their_length_whatever_the_momenta(scale: float) -> None:
    state = METHOD.start(vector(1, 1))
    state = after(state, alike(3 * scale, -4 * scale))
    assert state.x == pytest.approx(vector(1 - 0.5 * 0.6, 1 + 0.5 * 0.8), rel=1e-12)
    before = state.x
    state = after(state, alike(0, 7 * scale))
    assert before - state.x == pytest.approx(vector(0, 0.5 / np.sqrt(2)), rel=1e-9)
    state = after(state, alike(0, 7 * scale))
    assert state.report.step_norm == pytest.approx(0.5 / np.sqrt(2))


def test_an_aggregate_of_zero_makes_no_step() -> None:
    state = after(METHOD.start(vector(1, 2)), alike(0, 0))
    assert (state.x.tolist(), state.step_norm) == ([1, 2], 0.0)
    assert state.report.note == "the aggregate is 0; x stays"


def test_a_round_steps_with_as_many_replies_as_the_rule_needs_and_not_with_fewer() -> None:
    start = METHOD.start(vector(1, 2))
    assert METHOD.quorum(start, METHOD.ask(start, rng())) == 3
    few = {i: v for i, v in alike(3, 4).items() if i < 2}
    state = after(start, few)
    assert state.x.tolist() == [1, 2]
    assert state.report.note == "no quorum: 2 usable replies of the 3 that the rule needs for f = 1; x stays"
    assert state.counted == {0: 1, 1: 1}
    assert state.missed == {2, 3, 4}
    enough = {i: v for i, v in alike(3, 4).items() if i < 3}
    assert after(state, enough).x != pytest.approx(vector(1, 2))
    krum = replace(METHOD, aggregator=Krum())
    assert krum.quorum(start, krum.ask(start, rng())) == 5


def test_a_lost_momentum_is_refused_and_replaced_by_the_last_aggregate() -> None:
    state = after(METHOD.start(vector(1, 2)), alike(3, 4))
    assert not METHOD.accepts_version(state, 2, 0)
    assert METHOD.accepts_version(state, 2, 1)
    assert METHOD.resync(state, 2) == {}
    state = after(state, {i: v for i, v in alike(3, 4).items() if i != 2})
    told = METHOD.resync(state, 2)
    assert told[MOMENTUM].tolist() == [3, 4]
    ask = Ask(3, MOMENTUM, {"x": vector(8, 16), **told})
    _, packet = METHOD.reply(2, STATELESS, ask, Quadratic(), rng())
    assert packet.values.tolist() == [0.75 * 3 + 2, 0.75 * 4 + 4]
    assert METHOD.accepts_version(state, 2, packet.version)


def test_the_state_survives_a_checkpoint() -> None:
    state = after(METHOD.start(vector(1, 2)), alike(3, 4), {i: vector(1, i) for i in range(4)})
    again = put_together(METHOD.start(vector(1, 2)), *take_apart(state))
    assert after(again, alike(1, 2)).x.tobytes() == after(state, alike(1, 2)).x.tobytes()
    assert (again.missed, again.counted) == (state.missed, state.counted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays(dtype: type) -> None:
    run = Simulation(METHOD, [Quadratic() for _ in range(5)], np.array([1, 2], dtype))
    for k in range(4):
        run.round(lost=[k % 3])
        assert run.state.x.dtype == run.state.g.dtype == dtype
