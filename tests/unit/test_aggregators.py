"""Rules and pre-steps on vectors small enough to aggregate by hand, and what they refuse."""

import numpy as np
import pytest

from strategies.aggregators import CoordinateMedian, GeometricMedian, Krum, Mean, Rule, TrimmedMean
from strategies.presteps import Bucketing, NearestNeighbourMixing
from strategies.vectors import column_blocks, mean_of_rows, norm, squared_distances

RULES: list[Rule] = [Mean(), CoordinateMedian(), TrimmedMean(), GeometricMedian(), Krum()]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_mean() -> None:
    np.testing.assert_array_equal(Mean()(np.array([[1.0, 2.0], [3.0, 6.0]]), 2, rng()), [2.0, 4.0])


def test_median_of_an_odd_number_is_the_middle_value_per_coordinate() -> None:
    rows = np.array([[1.0, 9.0], [5.0, 7.0], [3.0, 8.0]])
    np.testing.assert_array_equal(CoordinateMedian()(rows, 1, rng()), [3.0, 8.0])


def test_median_of_an_even_number_is_the_mean_of_the_two_middle_values() -> None:
    assert CoordinateMedian()(column(1.0, 2.0, 4.0, 100.0), 1, rng()) == [3.0]  # the lower median would be 2


def test_trimmed_mean_drops_f_values_at_either_end_of_each_coordinate() -> None:
    rows = np.array([[0.0, 5.0], [1.0, -90.0], [2.0, 6.0], [6.0, 7.0], [1000.0, 9.0]])
    np.testing.assert_array_equal(TrimmedMean()(rows, 1, rng()), [3.0, 6.0])
    np.testing.assert_array_equal(TrimmedMean()(rows, 2, rng()), [2.0, 6.0])


def test_trimmed_mean_with_f_0_is_the_mean() -> None:
    assert TrimmedMean()(column(1.0, 2.0, 6.0), 0, rng()) == [3.0]


def test_geometric_median_of_a_triangle_is_its_fermat_point() -> None:
    # The centre of an equilateral triangle sees its corners at 120 degrees; so does it any points further out.
    corners = np.array([[np.cos(a), np.sin(a)] for a in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)])
    stretched = corners * np.array([[1.0], [10.0], [1000.0]])
    np.testing.assert_allclose(GeometricMedian()(corners, 1, rng()), 0.0, atol=1e-5)
    np.testing.assert_allclose(GeometricMedian()(stretched, 1, rng()), 0.0, atol=2e-4)


def test_geometric_median_is_a_row_that_holds_half_of_all() -> None:
    rows = np.array([[1.0, 1.0], [1.0, 1.0], [5.0, 0.0], [0.0, 9.0]])
    np.testing.assert_allclose(GeometricMedian()(rows, 1, rng()), [1.0, 1.0], rtol=1e-5)


def test_geometric_median_leaves_a_start_that_is_a_row_but_not_the_median() -> None:
    # The coordinate-wise median is the row 0, where Weiszfeld steps are tiny although the gradient is not.
    up = np.ones((4, 4)) * np.arange(1.0, 5.0)[:, None]
    down = -10.0 * np.eye(4) - 0.01
    rows = np.concatenate([np.zeros((1, 4)), up, down])
    np.testing.assert_array_equal(CoordinateMedian()(rows, 2, rng()), 0.0)
    # The unit vectors from (1, 1, 1, 1) to the others sum to -0.26 per coordinate, 0.52 < 1 in all: it is the median.
    np.testing.assert_allclose(GeometricMedian()(rows, 2, rng()), 1.0, atol=1e-5)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_geometric_median_survives_huge_rows(size: float) -> None:
    rows = np.concatenate([np.eye(3, dtype=np.float32), np.full((2, 3), -size, np.float32)])
    z = GeometricMedian()(rows, 2, rng())
    assert np.linalg.norm(z - 1 / 3) < 1.0


def test_krum_takes_the_row_with_the_nearest_neighbours() -> None:
    # n = 5, f = 1: the two nearest others count. Squared distances from 1: 1 + 4; from 2: 1 + 1; from 3: 1 + 4.
    assert Krum()(column(1.0, 2.0, 3.0, 9.0, 100.0), 1, rng()) == [2.0]


def test_krum_sums_squares_over_n_minus_f_minus_2_neighbours() -> None:
    # n = 6, f = 1: three nearest. 0 scores 4 + 16 + 36, 2 scores 4 + 4 + 16 = 24, 4 scores 4 + 4 + 16 = 24 (the tie
    # goes to the lowest index). Over n-f-1 = 4 neighbours 4 would win.
    assert Krum()(column(2.0, 4.0, 0.0, 6.0, 7.9, 9.0), 1, rng()) == [6.0]
    assert Krum()(column(2.0, 4.0, 0.0, 6.0, 50.0, 90.0), 1, rng()) == [2.0]


def test_krum_returns_a_copy() -> None:
    rows = column(1.0, 1.0, 1.0)
    Krum()(rows, 0, rng())[0] = 7.0
    np.testing.assert_array_equal(rows, column(1.0, 1.0, 1.0))


def test_nnm_replaces_a_row_by_the_mean_of_its_nearest() -> None:
    rows = column(0.0, 2.0, 10.0)
    mixed, f = NearestNeighbourMixing()(rows, 1, rng())
    np.testing.assert_array_equal(mixed, column(1.0, 1.0, 6.0))
    assert f == 1


