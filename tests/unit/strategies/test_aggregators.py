"""Rules and pre-aggregators on vectors small enough to aggregate by hand, and what they refuse."""

from collections.abc import Callable

import numpy as np
import pytest

from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CovarianceFilter,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SmallestVarianceAveraging,
    TrimmedMean,
)
from strategies.aggregators.clusters import largest_cluster
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.vectors import column_blocks, mean_of_rows, norm, squared_distances

RULES: list[Rule] = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    MeanAroundMedian(),
    GeometricMedian(),
    Krum(),
    MultiKrum(),
    Bulyan(),
    MinimumDiameterAveraging(),
    MoNNA(),
    CenteredClipping(),
    CovarianceFilter(),
    SmallestVarianceAveraging(),
    DivideAndConquer(),
    SignGuard(),
    ComparativeGradientElimination(),
    FLTrust(),
]


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


def test_multi_krum_averages_the_rows_of_least_score() -> None:
    # n = 5, f = 1: scores over two neighbours are 5, 2, 5, 85 (from 9: 36 + 49), 17522 (from 100).
    assert MultiKrum()(column(1.0, 2.0, 3.0, 9.0, 100.0), 1, rng()) == [3.75]


def test_mean_around_median_keeps_the_nearest_values_and_of_equally_near_ones_the_lower() -> None:
    assert MeanAroundMedian()(column(0.0, 3.0, 4.0, 5.0, 90.0), 1, rng()) == [3.0]
    assert MeanAroundMedian()(column(-90.0, 3.0, 4.0, 5.0, 6.0), 2, rng()) == [4.0]
    assert MeanAroundMedian()(column(1.0, 2.0, 3.0), 1, rng()) == [1.5]


def test_bulyan_takes_means_around_the_median_of_what_krum_chose() -> None:
    # n = 7, f = 1: Krum chooses 5 of 7 and leaves 50 and -70; the 3 nearest to their median 2 are 1, 2 and 3.
    assert Bulyan()(column(0.0, 1.0, 2.0, 3.0, 4.0, 50.0, -70.0), 1, rng()) == [2.0]
    # The median of 0, 1, 2, 3, 8 is 2 as well, and 8 is not among the 3 nearest.
    assert Bulyan()(column(0.0, 1.0, 2.0, 3.0, 8.0, 50.0, -70.0), 1, rng()) == [2.0]


def test_minimum_diameter_averages_the_rows_that_lie_closest_together() -> None:
    assert MinimumDiameterAveraging()(column(9.0, 1.0, 2.0, 4.0, 7.0), 2, rng()) == [pytest.approx(7.0 / 3.0)]
    assert MinimumDiameterAveraging()(column(0.0, 1.0, 2.0), 1, rng()) == [0.5]  # of two sets the first


def test_monna_averages_around_the_trusted_row() -> None:
    rows = column(0.0, 1.0, 10.0, 11.0, 12.0)
    assert MoNNA()(rows, 2, rng()) == [pytest.approx(11.0 / 3.0)]
    assert MoNNA(pivot=4)(rows, 2, rng()) == [11.0]


def test_centered_clipping_moves_by_at_most_tau_over_n_a_row() -> None:
    rows = column(0.0, 0.0, 9.0)
    assert CenteredClipping(tau=3.0, steps=1)(rows, 1, rng()) == [1.0]  # from the median 0
    assert CenteredClipping(tau=3.0, steps=1)(rows, 1, rng(), np.array([6.0])) == [5.0]  # -3 - 3 + 3 over 3
    # The second step is from 5: -3 - 3 + 3 again.
    assert CenteredClipping(tau=3.0, steps=2)(rows, 1, rng(), np.array([6.0])) == [4.0]


def test_centered_clipping_adapts_to_the_median_distance() -> None:
    # Distances to the median 2 are 2, 1, 0, 1, 98, the middle one 1: (-1 - 1 + 0 + 1 + 1) / 5.
    assert CenteredClipping(steps=1)(column(0.0, 1.0, 2.0, 3.0, 100.0), 2, rng()) == [2.0]
    assert CenteredClipping(steps=1)(column(2.0, 2.0, 2.0, 3.0, 100.0), 2, rng()) == [2.0]  # tau = 0 clips to nothing


