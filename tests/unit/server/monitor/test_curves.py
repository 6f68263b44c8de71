"""Curves of runs and bands over seeds, by hand on a few points."""

from dataclasses import replace

import numpy as np
import pytest

from server.monitor.curves import Curve, band, curve, spread
from strategies.method import Evaluation
from strategies.strategy import RoundRecord
from tests.rounds import RECORD


def curve_of(x: list[float], y: list[float], holds: bool = False) -> Curve:
    return Curve(np.array(x, dtype=float), np.array(y, dtype=float), holds)


def measured(loss: float) -> Evaluation:
    return Evaluation(loss, None, None)


def rounds_of(losses: list[float]) -> list[RoundRecord]:
    return [
        replace(RECORD, round=r, bytes_up=10 * r, bytes_down=5, round_s=0.5, evaluation=measured(loss))
        for r, loss in enumerate(losses, 1)
    ]


def test_a_band_is_the_median_and_the_range_at_each_point() -> None:
    found = band([curve_of([0, 1], [1, 3]), curve_of([0, 1], [2, 5]), curve_of([0, 1], [9, 4])])
    assert found.x.tolist() == [0, 1]
    assert found.median.tolist() == [2, 4]
    assert (found.low.tolist(), found.high.tolist()) == ([1, 3], [9, 5])
    assert found.runs.tolist() == [3, 3]


def test_runs_that_were_measured_elsewhere_are_interpolated() -> None:
    a, b = curve_of([0, 2], [1, 1e-4]), curve_of([0, 1, 2], [1, 1e-2, 1e-4])
    assert band([a, b], log=True).median == pytest.approx([1, 1e-2, 1e-4])
    assert band([a, b]).median[1] == pytest.approx((0.50005 + 1e-2) / 2)


def test_a_run_counts_as_far_as_it_got_and_one_that_diverged_for_ever() -> None:
    short, wild, long = (
        curve_of([0, 1], [1, 2]),
        curve_of([0, 1], [1, np.inf], holds=True),
        curve_of([0, 1, 2], [1, 1, 1]),
    )
    found = band([short, wild, long], log=True)
    assert found.runs.tolist() == [3, 3, 2]
    assert found.median.tolist()[:2] == pytest.approx([1, 2])
    assert found.high[1:].tolist() == [np.inf, np.inf]
    assert np.isinf(found.median[2])


def test_many_points_at_different_places_become_a_few() -> None:
    rng = np.random.default_rng(1)
    curves = [curve_of(sorted(rng.random(5000)), [1.0] * 5000) for _ in range(3)]
    found = band(curves, points=100)
    assert found.x.size <= 103
    assert np.all(found.median == 1)


def test_nothing_gives_an_empty_band() -> None:
    assert band([]).x.size == band([curve_of([], [])]).x.size == 0


def test_a_curve_begins_with_the_start_and_adds_up_what_was_sent() -> None:
    rounds = rounds_of([0.5, 0.25])
    assert curve(rounds, "round", "loss", start=measured(1.0)).x.tolist() == [0, 1, 2]
    assert curve(rounds, "bytes_up", "loss").x.tolist() == [10, 30]
    assert curve(rounds, "bytes_down", "loss").x.tolist() == [5, 10]
    assert curve(rounds, "seconds", "loss").x.tolist() == [0.5, 1.0]
    assert curve(rounds, "round", "gap", start=measured(1.0)).x.size == 0


def test_a_run_that_diverged_has_an_infinite_loss_from_there_on() -> None:
    found = curve(rounds_of([0.5, np.nan]), "round", "loss", diverged=True)
    assert found.y.tolist() == [0.5, np.inf]
    assert found.holds
    assert curve(rounds_of([0.5, np.nan]), "round", "loss").y.tolist() == [0.5], "what cannot be read is no measure"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3, 3, 3)), ([1.0, 9.0, 2.0], (2, 1, 9)), ([1.0, 3.0], (2, 1, 3)), ([1.0, np.inf], (np.inf, 1, np.inf))],
    ids=["one", "odd", "even", "infinite"],
)
def test_the_spread_of_some_numbers(values: list[float], expected: tuple[float, float, float]) -> None:
    assert spread(values) == expected