def test_bucketing_divides_the_last_bucket_by_its_own_size() -> None:
    rows = column(6.0, 6.0, 6.0, 6.0, 6.0)
    mixed, f = Bucketing(s=3)(rows, 1, rng())
    np.testing.assert_array_equal(mixed, column(6.0, 6.0))
    assert f == 1


def test_bucketing_puts_every_row_into_one_bucket() -> None:
    mixed, _ = Bucketing(s=2)(column(1.0, 10.0, 100.0, 1000.0), 0, rng())
    assert mixed.sum() == 1111.0 / 2
    assert len(mixed) == 2


def test_bucketing_never_expects_more_byzantine_buckets_than_there_are() -> None:
    assert Bucketing(s=4).after(8, 5) == (2, 2)


def test_presteps_run_in_their_order() -> None:
    rows = column(0.0, 2.0, 10.0)
    both = Mean(pre=(NearestNeighbourMixing(), Bucketing(s=3)))
    assert both(rows, 1, rng()) == pytest.approx([8.0 / 3.0])


@pytest.mark.parametrize(
    ("rule", "largest"),
    [
        (Mean(), {1: 1, 4: 4, 20: 20}),
        (CoordinateMedian(), {1: 0, 2: 0, 3: 1, 4: 1, 20: 9}),
        (TrimmedMean(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (GeometricMedian(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (Krum(), {1: -1, 2: -1, 3: 0, 4: 0, 5: 1, 20: 8}),
        (CoordinateMedian(pre=(Bucketing(s=2),)), {1: 0, 2: 0, 4: 0, 5: 1, 20: 4}),
        (Krum(pre=(Bucketing(s=2),)), {4: -1, 5: 0, 20: 3}),
        (CoordinateMedian(pre=(NearestNeighbourMixing(),)), {1: 0, 20: 9}),
        (Mean(pre=(NearestNeighbourMixing(),)), {1: 0, 20: 9}),
    ],
)
def test_tolerates(rule: Rule, largest: dict[int, int]) -> None:
    assert {n: rule.tolerates(n) for n in largest} == largest


def test_breakdown_is_the_share_that_is_tolerated() -> None:
    assert CoordinateMedian().breakdown(20) == 9 / 20
    assert CoordinateMedian(pre=(Bucketing(s=2),)).breakdown(20) == 4 / 20
    assert [rule.kind for rule in RULES if not rule.defends] == ["mean"]


@pytest.mark.parametrize(
    ("rule", "n", "f", "message"),
    [
        (CoordinateMedian(), 4, 2, "f = 2 of n' = 4 rows: cm takes at most 1"),
        (Krum(), 2, 0, "f = 0 of n' = 2 rows: krum takes at most -1"),
        (CoordinateMedian(pre=(Bucketing(s=2),)), 20, 5, "f = 5 of n' = 20 rows: cm after bucketing takes at most 4"),
        (Mean(pre=(NearestNeighbourMixing(),)), 4, 2, "f = 2 of n' = 4 rows: mean after nnm takes at most 1"),
        (Mean(), 4, -1, "f = -1 of n' = 4 rows: mean takes at most 4"),
    ],
)
def test_too_many_byzantine_rows_are_refused_with_both_numbers(rule: Rule, n: int, f: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(np.zeros((n, 3)), f, rng())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((3, 3), np.int64)])
def test_rows_of_another_form_are_refused(rule: Rule, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(n', d\)"):
        rule(rows, 0, rng())


@pytest.mark.parametrize("settings", [{"nu": 0.0}, {"tol": -1.0}, {"max_steps": 0}, {"nu": float("nan")}])
def test_geometric_median_refuses_settings_out_of_bounds(settings: dict[str, float]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} = {value}: must be"):
        GeometricMedian(**settings)  # type: ignore[arg-type]  # one dictionary for fields of two types


def test_bucketing_refuses_empty_buckets() -> None:
    with pytest.raises(ValueError, match="s = 0: must be at least 1"):
        Bucketing(s=0)


def test_norm_at_both_ends_of_the_range() -> None:
    assert norm(np.array([3e200, 4e200])) == pytest.approx(5e200, rel=1e-15)
    assert norm(np.array([3e-200, 4e-200])) == pytest.approx(5e-200, rel=1e-15)
    assert norm(np.array([3e30, 4e30], np.float32)) == pytest.approx(5e30, rel=1e-6)
    assert norm(np.zeros(3)) == 0.0


def test_mean_of_rows_does_not_overflow() -> None:
    for largest in (np.finfo(np.float32).max, np.finfo(np.float64).max):
        rows = np.array([[largest, largest], [largest, -largest]])
        assert rows.dtype == largest.dtype
        np.testing.assert_array_equal(mean_of_rows(rows), np.array([largest, 0.0]))


def test_squared_distances_keep_small_differences_of_far_rows() -> None:
    rows = np.array([[1e6, 1e6], [1e6 + 0.25, 1e6], [1e30, 0.0]], np.float32)
    squares = squared_distances(rows)
    assert squares[0, 1] == 0.0625
    assert squares[0, 2] == pytest.approx(1e60, rel=1e-6)


def test_column_blocks_cover_every_coordinate_once() -> None:
    covered = np.zeros(300_001, int)
    blocks = list(column_blocks(np.broadcast_to(np.float32(0), (7, 300_001))))
    for columns in blocks:
        covered[columns] += 1
    assert len(blocks) > 1
    assert (covered == 1).all()