def test_covariance_filter_drops_what_stretches_the_covariance() -> None:
    # The first step takes all weight from 90, the next ones make the variance no smaller than the one after it.
    result = CovarianceFilter()(column(0.0, 1.0, 2.0, 3.0, 90.0), 1, rng())
    assert 1.0 <= result[0] <= 2.0


def test_covariance_filter_ends_with_huge_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 30))
    rows[:5] *= 1e4
    assert np.abs(CovarianceFilter()(rows, 5, rng())).max() < 2.0


def test_smallest_variance_averages_the_rows_of_least_main_variance() -> None:
    # Three on a line 2 long vary more along it than any triangle with the point beside it; of two alike the first.
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 3.0**0.5 / 3.0]])
    np.testing.assert_allclose(SmallestVarianceAveraging()(rows, 1, rng()), rows[[0, 1, 3]].mean(axis=0))


def test_dnc_leaves_out_what_lies_furthest_along_the_largest_variance() -> None:
    rows = np.array([[9.0, 0.0], [0.0, 1.0], [1.0, -1.0], [-1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(DivideAndConquer()(rows, 1), [0.0, 0.5])  # draws nothing where it looks at everything
    np.testing.assert_allclose(DivideAndConquer()(rows, 0), [1.8, 0.4])
    # c f = 0.5 * 2 is one row; 1.1 * 10 is 11 in spite of rounding.
    np.testing.assert_allclose(DivideAndConquer(c=0.5)(rows, 2), [0.0, 0.5])
    assert DivideAndConquer(c=1.1).struck(10) == 11


def test_dnc_leaves_out_the_later_of_equal_scores_and_nothing_where_all_rows_are_equal() -> None:
    assert DivideAndConquer()(column(-1.0, 0.0, 1.0), 1) == [-0.5]
    assert DivideAndConquer()(column(1.0, 0.0, -1.0), 1) == [0.5]
    copies = np.repeat(np.random.default_rng(0).normal(size=(4, 30)), 2, axis=0)  # equal but for rounding
    copies[6:] += 100.0
    np.testing.assert_allclose(DivideAndConquer()(copies, 1), copies[:7].mean(axis=0))
    assert DivideAndConquer()(column(3.0, 3.0, 3.0), 1) == [3.0]


def test_dnc_that_leaves_out_every_row_is_the_median() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    vector, weights = DivideAndConquer(c=3.0).weigh(rows, 2, rng())
    np.testing.assert_array_equal(vector, np.median(rows, axis=0))
    assert weights is None


def test_dnc_draws_the_same_columns_from_the_same_seed() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 400))
    results = [DivideAndConquer(sub=5)(rows, 3, seed) for seed in (1, 1, *range(2, 12))]
    np.testing.assert_array_equal(results[0], results[1])
    assert any(not np.array_equal(results[0], other) for other in results[2:])
    with pytest.raises(ValueError, match=r"^dnc draws at random: pass rng"):
        DivideAndConquer(sub=5)(rows, 3)


def test_signguard_takes_rows_of_usual_length_and_signs_and_clips_them() -> None:
    # Lengths 5, 5, 10, 100, 0.2, 5: the median is 5. The window is one column; one row has another sign there.
    rows = np.array([[3.0, 4.0], [4.0, 3.0], [6.0, 8.0], [60.0, 80.0], [0.1, 0.1], [-3.0, -4.0]])
    np.testing.assert_allclose(SignGuard()(rows, 1, rng()), [10.0 / 3.0, 11.0 / 3.0])
    _, weights = SignGuard().weigh(rows, 1, rng())
    assert weights is not None
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 6, 0.0, 0.0, 0.0])


def test_signguard_without_a_usual_row_is_the_median() -> None:
    np.testing.assert_array_equal(SignGuard()(np.array([[0.0], [0.0], [7.0]]), 1, rng()), [0.0])
    # The largest cluster has signs of rows that are all too long or too short.
    assert SignGuard()(column(100.0, 200.0, 300.0, -5.0, -6.0, 1e-3, 1e-3), 1, rng()) == [-5.5]


