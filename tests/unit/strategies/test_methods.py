"""The methods on vectors of two numbers, with the answers worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Krum, Mean
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity, RandK
from strategies.marina import DIFFERENCE, FULL, MarinaState
from strategies.method import STATELESS, Ask, Vector
from strategies.randomness import Role, stream
from strategies.robust_sgd import RobustSGD
from tests.toys import HEADS, TAILS, Quadratic, gaussian, rng, vector

MARINA = ByzVRMarinaPP(
    n=4, f=1, gamma=0.5, p=0.25, cohort=2, full_cohort=4, batch=3, alpha=2.0,
    aggregator=CoordinateMedian(), compressor=Identity(),
)  # fmt: skip
SGD = RobustSGD(n=4, f=1, gamma=0.5, cohort=3, batch=0, aggregator=CoordinateMedian(), compressor=Identity())


# --- Byz-VR-MARINA-PP: what the server asks ---


def test_the_first_round_is_full_whatever_the_coin_says() -> None:
    ask = MARINA.ask(MARINA.start(vector(1, 2)), TAILS)
    assert (ask.round, ask.kind, ask.sample, list(ask.vectors)) == (1, FULL, 4, ["x"])
    assert ask.vectors["x"].tolist() == [1, 2]


def test_the_coin_decides_later() -> None:
    state = MarinaState(5, vector(1, 2), vector(3, 4), vector(0, 0), full_due=False)
    full, difference = MARINA.ask(state, HEADS), MARINA.ask(state, TAILS)
    assert (full.kind, full.sample, list(full.vectors)) == (FULL, 4, ["x"])
    assert (difference.kind, difference.sample, list(difference.vectors)) == (DIFFERENCE, 2, ["x", "x_prev"])
    assert difference.vectors["x"].tolist() == [1, 2]
    assert difference.vectors["x_prev"].tolist() == [3, 4]


def test_a_missed_full_round_is_repeated() -> None:
    state = MarinaState(5, vector(1, 2), vector(3, 4), vector(0, 0), full_due=True)
    assert MARINA.ask(state, TAILS).kind == FULL


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_how_often_the_coin_shows_heads(p: float) -> None:
    method = replace(MARINA, p=p)
    state = MarinaState(5, vector(1, 2), vector(3, 4), vector(0, 0), full_due=False)
    rounds = 4000
    full = sum(method.ask(state, stream(3, Role.COIN, round_=k)).kind == FULL for k in range(rounds))
    assert abs(full - p * rounds) <= 5 * (rounds * p * (1 - p)) ** 0.5


def test_full_gradients_travel_uncompressed() -> None:
    method = replace(MARINA, compressor=RandK(k=1))
    assert method.compressor_for(Ask(1, FULL, {}), 0) == Identity()
    assert method.compressor_for(Ask(1, DIFFERENCE, {}), 0) == RandK(k=1)


# --- what a worker sends ---


def test_a_worker_sends_its_full_gradient() -> None:
    oracle = Quadratic(gaussian)
    worker, packet = MARINA.reply(0, STATELESS, Ask(1, FULL, {"x": vector(1, 2)}), oracle, rng())
    assert (packet.kind, packet.values.tolist(), worker, oracle.batches) == ("identity", [1, 2], STATELESS, [])


def test_a_worker_sends_the_difference_on_one_minibatch() -> None:
    oracle = Quadratic(gaussian)
    ask = Ask(2, DIFFERENCE, {"x": vector(1, 2), "x_prev": vector(3, 1)})
    _, packet = MARINA.reply(0, STATELESS, ask, oracle, rng())
    assert packet.values == pytest.approx(vector(-2, 1)), "the noise of the minibatch cancels"
    assert oracle.batches == [3]
    _, packet = replace(MARINA, compressor=RandK(k=1)).reply(0, STATELESS, ask, oracle, rng())
    assert len(packet.values) == 1


# --- what the server makes of it ---


def full_round(replies: dict[int, Vector], state: MarinaState | None = None) -> MarinaState:
    state = state or MARINA.start(vector(1, 2))
    return MARINA.update(state, MARINA.ask(state, HEADS), replies, rng())


def test_a_full_round() -> None:
    after = full_round({0: vector(1, 1), 1: vector(2, 2), 2: vector(4, 40), 3: vector(-1e9, 1e9)})
    assert after.g is not None
    assert after.g.tolist() == [1.5, 21]  # medians
    assert after.x.tolist() == [1 - 0.75, 2 - 10.5]  # x - gamma g
    assert after.x_prev is not None
    assert after.x_prev.tolist() == [1, 2]
    assert (after.round, after.full_due) == (2, False)
    assert (after.report.lam, list(after.report.clipped), after.report.note) == (None, [], "")
    assert after.report.step_norm == 0.0


def test_full_gradients_are_never_clipped() -> None:
    state = MarinaState(5, vector(0, 0), vector(0, 1e-9), vector(0, 0), full_due=False)
    after = full_round({i: vector(1e6, 0) for i in range(4)}, state)
    assert after.g is not None
    assert after.g.tolist() == [1e6, 0]
    assert after.report.lam is None
    assert after.report.step_norm == pytest.approx(1e-9)


def ordinary_round(replies: dict[int, Vector], method: ByzVRMarinaPP = MARINA) -> MarinaState:
    """A round after a step of length 5, so with lam = 10."""
    state = MarinaState(7, vector(3, 4), vector(0, 0), vector(1, 1), full_due=False)
    return method.update(state, method.ask(state, TAILS), replies, rng())


def test_an_ordinary_round_clips_at_alpha_times_the_step() -> None:
    after = ordinary_round({1: vector(6, 8), 3: vector(-60, 80)})
    assert after.g is not None
    assert after.g == pytest.approx(vector(1 + (6 - 6) / 2, 1 + (8 + 8) / 2))  # (-60, 80) becomes (-6, 8)
    assert after.x == pytest.approx(vector(3 - 0.5 * 1, 4 - 0.5 * 9))
    assert (after.report.lam, after.report.step_norm, list(after.report.clipped)) == (10, 5, [3])
    assert (after.round, after.full_due, after.report.note) == (8, False, "")


def test_without_clipping_nothing_is_cut() -> None:
    after = ordinary_round({1: vector(6, 8), 3: vector(-60, 80)}, replace(MARINA, alpha=None))
    assert after.g is not None
    assert after.g.tolist() == [1 - 27, 1 + 44]
    assert (after.report.lam, list(after.report.clipped)) == (None, [])


def test_without_a_step_every_difference_is_cut_to_nothing() -> None:
    state = MarinaState(7, vector(3, 4), vector(3, 4), vector(1, 1), full_due=False)
    after = MARINA.update(state, MARINA.ask(state, TAILS), {1: vector(6, 8)}, rng())
    assert after.g is not None
    assert after.g.tolist() == [1, 1]
    assert after.report.lam == 0


def test_an_empty_ordinary_round_leaves_the_estimate() -> None:
    after = ordinary_round({})
    assert after.g is not None
    assert after.g.tolist() == [1, 1]
    assert after.x.tolist() == [2.5, 3.5], "the step with the old estimate is taken"
    assert (after.round, after.full_due, after.report.note) == (8, False, "no usable reply; g stays")


def test_an_ordinary_round_too_small_for_the_rule_leaves_the_estimate() -> None:
    after = ordinary_round({1: vector(6, 8)}, replace(MARINA, aggregator=Krum()))
    assert after.g is not None
    assert after.g.tolist() == [1, 1]
    assert after.report.note == "1 usable replies: too few for the rule; g stays"


@pytest.mark.parametrize(("came", "enough"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_a_full_round_needs_more_than_half(came: int, enough: bool) -> None:
    state = MarinaState(7, vector(3, 4), vector(0, 0), vector(1, 1), full_due=False)
    after = full_round({i: vector(2, 2) for i in range(came)}, state)
    assert after.g is not None
    assert after.g.tolist() == ([2, 2] if enough else [1, 1])
    assert after.full_due is not enough
    assert MARINA.ask(after, TAILS).kind == (DIFFERENCE if enough else FULL)
    if not enough:
        assert after.report.note == f"no quorum: {came} usable replies of the 3 that a full round needs; g stays"
        assert after.x.tolist() == [2.5, 3.5]


def test_until_a_first_quorum_the_model_stays() -> None:
    after = full_round({0: vector(2, 2)})
    assert after.g is None
    assert after.x.tolist() == [1, 2]
    assert (after.round, after.full_due) == (2, True)
    assert MARINA.ask(after, TAILS).kind == FULL
    again = full_round({i: vector(2, 2) for i in range(3)}, after)
    assert again.x.tolist() == [0, 1]


def test_updating_changes_no_argument() -> None:
    state = MarinaState(7, vector(3, 4), vector(0, 0), vector(1, 1), full_due=False)
    replies = {1: vector(6, 8), 3: vector(-60, 80)}
    MARINA.update(state, MARINA.ask(state, TAILS), replies, rng())
    assert state.x.tolist() == [3, 4]
    assert state.g is not None
    assert state.g.tolist() == [1, 1]
    assert replies[3].tolist() == [-60, 80]


# --- robust SGD ---


def test_robust_sgd_by_hand() -> None:
    state = SGD.start(vector(1, 2))
    ask = SGD.ask(state, rng())
    assert (ask.round, ask.kind, ask.sample, list(ask.vectors)) == (1, "gradient", 3, ["x"])
    after = SGD.update(state, ask, {0: vector(1, 1), 2: vector(4, 3), 3: vector(9e9, 2)}, rng())
    assert after.x.tolist() == [1 - 2, 2 - 1]
    assert (after.round, after.report.step_norm, after.report.note) == (2, 0.0, "")
    later = SGD.update(after, SGD.ask(after, rng()), {0: vector(0, 0)}, rng())
    assert later.report.step_norm == pytest.approx(5**0.5), "the step that led to the model of this round"


def test_robust_sgd_without_replies_stays() -> None:
    state = SGD.start(vector(1, 2))
    after = SGD.update(state, SGD.ask(state, rng()), {}, rng())
    assert (after.x.tolist(), after.round, after.report.note) == ([1, 2], 2, "no usable reply; the model stays")


def test_robust_sgd_with_the_mean_is_fedsgd() -> None:
    state = SGD.start(vector(1, 2))
    after = replace(SGD, aggregator=Mean()).update(
        state, SGD.ask(state, rng()), {0: vector(1, 1), 2: vector(3, 5)}, rng()
    )
    assert after.x.tolist() == [0, 0.5]


def test_robust_sgd_workers_send_full_or_minibatch_gradients() -> None:
    ask, oracle = Ask(1, "gradient", {"x": vector(1, 2)}), Quadratic(gaussian)
    assert SGD.reply(0, STATELESS, ask, oracle, rng())[1].values.tolist() == [1, 2]
    noisy = replace(SGD, batch=5).reply(0, STATELESS, ask, oracle, rng())[1].values
    assert noisy == pytest.approx(vector(1, 2) + rng().normal(size=2))
    assert oracle.batches == [5]
    compressed = replace(SGD, compressor=RandK(k=1))
    assert compressed.compressor_for(ask, 0) == RandK(k=1)
    assert len(compressed.reply(0, STATELESS, ask, oracle, rng())[1].values) == 1


# --- the dtype of the model is kept ---


@pytest.mark.parametrize("compressor", [Identity(), RandK(k=1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", [MARINA, SGD])
def test_the_dtype_stays(method: ByzVRMarinaPP | RobustSGD, dtype: type, compressor: Identity | RandK) -> None:
    run: Any = replace(method, compressor=compressor)
    state, oracle = run.start(np.array([1, 2], dtype)), Quadratic(gaussian)
    for coin in (HEADS, TAILS, TAILS, HEADS):
        ask = run.ask(state, coin)
        packets = [run.reply(i, STATELESS, ask, oracle, np.random.default_rng(i))[1] for i in range(4)]
        assert all(packet.values.dtype == dtype for packet in packets)
        state = run.update(
            state,
            ask,
            {i: run.compressor_for(ask, i).decompress(p, state.x.dtype) for i, p in enumerate(packets)},
            rng(),
        )
        assert state.x.dtype == dtype
