"""DeMoA on vectors of two numbers, with the answers worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.run_folder.state_dict import put_together, take_apart
from strategies.aggregators import CoordinateMedian, Krum
from strategies.compressors import Identity, Masked
from strategies.demoa import DeMoA, DeMoAState
from strategies.method import Ask
from tests.simulation import Logistic, Simulation, optimum
from tests.toys import Quadratic, rng, vector

# p = 2/4, so alpha p = 1/4: a momentum that decays keeps 3/4 of itself, one that is held 1/2 when it is refreshed.
DECAY = DeMoA(
    n=4, f=1, gamma=1.0, cohort=2, alpha=0.5, batch=0, aggregator=CoordinateMedian(), compressor=Identity()
)  # fmt: skip
HOLD = replace(DECAY, stale="hold")


def after(method: DeMoA, *rounds: dict[int, Any], state: DeMoAState | None = None) -> DeMoAState:
    """The state after rounds with these replies."""
    state = state or method.start(vector(0, 0))
    for replies in rounds:
        ask = replace(method.ask(state, rng()), cohort=tuple(replies))
        state = method.update(state, ask, {i: vector(*q) for i, q in replies.items()}, rng())
    return state


def momenta(state: DeMoAState) -> dict[int, list[float]]:
    return {i: m.tolist() for i, m in state.momenta.items()}


def test_momenta_that_are_not_refreshed_decay_as_fast_as_the_refreshed_ones() -> None:
    first = after(DECAY, {0: (8, 0), 1: (16, 0)})
    assert momenta(first) == {0: [4, 0], 1: [8, 0]}
    assert momenta(after(DECAY, {0: (8, 0)}, state=first)) == {0: [0.75 * 4 + 4, 0], 1: [6, 0]}
    assert momenta(after(DECAY, {}, state=first)) == {0: [3, 0], 1: [6, 0]}


def test_momenta_that_are_held_stay_until_they_are_refreshed() -> None:
    first = after(HOLD, {0: (8, 0), 1: (16, 0)})
    assert momenta(first) == {0: [4, 0], 1: [8, 0]}
    assert momenta(after(HOLD, {0: (8, 0)}, {}, state=first)) == {0: [0.5 * 4 + 4, 0], 1: [8, 0]}


@pytest.mark.parametrize("method", [DECAY, HOLD])
def test_all_momenta_are_aggregated_with_zeros_for_clients_that_were_never_heard(method: DeMoA) -> None:
    first = after(method, {0: (8, 0), 1: (16, 4)})
    assert first.x.tolist() == [-2, 0]  # the median of 4, 8, 0, 0 is 2
    assert first.g is not None
    assert first.g.tolist() == [2, 0]


@pytest.mark.parametrize("method", [DECAY, HOLD])
def test_a_byzantine_cohort_moves_its_own_rows_alone(method: DeMoA) -> None:
    settled = after(method, *[dict.fromkeys(range(4), (1, 1))] * 30)
    attacked = after(method, {3: (-1e6, 1e6)}, state=settled)
    honest = after(method, {}, state=settled)
    assert attacked.g is not None
    assert honest.g is not None
    assert np.abs(attacked.g - honest.g).max() < 0.01


@pytest.mark.parametrize("method", [DECAY, HOLD, replace(DECAY, alpha=1.0, cohort=4)])
def test_an_attacker_that_aims_hits(method: DeMoA) -> None:
    ask, target = Ask(5, "gradient", {}), vector(-1, 7)
    for held in (None, vector(2, 4)):
        assert method.absorb(held, ask, method.aim(held, ask, target)) == pytest.approx(target)


def test_fading_is_many_rounds_of_decay_and_none_of_hold() -> None:
    state = after(DECAY, {0: (8, 4)}, {}, {}, {})
    assert DECAY.fade(vector(4, 2), 3) == pytest.approx(state.momenta[0])
    assert HOLD.fade(vector(4, 2), 3).tolist() == [4, 2]


def test_with_full_participation_and_weight_one_it_is_robust_sgd() -> None:
    method = replace(DECAY, cohort=4, alpha=1.0)
    state = after(method, dict.fromkeys(range(4), (9, 9)), {i: (i, -i) for i in range(4)})
    assert momenta(state) == {i: [i, -i] for i in range(4)}
    assert state.g is not None
    assert state.g.tolist() == [1.5, -1.5]


def test_hostile_gradients_overflow_no_momentum() -> None:
    largest = float(np.finfo(np.float64).max)
    state = after(DECAY, *[{3: (largest, -largest)}] * 9)
    assert np.isfinite(state.momenta[3]).all()
    assert np.isfinite(state.x).all()


# --- momenta that are too old ---


def test_held_momenta_beyond_the_age_limit_are_left_out() -> None:
    method = replace(HOLD, max_age=2)
    state = after(method, dict.fromkeys(range(4), (4, 4)), *[{0: (0, 0), 1: (0, 0), 2: (0, 0)}] * 2)
    assert state.report.note == ""
    assert state.report.evidence is not None
    assert list(state.report.evidence.workers) == [0, 1, 2, 3]
    state = after(method, {0: (0, 0), 1: (0, 0), 2: (0, 0)}, state=state)
    assert state.report.note == "the momenta of 1 clients (3) are left out, not heard for more than 2 rounds"
    assert state.report.evidence is not None
    assert list(state.report.evidence.workers) == [0, 1, 2]
    again = after(method, {0: (0, 0), 1: (0, 0), 2: (0, 0)}, state=state)
    assert again.report.note == ""  # said once
    assert 3 in momenta(after(method, {3: (4, 4)}, state=again))


def test_a_round_whose_remaining_momenta_do_not_tolerate_f_leaves_the_model() -> None:
    method = replace(HOLD, max_age=1)
    state = after(method, dict.fromkeys(range(4), (4, 4)), {0: (4, 4), 1: (4, 4)})
    x = state.x
    state = after(method, {0: (4, 4), 1: (4, 4)}, state=state)
    assert state.x.tolist() == x.tolist()
    assert state.report.note.startswith("2 momenta: too few for the rule with f = 1; the model stays; the momenta of 2")


def test_faded_momenta_are_reported_where_they_can_hold_the_model() -> None:
    assert DECAY.limit == 12  # 3/(alpha p)
    busy = [{0: (1, 1), 1: (1, 1), 2: (1, 1)}] * 13
    state = after(DECAY, *busy)
    expected = "the momenta of 1 clients (3) have faded, not heard for more than 12 rounds; with f = 1 attackers"
    assert state.report.note.startswith(expected)
    assert after(DECAY, busy[0], state=state).report.note == ""
    assert after(replace(DECAY, f=0), *busy).report.note == ""  # 1 of 4 is no half


def test_default_limits() -> None:
    assert HOLD.limit == 100  # 50/p
    assert replace(HOLD, max_age=7).limit == 7


def test_the_rule_needs_enough_of_all_clients_not_of_the_cohort() -> None:
    method = replace(DECAY, n=6, cohort=1, aggregator=Krum())
    state = after(method, *[{i: (1, 1)} for i in range(6)])
    assert state.report.note == ""


# --- state and whole runs ---


def test_the_state_survives_a_checkpoint() -> None:
    state = after(DECAY, {0: (8, 0), 1: (16, 3)}, {2: (1, 1)})
    again = put_together(DECAY.start(vector(0, 0)), *take_apart(state))
    follow = {0: (2, 2), 3: (1, 5)}
    assert after(DECAY, follow, state=again).x.tobytes() == after(DECAY, follow, state=state).x.tobytes()
    assert again.heard == {0: 1, 1: 1, 2: 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", [DECAY, HOLD])
def test_the_dtype_stays(method: DeMoA, dtype: type) -> None:
    run = Simulation(method, [Quadratic() for _ in range(4)], np.array([1, 2], dtype))
    for k in range(4):
        run.round(lost=[k % 3])
        assert run.state.x.dtype == run.state.g.dtype == dtype
        assert all(m.dtype == dtype for m in run.state.momenta.values())


@pytest.mark.parametrize("stale", ["decay", "hold"])
def test_it_converges_from_small_cohorts_under_attack(stale: Any) -> None:
    method = replace(DECAY, n=7, f=2, cohort=2, gamma=0.2, stale=stale)
    oracles = [Logistic(0)] * 7
    x = Simulation(
        method,
        oracles,
        np.zeros(5),
        byzantine=(5, 6),
        cheat=lambda i, ask, packet: replace(packet, values=-packet.values),
    ).run(400)
    best = optimum(oracles[:1])
    assert np.linalg.norm(x - best) < 0.1 * np.linalg.norm(best)


def test_with_one_mask_a_round_and_everybody_it_is_rosdhb() -> None:
    from strategies.rosdhb import RoSDHB

    common: Any = {"n": 3, "f": 1, "gamma": 0.5, "cohort": 3, "aggregator": CoordinateMedian(), "batch": 0}
    ours = DeMoA(**common, alpha=0.25, compressor=Masked(k=3))
    theirs = RoSDHB(**common, beta=0.75, compressor=Masked(k=3))
    runs = [Simulation(each, [Logistic(0)] * 3, np.zeros(5)) for each in (ours, theirs)]
    for _ in range(6):
        for run in runs:
            run.round()
    assert runs[0].state.x == pytest.approx(runs[1].state.x, rel=1e-12)