def test_the_largest_cluster() -> None:
    points = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [1.0, 1.0], [1.1, 1.0], [9.0, 9.0]])
    assert largest_cluster(points[:5]).tolist() == [True, True, True, False, False]
    assert largest_cluster(points[5:]).tolist() == [True]
    assert largest_cluster(np.ones((4, 3))).all()
    assert largest_cluster(np.array([[0.0], [0.0], [1.0], [1.0]])).tolist() == [False, False, True, True]


def test_cge_averages_the_shortest_and_of_equally_long_ones_the_first() -> None:
    assert ComparativeGradientElimination()(column(-3.0, 1.0, 3.0, -100.0), 1) == [pytest.approx(1 / 3)]
    assert ComparativeGradientElimination()(column(2.0, -4.0, 4.0), 1) == [-1.0]
    rows = np.full((5, 3), 1.5e308)  # whose lengths float64 does not hold
    rows[:3] = 1.0
    np.testing.assert_array_equal(ComparativeGradientElimination()(rows, 2), np.ones(3))


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (TrimmedMean(), (2.67, 4.50, 18.7)),
        (CoordinateMedian(), (7.11, 9.00, 21.8)),
        (GeometricMedian(), (7.11, 9.00, 21.8)),
        (Krum(), (12.0, 11.3, 42.0)),
        (SmallestVarianceAveraging(), (1.78, 3.00, 12.4)),
        (CoordinateMedian(pre=(NearestNeighbourMixing(),)), (16.2, 26.7, 104.0)),
    ],
    ids=lambda rule: rule._name() if isinstance(rule, Rule) else "",
)
def test_kappa(rule: Rule, values: tuple[float, ...]) -> None:
    found = [rule.kappa(n, f) for n, f in ((10, 2), (20, 5), (11, 4))]
    assert found == [pytest.approx(value, rel=0.005) for value in values]


def test_kappa_of_pre_aggregators() -> None:
    nnm = NearestNeighbourMixing()
    once = CoordinateMedian(pre=(nnm,)).kappa(20, 5)
    assert once is not None
    assert once == pytest.approx(8 / 3 * 10)
    assert CoordinateMedian(pre=(nnm, nnm)).kappa(20, 5) == pytest.approx(8 / 3 * (1 + once))
    assert CoordinateMedian(pre=(nnm,)).kappa(20, 0) == 0.0  # which is the mean
    assert CoordinateMedian(pre=(Bucketing(s=2),)).kappa(20, 2) is None
    assert Mean(pre=(nnm,)).kappa(20, 5) is None
    with pytest.raises(ValueError, match="f = 10 of n' = 20 rows: cm takes at most 9"):
        CoordinateMedian().kappa(20, 10)


def test_static_clipping_shortens_what_is_longer_than_c() -> None:
    clipped, f = StaticClipping(c=5.0)(np.array([[3.0, 4.0], [30.0, -40.0], [0.0, 0.0]]), 1, rng())
    np.testing.assert_allclose(clipped, [[3.0, 4.0], [3.0, -4.0], [0.0, 0.0]])
    assert f == 1


def test_static_clipping_to_the_median_length() -> None:
    step = StaticClipping(c="median")
    np.testing.assert_array_equal(step(column(1.0, -8.0, 4.0), 1)[0], column(1.0, -4.0, 4.0))
    np.testing.assert_array_equal(step(column(1.0, -8.0, 4.0, 2.0), 1)[0], column(1.0, -3.0, 3.0, 2.0))
    np.testing.assert_array_equal(step(column(0.0, 0.0, 4.0), 1)[0], column(0.0, 0.0, 0.0))
    assert Mean(pre=(step,)).tolerates(20) == 9
    rows = np.random.default_rng(0).normal(size=(20, 6))
    rows[:9] = 1.5e308  # whose lengths float64 does not hold
    assert norm(Mean(pre=(step,))(rows, 9)) <= max(norm(row) for row in rows[9:])


