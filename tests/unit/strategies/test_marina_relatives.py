"""Byz-VR-MARINA, its 2.0 and the options of Byz-VR-MARINA-PP on vectors of two numbers, worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, GeometricMedian
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_2 import ByzVRMarina2
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity, RandK
from strategies.marina import DIFFERENCE, FULL, MarinaState
from strategies.method import STATELESS, Ask, Vector
from strategies.radius import AUTO, FACTOR
from tests.toys import HEADS, TAILS, Quadratic, rng, size, vector

COMMON: dict[str, Any] = {
    "n": 4, "f": 1, "gamma": 0.5, "p": 0.25, "batch": 3, "aggregator": CoordinateMedian(), "compressor": Identity(),
}  # fmt: skip
MARINA, MARINA_2 = ByzVRMarina(**COMMON), ByzVRMarina2(**COMMON)
PP = ByzVRMarinaPP(cohort=3, full_cohort=4, alpha=2.0, **COMMON)


def run_round(method: Any, state: MarinaState, coin: Any, replies: dict[int, Vector]) -> MarinaState:
    after: MarinaState = method.update(state, method.ask(state, coin), replies, rng())
    return after


def started(method: Any) -> MarinaState:
    """After a full round with g = [2, 4] that took x from [1, 2] to [0, 0]."""
    return run_round(method, method.start(vector(1, 2)), HEADS, {i: vector(2, 4) for i in range(4)})


# --- Byz-VR-MARINA ---


def test_marina_asks_everybody_and_sends_its_estimate() -> None:
    full, difference = MARINA.ask(started(MARINA), HEADS), MARINA.ask(started(MARINA), TAILS)
    assert (full.kind, full.sample, list(full.vectors)) == (FULL, 4, ["x"])
    assert (difference.kind, difference.sample) == (DIFFERENCE, 4)
    assert {name: v.tolist() for name, v in difference.vectors.items()} == {"x_prev": [1, 2], "g": [2, 4]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gamma", [0.1, 1 / 3, 7.7])
def test_marinas_workers_take_the_step_of_the_server_to_the_last_bit(gamma: float, dtype: type) -> None:
    draw = np.random.default_rng(1)
    method = replace(MARINA, gamma=gamma)
    state = method.start(draw.normal(size=50).astype(dtype))
    for _ in range(4):
        ask = method.ask(state, TAILS)
        assert method.model(STATELESS, ask).tobytes() == state.x.tobytes()
        assert method.model(STATELESS, ask).dtype == dtype
        state = method.update(state, ask, {i: draw.normal(size=50).astype(dtype) for i in range(4)}, rng())
    assert state.round == 5


def test_marina_aggregates_estimates_and_not_differences() -> None:
    ask = MARINA.ask(started(MARINA), TAILS)
    assert MARINA.absorb(None, ask, vector(1, 1)).tolist() == [3, 5]
    assert MARINA.aim(None, ask, vector(3, 5)).tolist() == [1, 1]
    full = MARINA.ask(started(MARINA), HEADS)
    assert MARINA.absorb(None, full, vector(1, 1)).tolist() == MARINA.aim(None, full, vector(1, 1)).tolist() == [1, 1]
    after = run_round(MARINA, started(MARINA), TAILS, {i: vector(i, -i) for i in range(4)})
    assert after.g is not None
    assert after.g.tolist() == [3.5, 2.5]
    assert after.x.tolist() == [-1.75, -1.25]
    assert (after.report.lam, list(after.report.clipped)) == (None, [])


def test_marinas_workers_send_differences() -> None:
    ask = MARINA.ask(started(MARINA), TAILS)
    assert MARINA.reply(0, STATELESS, ask, Quadratic(size), rng())[1].values.tolist() == [-1, -2]
    full = MARINA.ask(started(MARINA), HEADS)
    assert MARINA.reply(0, STATELESS, full, Quadratic(size), rng())[1].values.tolist() == [0, 0]


@pytest.mark.parametrize("method", [MARINA, MARINA_2])
@pytest.mark.parametrize("coin", [HEADS, TAILS])
def test_without_clipping_every_round_needs_a_quorum(method: Any, coin: Any) -> None:
    after = run_round(method, started(method), coin, {0: vector(1e9, 1e9), 1: vector(1e9, 1e9)})
    assert after.g is not None
    assert after.g.tolist() == [2, 4]
    assert after.full_due
    assert method.ask(after, TAILS).kind == FULL
    assert "no quorum: 2 usable replies of the 3" in after.report.note


@pytest.mark.parametrize("method", [MARINA, MARINA_2])
def test_all_f_are_defended_against_however_few_came(method: Any) -> None:
    """Of 8 clients with f = 3 only 5 answer: any 3 of these may be Byzantine, more than their share of 2."""
    seen: list[int] = []

    class Watching(GeometricMedian):
        def weigh(self, rows: Any, f: int, *rest: Any) -> tuple[Vector, None]:
            seen.append(f)
            return vector(0, 0), None

        def tolerates(self, n: int) -> int:
            return n

    watched = replace(method, n=8, f=3, aggregator=Watching())
    run_round(watched, watched.start(vector(1, 2)), HEADS, {i: vector(2, 4) for i in range(5)})
    assert seen == [3]


@pytest.mark.parametrize("method", [MARINA, MARINA_2])
def test_sums_of_the_largest_numbers_there_are_stay_finite(method: Any) -> None:
    largest = float(np.finfo(np.float64).max)
    state = started(method)
    ask = method.ask(replace(state, g=vector(largest, largest)), TAILS)
    row = method.absorb(vector(largest, largest), ask, vector(largest, -largest))
    assert row.tolist() == [largest, 0]
    assert np.isfinite(method.aim(vector(-largest, 0), ask, vector(largest, largest))).all()


# --- Byz-VR-MARINA 2.0 ---


def estimates(state: MarinaState) -> dict[int, list[float]]:
    return {i: v.tolist() for i, v in state.estimates.items()}


def test_marina_2_keeps_an_estimate_of_every_worker() -> None:
    state = run_round(MARINA_2, MARINA_2.start(vector(1, 2)), HEADS, {i: vector(i, 4) for i in range(4)})
    assert estimates(state) == {i: [i, 4] for i in range(4)}
    state = run_round(MARINA_2, state, TAILS, {i: vector(i, 1) for i in range(4)})
    assert estimates(state) == {i: [2 * i, 5] for i in range(4)}
    assert state.g is not None
    assert state.g.tolist() == [3, 5]
    state = run_round(MARINA_2, state, HEADS, {i: vector(7, i) for i in range(4)})
    assert estimates(state) == {i: [7, i] for i in range(4)}, "a full round starts afresh"


def test_an_estimate_that_lacks_a_difference_waits_for_a_full_round() -> None:
    state = run_round(MARINA_2, started(MARINA_2), TAILS, {i: vector(1, 1) for i in (0, 1, 2)})
    assert estimates(state) == {i: [3, 5] for i in (0, 1, 2)}
    assert not state.full_due
    state = run_round(MARINA_2, state, TAILS, {0: vector(1, 1), 1: vector(1, 1), 2: vector(1, 1), 3: vector(9, 9)})
    assert estimates(state) == {i: [4, 6] for i in (0, 1, 2)}
    assert state.report.note == "1 replies build on a lost one; their workers wait for the next full round"
    state = run_round(MARINA_2, state, TAILS, {i: vector(1, 1) for i in (1, 2, 3)})
    assert estimates(state) == {i: [5, 7] for i in (1, 2)}
    assert state.full_due, "two of four are up to date: no quorum"
    assert state.g is not None
    assert state.g.tolist() == [4, 6]
    state = run_round(MARINA_2, state, TAILS, {i: vector(i, 0) for i in range(4)})
    assert sorted(estimates(state)) == [0, 1, 2, 3]


def test_what_marina_2_aggregates_for_a_worker() -> None:
    difference, full = Ask(2, DIFFERENCE, {}), Ask(2, FULL, {})
    assert MARINA_2.absorb(vector(1, 2), difference, vector(3, 3)).tolist() == [4, 5]
    assert MARINA_2.aim(vector(1, 2), difference, vector(4, 5)).tolist() == [3, 3]
    assert MARINA_2.absorb(vector(1, 2), full, vector(3, 3)).tolist() == [3, 3]
    assert MARINA_2.aim(vector(1, 2), full, vector(4, 5)).tolist() == [4, 5]
    assert MARINA_2.stateful
    assert not MARINA.stateful


# --- options of Byz-VR-MARINA-PP ---


def test_plus_takes_the_mean_of_clipped_differences() -> None:
    state = MarinaState(7, vector(3, 4), vector(0, 0), vector(1, 1), full_due=False)  # lam = 10
    replies = {0: vector(0, 3), 1: vector(0, 9), 3: vector(0, 1e9)}
    after = run_round(replace(PP, plus=True), state, TAILS, replies)
    assert after.g is not None
    assert after.g == pytest.approx(vector(1, 1 + (3 + 9 + 10) / 3))
    assert list(after.report.clipped) == [3]
    full = run_round(replace(PP, plus=True), state, HEADS, {**replies, 2: vector(0, 0)})
    assert full.g is not None
    assert full.g.tolist() == [0, 6], "full rounds keep the rule"


def test_a_full_round_may_be_a_large_minibatch() -> None:
    method, ask = replace(PP, full_batch=40), Ask(1, FULL, {"x": vector(1, 2)})
    assert method.reply(0, STATELESS, ask, Quadratic(size), rng())[1].values.tolist() == [41, 42]
    assert PP.reply(0, STATELESS, ask, Quadratic(size), rng())[1].values.tolist() == [1, 2]


def test_a_learnt_radius_starts_with_two_full_rounds() -> None:
    method = replace(PP, alpha=AUTO)
    state = started(method)
    ask = method.ask(state, TAILS)
    assert ask.kind == FULL
    state = run_round(method, state, TAILS, {i: vector(2, 14) for i in range(4)})
    # g moved by 10 while x moved by sqrt(5).
    assert list(state.ratios) == pytest.approx([10 / 5**0.5])
    step = float(np.linalg.norm(state.x))
    assert method.ask(state, TAILS).kind == DIFFERENCE
    state = run_round(method, state, TAILS, {i: vector(1e9, 0) for i in range(3)})
    assert state.report.lam == pytest.approx(FACTOR * 10 / 5**0.5 * step), "not by what came in this round"
    assert state.ratios[1] == pytest.approx(1e9 / step)
    state = run_round(method, state, HEADS, {i: vector(2, 4) for i in range(4)})
    assert len(state.ratios) == 2, "later full rounds note nothing"


def test_a_second_full_round_without_a_quorum_is_repeated_too() -> None:
    method = replace(PP, alpha=AUTO)
    state = run_round(method, started(method), TAILS, {0: vector(2, 14)})
    assert state.ratios == ()
    assert method.ask(state, TAILS).kind == FULL


def test_compression_makes_the_first_learnt_radius_longer() -> None:
    method = replace(PP, alpha=AUTO, compressor=RandK(k=1))  # omega = 1
    state = run_round(method, started(method), TAILS, {i: vector(2, 14) for i in range(4)})
    assert list(state.ratios) == pytest.approx([2**0.5 * 10 / 5**0.5])
