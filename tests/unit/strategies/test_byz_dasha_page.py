"""Byz-DASHA-PAGE, and the books of estimates under it, on vectors of two numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Krum, TrimmedMean
from strategies.byz_dasha_page import DIFFERENCE, FULL, ByzDashaPage
from strategies.compressors import Identity, RandK
from strategies.estimates import START, EstimatesState
from strategies.method import HELD, STATELESS, Ask, Packet, Past, StateLostError, WorkerState
from strategies.randomness import Role, stream
from tests.simulation import Logistic, Simulation, optimum
from tests.toys import HEADS, TAILS, Quadratic, gaussian, rng, vector

DASHA = ByzDashaPage(
    n=4, f=1, gamma=0.5, p=0.25, batch=3, a=0.5, aggregator=CoordinateMedian(), compressor=Identity()
)  # fmt: skip


STARTED = EstimatesState(
    round=2,
    x=vector(1, 2),
    x_prev=vector(3, 4),
    g=vector(4, 4),
    estimates={i: vector(i, 10 * i) for i in range(4)},
)


# --- what the server asks ---


def test_the_first_round_asks_everybody_for_full_gradients_whatever_the_coin_says() -> None:
    ask = DASHA.ask(DASHA.start(vector(1, 2)), TAILS)
    assert (ask.round, ask.kind, ask.sample, list(ask.vectors)) == (1, START, 4, ["x"])
    assert DASHA.compressor_for(ask, 0) == Identity()


def test_later_the_coin_decides_what_is_computed_and_every_round_is_compressed() -> None:
    method = replace(DASHA, compressor=RandK(k=1))
    full, difference = method.ask(STARTED, HEADS), method.ask(STARTED, TAILS)
    assert (full.kind, full.sample, list(full.vectors)) == (FULL, 4, ["x"])
    assert (difference.kind, difference.sample, list(difference.vectors)) == (DIFFERENCE, 4, ["x", "x_prev"])
    assert difference.vectors["x_prev"].tolist() == [3, 4]
    assert method.compressor_for(full, 0) == method.compressor_for(difference, 0) == RandK(k=1)


def test_nobody_in_step_is_sent_anything_of_its_own() -> None:
    assert all(DASHA.resync(STARTED, i) == {} for i in range(4))
    assert all(DASHA.resync(DASHA.start(vector(1, 2)), i) == {} for i in range(4))


def test_who_is_behind_is_sent_its_estimate_and_who_has_none_the_aggregate() -> None:
    heard = {i: g for i, g in STARTED.estimates.items() if i != 3}
    state = replace(STARTED, behind=frozenset({1, 3}), estimates=heard)
    assert DASHA.resync(state, 0) == {}
    assert DASHA.resync(state, 1)[HELD].tolist() == [1, 10]
    assert DASHA.resync(state, 3)[HELD].tolist() == [4, 4]


def test_a_reply_must_build_on_the_round_before() -> None:
    assert [v for v in range(-1, 4) if DASHA.accepts_version(STARTED, 0, v)] == [1]
    assert [v for v in range(-1, 4) if DASHA.accepts_version(DASHA.start(vector(1, 2)), 0, v)] == [0]


# --- what a worker sends ---


def test_the_first_reply_is_the_full_gradient() -> None:
    mine, packet = DASHA.reply(0, STATELESS, Ask(1, START, {"x": vector(1, 2)}), Quadratic(gaussian), rng())
    assert (packet.kind, packet.values.tolist(), packet.version) == ("identity", [1, 2], 0)
    assert (mine.version, mine.vectors["h"].tolist(), mine.vectors["g"].tolist()) == (1, [1, 2], [1, 2])


MINE = WorkerState(4, {"h": vector(6, 0), "g": vector(2, 2)})


def test_a_round_of_full_gradients() -> None:
    oracle = Quadratic(gaussian)
    mine, packet = DASHA.reply(0, MINE, Ask(5, FULL, {"x": vector(1, 2)}), oracle, rng())
    # h' - h - a (g - h) = (1, 2) - (6, 0) - (2 - 6, 2 - 0) / 2
    assert packet.values.tolist() == [-3, 1]
    assert packet.version == 4
    assert (mine.version, mine.vectors["h"].tolist(), mine.vectors["g"].tolist()) == (5, [1, 2], [-1, 3])
    assert (oracle.full, oracle.batches) == (1, [])


def test_a_round_of_differences_on_one_minibatch() -> None:
    oracle = Quadratic(gaussian)
    ask = Ask(5, DIFFERENCE, {"x": vector(1, 2), "x_prev": vector(3, 1)})
    mine, packet = DASHA.reply(0, MINE, ask, oracle, rng())
    # h' = h + (x - x_prev) = (4, 1); the noise cancels.
    assert mine.vectors["h"] == pytest.approx(vector(4, 1))
    assert packet.values == pytest.approx(vector(4 - 6 + 2, 1 - 0 - 1))
    assert (oracle.full, oracle.batches) == (0, [3])


def test_a_worker_adds_to_its_estimate_what_the_server_reads() -> None:
    method = replace(DASHA, compressor=RandK(k=1))
    ask = Ask(5, FULL, {"x": vector(1, 2)})
    mine, packet = method.reply(0, MINE, ask, Quadratic(gaussian), rng())
    assert len(packet.values) == 1
    read = method.compressor_for(ask, 0).decompress(packet, np.dtype(np.float64))
    assert mine.vectors["g"].tolist() == (vector(2, 2) + read).tolist()
    assert sorted(np.abs(read).tolist()) in ([0, 6], [0, 2])  # one of (-3, 1), times d/k


@pytest.mark.parametrize("version", [0, 3, 5, 9])
def test_a_worker_whose_state_is_of_another_round_says_so(version: int) -> None:
    mine = replace(MINE, version=version) if version else STATELESS
    with pytest.raises(StateLostError, match=f"state of round {version}, but round 5 builds on 4"):
        DASHA.reply(0, mine, Ask(5, FULL, {"x": vector(1, 2)}), Quadratic(gaussian), rng())


@pytest.mark.parametrize("kind", [FULL, DIFFERENCE])
def test_a_worker_that_has_lost_its_state_goes_on_from_the_servers(kind: str) -> None:
    oracle = Quadratic(gaussian)
    ask = Ask(5, kind, {"x": vector(1, 2), "x_prev": vector(3, 1), HELD: vector(5, 6)})
    mine, packet = DASHA.reply(0, STATELESS, ask, oracle, rng())
    assert packet.values.tolist() == [-2, -2]  # a (h - g) with h = (1, 2), g = (5, 6)
    assert packet.version == 4
    assert (mine.version, mine.vectors["h"].tolist(), mine.vectors["g"].tolist()) == (5, [1, 2], [3, 4])
    assert (oracle.full, oracle.batches) == (1, [])


def test_a_worker_whose_reply_was_lost_takes_back_what_it_added_and_keeps_h() -> None:
    ask = Ask(5, FULL, {"x": vector(1, 2), HELD: vector(5, 6)})
    mine, packet = DASHA.reply(0, MINE, ask, Quadratic(gaussian), rng())
    assert packet.values.tolist() == [-4.5, -1]  # (1, 2) - (6, 0) - (5 - 6, 6 - 0) / 2
    assert mine.vectors["g"].tolist() == [0.5, 5]


# --- what the server makes of it ---


def test_the_first_round() -> None:
    state = DASHA.start(vector(1, 2))
    replies = {0: vector(1, 1), 1: vector(2, 2), 3: vector(9e9, 3)}
    after = DASHA.update(state, DASHA.ask(state, HEADS), replies, rng())
    assert after.g is not None
    assert after.g.tolist() == [2, 2]
    assert after.x.tolist() == [0, 1]
    assert {i: g.tolist() for i, g in after.estimates.items()} == {0: [1, 1], 1: [2, 2], 3: [9e9, 3]}
    assert (after.round, after.behind, after.report.note) == (2, frozenset({2}), "")


@pytest.mark.parametrize("came", [0, 1, 2])
def test_the_first_round_is_repeated_without_a_quorum(came: int) -> None:
    state = DASHA.start(vector(1, 2))
    after = DASHA.update(state, DASHA.ask(state, HEADS), {i: vector(2, 2) for i in range(came)}, rng())
    assert (after.g, after.x.tolist(), after.estimates, after.round) == (None, [1, 2], {}, 2)
    note = f"no quorum: {came} usable replies of the 3 that the first round needs; repeated"
    assert after.report.note == note
    again = DASHA.ask(after, TAILS)
    assert (again.kind, again.round) == (START, 2)
    mine, packet = DASHA.reply(
        0, WorkerState(1, {"h": vector(1, 2), "g": vector(1, 2)}), again, Quadratic(gaussian), rng()
    )
    assert DASHA.accepts_version(after, 0, packet.version)
    assert mine.version == 2


def test_a_later_round_adds_the_changes_and_aggregates_the_estimates_of_all() -> None:
    replies = {0: vector(10, 10), 1: vector(0, 1)}
    after = DASHA.update(STARTED, DASHA.ask(STARTED, TAILS), replies, rng())
    assert {i: g.tolist() for i, g in after.estimates.items()} == {0: [10, 10], 1: [1, 11], 2: [2, 20], 3: [3, 30]}
    assert after.g is not None
    assert after.g.tolist() == [2.5, 15.5]
    assert after.x.tolist() == [1 - 1.25, 2 - 7.75]
    assert after.x_prev is not None
    assert (after.x_prev.tolist(), after.round, after.behind) == ([1, 2], 3, frozenset({2, 3}))
    assert after.report.step_norm == pytest.approx(8**0.5), "the step that led to the model of this round"


def test_a_round_without_replies_goes_on_with_what_the_server_holds() -> None:
    after = DASHA.update(STARTED, DASHA.ask(STARTED, TAILS), {}, rng())
    assert after.estimates == dict(STARTED.estimates)
    assert after.g is not None
    assert (after.g.tolist(), after.behind) == ([1.5, 15], frozenset({0, 1, 2, 3}))


def test_a_client_first_heard_later_starts_from_the_aggregate() -> None:
    heard = {i: g for i, g in STARTED.estimates.items() if i != 2}
    state = replace(STARTED, behind=frozenset({2}), estimates=heard)
    after = DASHA.update(state, DASHA.ask(state, TAILS), {2: vector(1, -1)}, rng())
    assert list(after.estimates) == [0, 1, 2, 3]
    assert after.estimates[2].tolist() == [5, 3]


def test_all_f_are_defended_against_however_few_are_heard() -> None:
    method = replace(DASHA, n=10, f=2, aggregator=TrimmedMean())
    rows = np.array([[1.0], [2], [3], [-1e9], [1e9], [1e9]])
    got = method.combine(Ask(3, FULL, {}), rows, rng(), Past()).vector
    assert got is not None
    assert got.tolist() == [2.5]  # of 6 rows two are trimmed at either end


def test_an_estimate_stays_within_the_range_of_floats() -> None:
    top = float(np.finfo(np.float64).max)
    state = replace(STARTED, estimates={**STARTED.estimates, 3: vector(top, -top)})
    after = DASHA.update(state, DASHA.ask(state, TAILS), {0: vector(1, 1), 3: vector(top, 0)}, rng())
    assert after.estimates[3].tolist() == [top, -top]
    assert after.g is not None
    assert after.g.tolist() == [1.5, 5.5]


def test_too_few_estimates_for_the_rule_leave_the_aggregate() -> None:
    method = replace(DASHA, aggregator=Krum(), n=3)
    state = replace(STARTED, estimates={0: vector(1, 1), 1: vector(2, 2)})
    after = method.update(state, method.ask(state, TAILS), {0: vector(1, 1)}, rng())
    assert after.g is not None
    assert after.g.tolist() == [4, 4]
    assert "too few for the rule" in after.report.note


def test_attackers_aim_at_estimates() -> None:
    start, later = Ask(1, START, {}), Ask(2, FULL, {})
    held, target = vector(3, 4), vector(-1, -1)
    for ask in (start, later):
        assert DASHA.absorb(held, ask, DASHA.aim(held, ask, target)).tolist() == [-1, -1]
        assert DASHA.absorb(None, ask, DASHA.aim(None, ask, target)).tolist() == [-1, -1]
    assert DASHA.aim(held, later, target).tolist() == [-4, -5]


def test_updating_changes_no_argument() -> None:
    replies = {1: vector(6, 8), 3: vector(-60, 80)}
    DASHA.update(STARTED, DASHA.ask(STARTED, TAILS), replies, rng())
    assert STARTED.estimates[1].tolist() == [1, 10]
    assert (STARTED.x.tolist(), replies[3].tolist()) == ([1, 2], [-60, 80])


# --- whole runs ---


def opposite(i: int, ask: Ask, packet: Packet) -> Packet:
    return replace(packet, values=-packet.values)


@pytest.mark.parametrize("attacked", [False, True])
def test_it_converges_on_logistic_regression(attacked: bool) -> None:
    method = ByzDashaPage(
        n=7, f=2, gamma=0.5, p=0.2, batch=6, a=1 / 4, aggregator=CoordinateMedian(), compressor=RandK(k=2)
    )  # fmt: skip
    oracles = [Logistic(0)] * 7
    byzantine = (5, 6) if attacked else ()
    x = Simulation(method, oracles, np.zeros(5), byzantine=byzantine, cheat=opposite).run(400)
    assert np.linalg.norm(x - optimum(oracles[:1])) < 1e-5


@pytest.mark.parametrize("compressor", [Identity(), RandK(k=1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays(dtype: type, compressor: Identity | RandK) -> None:
    run = Simulation(replace(DASHA, compressor=compressor), [Quadratic(gaussian)] * 4, np.array([1, 2], dtype))
    for k in range(6):
        run.round(restarted=[k % 4], lost=[(k + 1) % 4])
        assert run.state.x.dtype == run.state.g.dtype == dtype
        assert all(g.dtype == dtype for g in run.state.estimates.values())
        assert all(v.dtype == dtype for mine in run.workers for v in mine.vectors.values())


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_how_often_the_coin_shows_heads(p: float) -> None:
    method, rounds = replace(DASHA, p=p), 2000
    full = sum(method.ask(STARTED, stream(3, Role.COIN, round_=k)).kind == FULL for k in range(rounds))
    assert abs(full - p * rounds) <= 5 * (rounds * p * (1 - p)) ** 0.5
