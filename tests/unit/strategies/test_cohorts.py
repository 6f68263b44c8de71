"""Who is drawn, and how many of the rows a rule must defend against."""

from collections import Counter

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, Krum, Mean, TrimmedMean
from strategies.cohorts import (
    aggregate,
    byzantine_majority,
    excess,
    expected_byzantine,
    least_cohort,
    never,
    sample,
    share_of_stratum,
    stack,
)
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


# --- the least cohort ---

TABLE = {
    20: {1: (3, 5, 7), 2: (5, 7, 11), 3: (7, 9, 15), 4: (9, 11, 19)},
    50: {2: (5, 7, 11), 5: (11, 13, 23), 8: (17, 19, 35), 10: (19, 23, 43)},
    100: {5: (9, 11, 23), 10: (15, 17, 43), 15: (19, 23, 63), 20: (27, 31, 83)},
    200: {10: (11, 13, 31), 20: (15, 19, 63), 30: (23, 27, 107), 40: (33, 37, 163)},
    500: {25: (11, 15, 39), 50: (17, 21, 83), 75: (25, 31, 171), 100: (37, 43, 343)},
    1000: {50: (11, 15, 39), 100: (17, 21, 91), 150: (27, 31, 211), 200: (39, 45, 539)},
}
"""By n and f, the least cohorts for 2b + 1, 2b + 3 and 4b + 3 rows: 1000 rounds, confidence 0.99; computed apart."""
ROWS = (lambda n: (n - 1) // 2, lambda n: (n - 3) // 2, lambda n: (n - 3) // 4)


@pytest.mark.parametrize("clients", TABLE)
def test_the_least_cohort_is_that_of_the_table(clients: int) -> None:
    for byzantine, wanted in TABLE[clients].items():
        found = [least_cohort(clients, byzantine, 1000, 0.99, tolerates) for tolerates in ROWS]
        assert [each and each[0] for each in found] == list(wanted), byzantine


def test_the_most_byzantine_clients_beside_the_least_cohort() -> None:
    assert least_cohort(1000, 200, 1000, 0.99, ROWS[1]) == (45, 21)
    assert least_cohort(500, 100, 1000, 0.99, ROWS[2]) == (343, 85)
    assert [least_cohort(20, 5, 1000, 0.99, tolerates) for tolerates in ROWS] == [(11, 5), (13, 5), None]
    assert [least_cohort(1000, f, 1000, 0.9, ROWS[0]) for f in (50, 100, 150, 200)] == [
        (9, 4),
        (13, 6),
        (21, 10),
        (31, 15),
    ]
    rare = least_cohort(1000, 200, 1000, 0.99, ROWS[0], share=0.01)
    assert rare is not None
    assert rare[0] < 39, "rounds that seldom come have fewer chances to go wrong"


def test_how_likely_a_cohort_has_more_byzantine_clients() -> None:
    assert excess(20, 5, 4) == pytest.approx([0.718266, 0.248710, 0.0319917, 0.00103199, 0], rel=1e-5)
    assert excess(100, 20, 10)[3:5] == pytest.approx([0.10957, 0.025465], rel=1e-4)
    assert never(excess(1000, 200, 39)[19], 1000) == pytest.approx(0.99168, abs=1e-5)
    assert never(excess(1000, 200, 40)[19], 1000) == pytest.approx(0.98632, abs=1e-5), "the even cohort is worse"
    for n, f, size in ((20, 5, 4), (20, 9, 15), (7, 3, 7), (5, 0, 2)):
        majority, tie = byzantine_majority(n, f, size)
        over = [*excess(n, f, size), *[0.0] * size]
        assert over[size // 2] == pytest.approx(majority), "rounding down: a strict majority"
        assert over[(size - 1) // 2] == pytest.approx(majority + tie)
    assert never(1.0, 3) == 0
