"""The descent family and the clipping around it on vectors of two numbers, with the answers worked out by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Mean
from strategies.compressors import Identity, RandK
from strategies.descent import Descent, DescentState, local_gradient
from strategies.local_sgd import LocalSGD
from strategies.method import STATELESS, Ask, Oracle, Packet, Past, Rows, Vector, WorkerState
from strategies.radius import AUTO, FACTOR
from strategies.robust_momentum_sgd import MOMENTUM, RobustMomentumSGD
from strategies.robust_sgd import RobustSGD
from strategies.weights import Masses
from tests.toys import Quadratic, rng, size, vector

COMMON: dict[str, Any] = {
    "n": 4, "f": 1, "gamma": 0.5, "cohort": 3, "aggregator": CoordinateMedian(), "compressor": Identity(),
}  # fmt: skip
SGD = RobustSGD(batch=0, **COMMON)
MOMENTUM_SGD = RobustMomentumSGD(beta=0.75, batch=0, **COMMON)
LOCAL = LocalSGD(batch=0, local_steps=3, local_gamma=0.5, **COMMON)
CLIPPED = replace(SGD, alpha=2.0)


def run_round(method: Any, state: DescentState, replies: dict[int, Vector], cohort: tuple[int, ...]) -> DescentState:
    ask = replace(method.ask(state, rng()), cohort=cohort)
    after: DescentState = method.update(state, ask, replies, rng())
    return after


# --- the base: the step and the books ---


def test_the_books_of_a_round() -> None:
    first = run_round(SGD, SGD.start(vector(1, 2)), {0: vector(1, 1), 2: vector(3, 3)}, (0, 1, 2))
    assert first.x.tolist() == [0, 1]
    assert first.step_norm == pytest.approx(2**0.5)
    assert (first.counted, first.missed, first.held) == ({0: 1, 2: 1}, frozenset({1}), {})
    assert first.x_prev is not None
    assert first.x_prev.tolist() == [1, 2]
    second = run_round(SGD, first, {1: vector(0, 0)}, (1, 2, 3))
    assert (second.counted, second.missed) == ({0: 1, 1: 2, 2: 1}, frozenset({2, 3}))
    assert second.report.step_norm == pytest.approx(2**0.5)
    assert second.step_norm == 0
    assert second.x_prev is first.x_prev, "the last model that differed"


def test_the_rule_is_told_the_last_aggregate() -> None:
    state = run_round(SGD, SGD.start(vector(1, 2)), {0: vector(3, 4)}, (0,))
    centers: list[Vector | None] = []

    class Listening(CoordinateMedian):
        def weigh(
            self,
            rows: Rows,
            f: int,
            rng: np.random.Generator,
            center: Vector | None = None,
            mass: Masses | None = None,
        ) -> Any:
            centers.append(center)
            return super().weigh(rows, f, rng, center, mass)

    listening = replace(SGD, aggregator=Listening())
    for before in (SGD.start(vector(1, 2)), state):
        run_round(listening, before, {0: vector(3, 4)}, (0,))
    assert [None if center is None else center.tolist() for center in centers] == [None, [3, 4]]


@dataclass(frozen=True, kw_only=True)
class Holding(Descent):
    """v_i = held v_i / 2 + q, aggregated over everybody ever heard."""

    holds: ClassVar[bool] = True

    def reply(
        self, i: int, mine: WorkerState, ask: Ask, oracle: Oracle, rng: np.random.Generator
    ) -> tuple[WorkerState, Packet]:
        raise AssertionError("not asked here")

    def absorb(self, held: Vector | None, ask: Ask, q: Vector) -> Vector:
        return q if held is None else held / 2 + q

    def aggregated(self, held: Mapping[int, Vector], came: Mapping[int, Vector]) -> Mapping[int, Vector]:
        return held


def test_what_the_server_holds_of_workers() -> None:
    method = Holding(**{**COMMON, "aggregator": Mean()})
    first = run_round(method, method.start(vector(0, 0)), {0: vector(2, 0), 1: vector(0, 4)}, (0, 1, 2))
    assert first.x.tolist() == [-0.5, -1]
    second = run_round(method, first, {1: vector(0, 0)}, (0, 1, 2))
    assert {i: v.tolist() for i, v in second.held.items()} == {0: [2, 0], 1: [0, 2]}
    assert second.x.tolist() == [-1, -1.5], "the mean of [2, 0] and [0, 2]"
    wrapped = replace(method, alpha=100.0)
    third = run_round(wrapped, first, {1: vector(0, 0)}, (0, 1, 2))
    assert third.g is not None
    assert third.g == pytest.approx(vector(0, 2)), "only those who replied are aggregated"


# --- client momentum ---


def momentum(state: WorkerState) -> list[float]:
    return list(state.vectors[MOMENTUM])


def test_momentum_by_hand() -> None:
    ask = Ask(1, MOMENTUM, {"x": vector(4, 8)})
    first, packet = MOMENTUM_SGD.reply(0, STATELESS, ask, Quadratic(size), rng())
    assert (first.version, momentum(first)) == (1, [4, 8]), "the first momentum is the first gradient"
    assert (packet.version, packet.values.tolist()) == (0, [4, 8])
    later = Ask(5, MOMENTUM, {"x": vector(0, 0)})
    second, packet = MOMENTUM_SGD.reply(0, first, later, Quadratic(size), rng())
    assert (second.version, momentum(second)) == (5, [3, 6])
    assert (packet.version, packet.values.tolist()) == (1, [3, 6])
    assert momentum(first) == [4, 8], "states are not modified"


def test_the_momentum_that_is_kept_is_not_the_compressed_one() -> None:
    method = replace(MOMENTUM_SGD, compressor=RandK(k=1))
    state, packet = method.reply(0, STATELESS, Ask(1, MOMENTUM, {"x": vector(4, 8)}), Quadratic(size), rng())
    assert momentum(state) == [4, 8]
    assert len(packet.values) == 1


def test_a_worker_that_lost_its_momentum_goes_on_from_the_aggregate() -> None:
    ask = Ask(7, MOMENTUM, {"x": vector(0, 0), MOMENTUM: vector(4, 4)})
    fresh, packet = MOMENTUM_SGD.reply(0, STATELESS, ask, Quadratic(size), rng())
    assert (momentum(fresh), packet.version) == ([3, 3], 6)
    intact = WorkerState(5, {MOMENTUM: vector(8, 8)})
    kept, packet = MOMENTUM_SGD.reply(0, intact, ask, Quadratic(size), rng())
    assert (momentum(kept), packet.version) == ([6, 6], 5)


def test_who_is_resynced_and_whose_reply_is_known() -> None:
    state = MOMENTUM_SGD.start(vector(1, 2))
    assert MOMENTUM_SGD.resync(state, 0) == {}
    assert MOMENTUM_SGD.accepts_version(state, 0, 0)
    state = run_round(MOMENTUM_SGD, state, {0: vector(1, 1), 2: vector(3, 3)}, (0, 1, 2))
    assert MOMENTUM_SGD.resync(state, 0) == MOMENTUM_SGD.resync(state, 3) == {}
    assert MOMENTUM_SGD.resync(state, 1)[MOMENTUM].tolist() == [2, 2]
    assert [MOMENTUM_SGD.accepts_version(state, 0, version) for version in (0, 1, 2)] == [False, True, True]
    assert MOMENTUM_SGD.accepts_version(state, 1, 0)
    assert replace(MOMENTUM_SGD, alpha=1.0).resync(state, 1)[MOMENTUM].tolist() == [2, 2]
    assert not replace(MOMENTUM_SGD, alpha=1.0).accepts_version(state, 0, 0)


def test_which_methods_are_stateful() -> None:
    methods = (SGD, MOMENTUM_SGD, LOCAL, CLIPPED, replace(MOMENTUM_SGD, alpha=1.0))
    assert [method.stateful for method in methods] == [False, True, False, False, True]


# --- local steps ---


def test_local_steps_by_hand() -> None:
    # From 8 with eta = 0.5: gradients 8, 4, 2; y_3 = 1, (8 - 1) / (0.5 * 3) = 14/3.
    _, packet = LOCAL.reply(0, STATELESS, Ask(1, "gradient", {"x": vector(8, 0)}), Quadratic(size), rng())
    assert packet.values == pytest.approx(vector(14 / 3, 0))


def test_one_local_step_is_a_gradient() -> None:
    one = local_gradient(Quadratic(size), vector(8, 0), 3, 1, 0.5, rng())
    assert one.tolist() == [11, 3]


def test_local_steps_with_the_mean_are_fedavg() -> None:
    method = LocalSGD(**{**COMMON, "gamma": 1.5, "aggregator": Mean()}, batch=0, local_steps=3, local_gamma=0.5)
    state = method.start(vector(8, 16))
    replies = {
        i: method.reply(i, STATELESS, method.ask(state, rng()), Quadratic(size), rng())[1].values for i in range(3)
    }
    assert run_round(method, state, replies, (0, 1, 2)).x == pytest.approx(vector(1, 2)), "the workers' own models"


def test_local_steps_do_not_lose_digits_in_float32() -> None:
    x = np.array([1e4, 1e4], np.float32)

    class Slope(Quadratic):
        def full_gradient(self, x: Vector) -> Vector:
            return np.full_like(x, 0.1)

    v = local_gradient(Slope(), x, 0, 3, 1e-3, rng())
    assert v.dtype == np.float32
    assert v == pytest.approx([0.1, 0.1], rel=1e-6), "the difference of the models would be 0 here"


# --- clipping around them ---


def moved() -> DescentState:
    """The state after a first step of length 5 along g = [6, 8]: with alpha = 2 the radius is 10."""
    state = run_round(CLIPPED, CLIPPED.start(vector(3, 4)), {i: vector(6, 8) for i in range(3)}, (0, 1, 2))
    assert (state.x.tolist(), state.step_norm, state.report.lam) == ([0, 0], 5, None)
    return state


def test_the_first_round_is_not_clipped() -> None:
    state = run_round(CLIPPED, CLIPPED.start(vector(3, 4)), {i: vector(6e8, 8e8) for i in range(3)}, (0, 1, 2))
    assert state.g is not None
    assert state.g.tolist() == [6e8, 8e8]
    assert (state.report.lam, list(state.report.clipped)) == (None, [])


def test_later_rounds_clip_differences_from_the_last_aggregate() -> None:
    state = run_round(CLIPPED, moved(), {1: vector(6, 8), 2: vector(6, 18), 3: vector(66, 88)}, (1, 2, 3))
    # Differences [0, 0], [0, 10] (not longer than 10), [60, 80] -> [6, 8]: median [0, 8].
    assert state.g == pytest.approx(vector(6, 16))
    assert (state.report.lam, list(state.report.clipped), state.report.step_norm) == (10, [3], 5)
    assert state.x == pytest.approx(vector(-3, -8))


def test_an_empty_round_steps_along_the_last_aggregate() -> None:
    state = run_round(CLIPPED, moved(), {}, (1, 2, 3))
    assert state.g is not None
    assert state.g.tolist() == [6, 8]
    assert state.x.tolist() == [-3, -4]
    assert (state.report.note, state.missed) == ("no usable reply; g stays", frozenset({1, 2, 3}))


def test_a_model_that_stays_does_not_freeze_the_estimate() -> None:
    still = run_round(CLIPPED, moved(), {i: vector(0, 0) for i in range(3)}, (0, 1, 2))
    assert (still.x.tolist(), still.step_norm) == ([0, 0], 0)
    after = run_round(CLIPPED, still, {i: vector(1, 0) for i in range(3)}, (0, 1, 2))
    assert after.report.lam == 10, "the radius of the last step that moved the model"
    assert after.g is not None
    assert after.g.tolist() == [1, 0]


def test_the_largest_numbers_there_are() -> None:
    largest = float(np.finfo(np.float32).max)
    method = replace(SGD, alpha=2.0)
    state = method.start(np.array([3, 4], np.float32))
    state = run_round(method, state, {i: np.array([6, 8], np.float32) for i in range(3)}, (0, 1, 2))
    hostile = {i: np.array([-largest, largest], np.float32) for i in range(3)}
    state = run_round(method, state, hostile, (0, 1, 2))
    assert state.g is not None
    assert state.g.dtype == np.float32
    assert np.linalg.norm(state.g - [6, 8]) == pytest.approx(10, rel=1e-6)


def test_an_attacker_who_could_not_work_out_the_servers_vectors() -> None:
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [90.0, 90.0]])
    ask = CLIPPED.ask(moved(), rng())
    combined = CLIPPED.combine(ask, rows, rng(), Past())
    assert combined.vector is not None
    assert combined.vector.tolist() == [2, 2], "around no centre"
    combined = CLIPPED.combine(ask, rows, rng(), Past(g=vector(1, 1)))
    assert combined.vector is not None
    assert (combined.vector.tolist(), combined.lam) == ([2, 2], None), "no clip"


def test_a_learnt_radius() -> None:
    method = replace(SGD, alpha=AUTO)
    state = run_round(method, method.start(vector(3, 4)), {i: vector(6, 8) for i in range(3)}, (0, 1, 2))
    assert state.ratios == ()
    rows = {0: vector(6, 13), 1: vector(6, 8), 2: vector(6, 1e9)}  # 5, 0 and 1e9 from [6, 8] after a step of 5
    state = run_round(method, state, rows, (0, 1, 2))
    assert state.ratios == (1.0,)
    assert state.report.lam == FACTOR * 5, "the first radius goes by its own round"
    step = float(np.linalg.norm(vector(3, 6.5)))
    assert state.step_norm == pytest.approx(step)
    after = run_round(method, state, {i: vector(1e9, 1e9) for i in range(3)}, (0, 1, 2))
    assert after.report.lam == pytest.approx(FACTOR * step), "the second does not"
    assert len(after.ratios) == 2


def test_the_wrapper_of_before_gives_the_same_method_and_a_warning() -> None:
    from strategies.clipped import Clipped

    with pytest.warns(FutureWarning, match=r"is now dataclasses\.replace\(m, alpha=a\)"):
        assert Clipped(method=SGD, alpha=2.0) == CLIPPED
