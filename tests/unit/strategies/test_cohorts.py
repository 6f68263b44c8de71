"""Who is drawn, and how many of the rows a rule must defend against."""

from collections import Counter

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Krum, Mean, TrimmedMean
from strategies.cohorts import aggregate, byzantine_majority, expected_byzantine, sample, share_of_stratum, stack
from strategies.method import Aggregator
from strategies.randomness import Role, stream


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_sample_is_ascending_and_without_repetition() -> None:
    for seed in range(50):
        drawn = sample(20, 7, range(20), rng(seed))
        assert len(set(drawn)) == 7
        assert drawn == sorted(drawn)
        assert all(type(i) is int for i in drawn), "they go into JSON and into Flower records"


def test_every_worker_is_drawn_equally_often() -> None:
    drawn = Counter(i for k in range(2000) for i in sample(10, 3, range(10), stream(1, Role.COHORT, round_=k)))
    assert set(drawn) == set(range(10))
    assert all(600 - 105 < count < 600 + 105 for count in drawn.values()), drawn  # 600 +- 5 standard deviations


def test_only_those_connected_are_drawn() -> None:
    assert sample(6, 3, {1, 4}, rng()) == [1, 4]
    assert sample(6, 3, set(), rng()) == []
    assert sample(6, 6, range(6), rng()) == [0, 1, 2, 3, 4, 5]


def test_an_absent_worker_is_replaced_and_the_others_stay() -> None:
    full = sample(20, 5, range(20), rng(3))
    for gone in full:
        connected = set(range(20)) - {gone}
        assert set(full) - {gone} < set(sample(20, 5, connected, rng(3)))
    for gone in set(range(20)) - set(full):
        assert sample(20, 5, set(range(20)) - {gone}, rng(3)) == full


def test_rows_are_stacked_in_the_order_of_the_workers() -> None:
    rows = stack(np.zeros(2), {3: np.array([1.0, 2.0]), 5: np.array([3.0, 4.0])})
    assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_replies_make_no_rows(dtype: type) -> None:
    rows = stack(np.zeros(3, dtype), {})
    assert rows.shape == (0, 3)
    assert rows.dtype == dtype


@pytest.mark.parametrize(
    ("rows", "clients", "byzantine", "expected"),
    [(4, 20, 5, 1), (5, 20, 5, 2), (20, 20, 5, 5), (0, 20, 5, 0), (7, 7, 0, 0), (4, 7, 2, 2), (1, 20, 1, 1)],
)
def test_the_share_of_byzantine_rows_is_rounded_up(rows: int, clients: int, byzantine: int, expected: int) -> None:
    assert expected_byzantine(rows, clients, byzantine) == expected


@pytest.mark.parametrize(
    ("rule", "column", "byzantine", "expected"),
    [
        (CoordinateMedian(), [1.0, 2.0, 90.0], 1, 2.0),
        (Mean(), [1.0, 2.0, 90.0], 1, 31.0),
        (TrimmedMean(), [1.0, 2.0, 90.0, 3.0], 1, 2.5),
        (TrimmedMean(), [1.0, 2.0, 6.0, 3.0], 0, 3.0),
        (TrimmedMean(), [1.0, 90.0], 1, 45.5),  # of two rows the rule can trim none, though one may be Byzantine
        (Krum(), [1.0, 1.1, 90.0], 1, 1.0),
    ],
)
def test_rows_are_aggregated_as_robustly_as_the_rule_can(
    rule: Aggregator, column: list[float], byzantine: int, expected: float
) -> None:
    combined = aggregate(rule, np.array(column)[:, None], 4, byzantine, rng())
    assert combined.vector is not None
    assert combined.vector.tolist() == pytest.approx([expected])
    assert (combined.note, combined.lam, list(combined.clipped)) == ("", None, [])


def test_rows_that_cannot_be_aggregated() -> None:
    none = aggregate(CoordinateMedian(), np.empty((0, 3)), 4, 1, rng())
    assert (none.vector, none.note) == (None, "no usable reply")
    few = aggregate(Krum(), np.ones((2, 3)), 4, 1, rng())
    assert (few.vector, few.note) == (None, "2 usable replies: too few for the rule")


@pytest.mark.parametrize(
    ("n", "f", "cohort", "majority", "tie"),
    [
        (20, 5, 4, 0.031992, 0.2167),  # as published for these numbers
        (3, 1, 1, 1 / 3, 0.0),
        (4, 1, 2, 0.0, 1 / 2),
        (10, 0, 3, 0.0, 0.0),
        (10, 3, 10, 0.0, 0.0),
        (4, 2, 4, 0.0, 1.0),
    ],
)
def test_probability_of_a_byzantine_majority(n: int, f: int, cohort: int, majority: float, tie: float) -> None:
    assert byzantine_majority(n, f, cohort) == pytest.approx((majority, tie), abs=5e-5)


# --- strata ---


def test_a_stratified_cohort_has_the_rounded_share_of_the_stratum_in_every_round() -> None:
    last = range(15, 20)
    for size, expected in ((4, 1), (6, 2), (7, 2), (1, 0), (2, 1), (20, 5)):  # 1, 1.5, 1.75, 0.25, 0.5, 5
        assert share_of_stratum(size, 20, 5) == expected
        for k in range(50):
            cohort = sample(20, size, range(20), stream(2, Role.COHORT, round_=k), last)
            assert len(set(cohort)) == size
            assert cohort == sorted(cohort)
            assert sum(i in last for i in cohort) == expected


def test_each_stratum_is_sampled_uniformly() -> None:
    drawn = Counter(
        i for k in range(4000) for i in sample(10, 5, range(10), stream(1, Role.COHORT, round_=k), (6, 7, 8, 9))
    )
    for i in range(10):  # 2 of 4, and 3 of 6
        assert drawn[i] / 4000 == pytest.approx(0.5, abs=0.04)


def test_absent_members_of_a_stratum_are_replaced_by_others() -> None:
    assert sample(6, 3, {0, 1, 2, 3}, rng(), (4, 5)) == sample(6, 3, {0, 1, 2, 3}, rng())
    assert sum(i > 3 for i in sample(6, 3, {0, 4, 5}, rng(), (4, 5))) == 2
    assert sample(6, 3, set(), rng(), (4, 5)) == []