def test_adaptive_clipping_shortens_the_longest_to_the_next() -> None:
    # n = 4, f = 1: floor(2 * 3 / 4) = 1 row.
    clipped, _ = AdaptiveRobustClipping()(column(1.0, -8.0, 4.0, 2.0), 1, rng())
    np.testing.assert_array_equal(clipped, column(1.0, -4.0, 4.0, 2.0))


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
        (MeanAroundMedian(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (MultiKrum(), {1: -1, 3: 0, 5: 1, 20: 8}),
        (Bulyan(), {1: -1, 2: -1, 3: 0, 6: 0, 7: 1, 20: 4}),
        (MinimumDiameterAveraging(), {1: 0, 2: 0, 3: 1, 50: 24}),
        (MoNNA(pivot=2), {1: -1, 2: -1, 3: 1, 20: 9}),
        (CenteredClipping(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (CovarianceFilter(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (SmallestVarianceAveraging(), {1: 0, 3: 1, 15: 7, 16: 7, 20: 5, 50: 3}),
        (DivideAndConquer(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (SignGuard(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (ComparativeGradientElimination(), {1: 0, 2: 0, 3: 1, 20: 9}),
        (FLTrust(), {1: 1, 4: 4, 20: 20}),
        (FLTrust(pre=(NearestNeighbourMixing(),)), {1: 0, 20: 9}),
        (Mean(pre=(StaticClipping(),)), {1: 1, 4: 4}),
        (Mean(pre=(AdaptiveRobustClipping(),)), {1: 0, 20: 9}),
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
        (Bulyan(), 20, 5, "f = 5 of n' = 20 rows: bulyan takes at most 4"),
        (
            SmallestVarianceAveraging(),
            20,
            6,
            "f = 6 of n' = 20 rows: smea takes at most 5: 38760 sets of n' - f, more than 20000",
        ),
        (Mean(), 4, -1, "f = -1 of n' = 4 rows: mean takes at most 4"),
    ],
)
def test_too_many_byzantine_rows_are_refused_with_both_numbers(rule: Rule, n: int, f: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(np.zeros((n, 3)), f, rng())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((3, 3), np.int64)])
def test_rows_of_another_form_are_refused(rule: Rule, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^rows of .*: must be"):
        rule(rows, 0, rng())


@pytest.mark.parametrize("settings", [{"nu": 0.0}, {"tol": -1.0}, {"max_steps": 0}, {"nu": float("nan")}])
def test_geometric_median_refuses_settings_out_of_bounds(settings: dict[str, float]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} = {value}: must be"):
        GeometricMedian(**settings)  # type: ignore[arg-type]  # one dictionary for fields of two types


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenteredClipping(tau=0.0), r"tau = 0\.0: must be above 0"),
        (lambda: CenteredClipping(tau=float("inf")), "tau = inf: must be"),
        (lambda: CenteredClipping(steps=0), "steps = 0: must be at least 1"),
        (lambda: DivideAndConquer(iters=0), "iters = 0: must be at least 1"),
        (lambda: DivideAndConquer(sub=0), "sub = 0: must be at least 1"),
        (lambda: DivideAndConquer(c=0.0), r"c = 0\.0: must be above 0"),
        (lambda: MoNNA(pivot=-1), "pivot = -1: must be at least 0"),
        (lambda: StaticClipping(c=0.0), r"c = 0\.0: must be above 0"),
        (lambda: StaticClipping(c="mean"), "c = 'mean': must be a number above 0, or \"median\""),  # type: ignore[arg-type]  # to be refused
        (lambda: StaticClipping(c=float("nan")), "c = nan: must be above 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


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


def test_a_rule_says_whether_it_depends_on_f() -> None:
    draws = np.random.default_rng(4).standard_normal((8, 13, 5))
    draws[:, 0] *= 5
    for rule in RULES:
        most = rule.tolerates(13) if rule.defends else 6
        differs = [not np.array_equal(rule(rows, 0, 0, rows[1]), rule(rows, most, 0, rows[1])) for rows in draws]
        assert any(differs) is rule.depends_on_f, rule.kind
    assert CoordinateMedian(pre=(NearestNeighbourMixing(),)).depends_on_f
    assert not CoordinateMedian(pre=(Bucketing(s=2),)).depends_on_f
