"""Schedules: their values by hand, what is refused, and which gamma a method steps with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Mean
from strategies.byz_nsgdm import ByzNSGDM
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity
from strategies.local_sgd import LocalSGD
from strategies.method import STATELESS, Ask
from strategies.radius import radius
from strategies.robust_sgd import RobustSGD
from strategies.schedules import CosineSchedule, LinearSchedule, Schedule, SqrtSchedule, StepSchedule
from tests.toys import HEADS, TAILS, Quadratic, rng, size, vector

COMMON: dict[str, Any] = {"n": 3, "f": 0, "aggregator": Mean(), "compressor": Identity()}
LINEAR = LinearSchedule(start=1.0, rounds=4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (CosineSchedule(start=1.0, rounds=4), [1.0, 0.8535533905932737, 0.5, 0.1464466094067262, 0.0, 0.0]),
        (CosineSchedule(start=0.3, end=0.1, rounds=2), [0.3, 0.2, 0.1, 0.1]),
        (LinearSchedule(start=1.0, end=0.2, rounds=4), [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (SqrtSchedule(start=2.0), [2.0, 2.0 / 2**0.5, 2.0 / 3**0.5, 1.0]),
        (SqrtSchedule(start=1.0, k0=4.0), [1.0, (4 / 5) ** 0.5, (4 / 6) ** 0.5]),
        (StepSchedule(start=1.0, milestones=(2, 3), factor=0.1), [1.0, 1.0, 0.1, 0.01, 0.01]),
        # The warm-up rises to start, and the rest counts from its end.
        (CosineSchedule(start=1.0, rounds=4, warmup=2), [0.5, 1.0, 1.0, 0.5, 0.0]),
        (StepSchedule(start=1.0, milestones=(1,), factor=0.5, warmup=4), [0.25, 0.5, 0.75, 1.0, 1.0, 0.5]),
    ],
)
def test_the_values_of_a_schedule(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.at(k) for k in range(len(expected))] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CosineSchedule(start=0.0), "start = 0.0: must be a positive number"),
        (lambda: LinearSchedule(start="2L"), 'start = "2L": must be a positive number or "c/L"'),
        (lambda: LinearSchedule(start=1.0, end=-1.0), "end = -1.0: must be a positive number"),
        (lambda: LinearSchedule(start=1.0, rounds=0), "rounds = 0: must be at least 1"),
        (lambda: SqrtSchedule(start=1.0, warmup=-1), "warmup = -1: must be at least 0"),
        (lambda: SqrtSchedule(start=1.0, k0=0.0), "k0 = 0.0: must be above 0 and finite"),
        (lambda: StepSchedule(start=1.0, milestones=(0,)), "milestones = \\[0\\]: must be rounds from 1"),
        (lambda: StepSchedule(start=1.0, milestones=(3, 3)), "in ascending order"),
        (lambda: StepSchedule(start=1.0, milestones=(3,), factor=1.0), "factor = 1.0: must be above 0 and below 1"),
        (lambda: LinearSchedule(start=1.0).at(0), 'rounds: missing; a "linear" schedule needs them'),
    ],
)
def test_what_is_no_schedule(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# --- the gamma of the round ---


def test_a_step_has_the_gamma_of_its_round_times_the_servers_scale() -> None:
    method = RobustSGD(gamma=LINEAR, cohort=3, **COMMON)
    state = method.start(vector(10, 0))
    for scale, expected in ((1.0, 9.0), (0.5, 8.625), (1.0, 8.125)):  # gamma 1, 0.75, 0.5
        ask = replace(method.ask(state, rng()), step_scale=scale, cohort=(0, 1, 2))
        state = method.update(state, ask, {0: vector(1, 0)}, rng())
        assert state.x.tolist() == [expected, 0]
    assert state.report.step_norm == 0.375


def test_normalised_steps_have_the_length_of_the_schedule() -> None:
    common = {**COMMON, "n": 1}
    lengths = [
        [method.gamma_at(k) for k in (1, 2, 4)]
        for method in (ByzNSGDM(gamma=1.0, **common), ByzNSGDM(gamma=LINEAR, **common))
    ]
    assert lengths == [[1.0, 1 / 2**0.5, 0.5], [1.0, 0.75, 0.25]]


def test_a_clipping_radius_follows_the_actual_step() -> None:
    method = ByzVRMarinaPP(gamma=LINEAR, p=0.25, batch=1, cohort=3, full_cohort=3, alpha=2.0, **COMMON)
    state = method.start(vector(10, 0))
    lams = []
    for toss, scale in ((HEADS, 1.0), (TAILS, 1.0), (TAILS, 0.5)):
        ask = replace(method.ask(state, toss), alpha_scale=scale, cohort=(0, 1, 2))
        state = method.update(state, ask, {i: vector(1 if ask.kind == "full" else 0, 0) for i in range(3)}, rng())
        lams.append(state.report.lam)
    assert lams == [None, 2.0, 0.75], "alpha times steps of 1 and 0.75, then half of it"


def test_a_learnt_multiplier_is_scaled_too() -> None:
    notes = (1.0, 3.0, 2.0)
    assert radius("auto", np.zeros((0, 2)), 0.5, notes) == 2.0
    assert radius("auto", np.zeros((0, 2)), 0.5, notes, 0.25) == 0.5


@pytest.mark.parametrize(("gamma", "scale", "sent"), [(LINEAR, 1.0, 1.0), (0.25, 0.5, 0.125), (0.25, 1.0, None)])
def test_a_worker_that_takes_the_servers_step_is_sent_its_size(gamma: Any, scale: float, sent: float | None) -> None:
    method = ByzVRMarina(gamma=gamma, p=0.25, batch=1, **COMMON)
    state = method.start(vector(10, 2))
    ask = replace(method.ask(state, HEADS), step_scale=scale, cohort=(0, 1, 2))
    state = method.update(state, ask, {i: vector(4, 1) for i in range(3)}, rng())
    later = replace(method.ask(state, TAILS), step_scale=scale / 2)  # scaled again since
    assert (later.kind, later.step) == ("difference", sent)
    assert method.model(STATELESS, later).tolist() == state.x.tolist()


# --- local steps ---


def test_local_momentum_by_hand() -> None:
    # From 8 with eta = 0.5 and mu = 0.5: u = 8, y = 4; u = 4 + 4 = 8, y = 0; u = 4 + 0. Their mean is 20/3.
    method = LocalSGD(gamma=1.0, cohort=3, local_steps=3, local_gamma=0.5, local_momentum=0.5, **COMMON)
    _, packet = method.reply(0, STATELESS, Ask(1, "gradient", {"x": vector(8, 0)}), Quadratic(size), rng())
    assert packet.values == pytest.approx(vector(20 / 3, 0))


def test_a_local_schedule_changes_local_steps_over_the_rounds() -> None:
    schedule = LinearSchedule(end=0.1, rounds=4)
    method = LocalSGD(gamma=1.0, cohort=3, local_steps=2, local_gamma=0.5, local_schedule=schedule, **COMMON)
    assert [method.local_size(k) for k in (1, 2, 3)] == pytest.approx([0.5, 0.4, 0.3])
    _, packet = method.reply(0, STATELESS, Ask(3, "gradient", {"x": vector(8, 0)}), Quadratic(size), rng())
    assert packet.values == pytest.approx(vector((8 + 8 * 0.7) / 2, 0))


def test_fedavg_with_a_schedule_is_gamma_of_h_local_steps() -> None:
    local, server = LinearSchedule(rounds=4), LinearSchedule(start=1.5, rounds=4)  # gamma_k = 3 eta_k
    method = LocalSGD(gamma=server, cohort=3, local_steps=3, local_gamma=0.5, local_schedule=local, **COMMON)
    state = replace(method.start(vector(8, 16)), round=3)
    ask = replace(method.ask(state, rng()), cohort=(0, 1, 2))
    replies = {i: method.reply(i, STATELESS, ask, Quadratic(size), rng())[1].values for i in range(3)}
    after = method.update(state, ask, replies, rng())
    assert after.x == pytest.approx(vector(8, 16) * 0.75**3), "the workers' own models"


def test_what_has_no_effect_is_said() -> None:
    method = LocalSGD(gamma=1.0, cohort=3, local_steps=1, local_gamma=0.5, local_momentum=0.5, **COMMON)
    assert list(method.warnings(None)) == ["strategy.local_momentum: has no effect with local_steps = 1"]
    assert not list(method.meanings(4))
    assert not list(replace(method, local_steps=2).warnings(None))


def test_the_rule_does_not_see_the_schedule() -> None:
    method = RobustSGD(**{**COMMON, "aggregator": CoordinateMedian()}, gamma=LINEAR, cohort=3)
    state = replace(method.start(vector(0, 0)), round=4)
    after = method.update(state, method.ask(state, rng()), {0: vector(4, 8)}, rng())
    assert after.g is not None
    assert (after.g.tolist(), after.x.tolist()) == ([4, 8], [-1, -2])
