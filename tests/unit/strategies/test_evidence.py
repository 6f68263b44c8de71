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
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    Rule,
    SignGuard,
    SmallestVarianceAveraging,
)
from strategies.aggregators.preaggregators import Bucketing, NearestNeighbourMixing, StaticClipping
from strategies.evidence import FARTHEST, MOST, examine
from strategies.method import Combined, Rows, Vector
from tests.toys import root_of


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def combined(rows: Rows, center: Vector, lam: float | None = None) -> Combined:
    return Combined(center, lam=lam, rows=rows, center=center)


def test_distances_are_in_units_of_the_median_and_cosines_those_of_the_vectors() -> None:
    rows = np.array([[3.0, 0.0], [1.0, 2.0], [1.0, -4.0]])
    seen = examine([4, 5, 9], combined(rows, np.array([1.0, 0.0])), rng())
    assert seen is not None
    assert seen.workers == [4, 5, 9]
    assert seen.distance == [1.0, 1.0, 2.0]
    assert seen.cosine == pytest.approx([1.0, 1 / 5**0.5, 1 / 17**0.5])
    assert seen.kept == seen.weight == ()
    assert seen.same == []


def test_kept_is_what_clipping_leaves_of_the_length() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    seen = examine([0, 1, 2], combined(rows, np.array([1.0, 1.0]), lam=1.0), rng())
    assert seen is not None
    assert seen.kept == pytest.approx([0.2, 1.0, 1.0])
    assert seen.cosine[2] is None


def test_equal_vectors_are_told_zeros_are_not() -> None:
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    seen = examine(range(10, 17), combined(rows, np.array([1.0, 1.0])), rng())
    assert seen is not None
    assert seen.same == [[10, 12, 16], [13, 15]]


def test_where_most_rows_are_the_aggregate_the_others_are_farthest() -> None:
    rows = np.array([[1.0, 1.0]] * 3 + [[1.0, 1.1]])
    seen = examine(range(4), combined(rows, np.array([1.0, 1.0])), rng())
    assert seen is not None
    assert seen.distance == [1.0, 1.0, 1.0, FARTHEST]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hostile_numbers_give_finite_evidence(dtype: type) -> None:
    largest = np.finfo(dtype).max
    rows: Rows = np.array([[1, 2, 3], [largest, -largest, largest], [1, 2, 3.5], [0, 0, 0]], dtype)
    seen = examine(range(4), combined(rows, np.array([1, 2, 3], dtype), lam=2.0), rng())
    assert seen is not None
    numbers = [v for values in (seen.distance, seen.cosine, seen.kept) for v in values if v is not None]
    assert np.isfinite(numbers).all()
    assert seen.distance[1] == FARTHEST


def test_nothing_is_said_where_nothing_was_aggregated() -> None:
    assert examine([], Combined(None, note="no usable reply"), rng()) is None


def test_of_long_rows_a_random_part_is_looked_at_and_says_about_the_same() -> None:
    rows: Rows = np.random.default_rng(1).normal(size=(5, 4 * MOST)).astype(np.float32)
    rows[3] *= 4.0
    center = rows.mean(axis=0)
    seen = examine(range(5), combined(rows, center, lam=1000.0), rng())
    assert seen is not None
    far = np.linalg.norm(rows - center, axis=1)
    assert seen.distance == pytest.approx((far / np.sort(far)[2]).tolist(), rel=0.01)
    cosines = [float(row @ center / np.linalg.norm(row) / np.linalg.norm(center)) for row in rows]
    assert seen.cosine == pytest.approx(cosines, abs=0.01)
    assert seen.kept == pytest.approx((1000.0 / np.linalg.norm(rows, axis=1)).tolist(), rel=0.01)


def test_of_a_selection_the_entries_follow_and_who_was_not_seen_has_none() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    seen = examine([1, 2, 3], combined(rows, np.array([1.0, 1.0])), rng())
    assert seen is not None
    part = seen.of([3, 2, 8])
    assert part.workers == [3, 2, 8]
    assert part.distance == [seen.distance[2], seen.distance[1], None]
    assert part.same == []


MEANS = [
    Mean(),
    Krum(),
    MultiKrum(),
    MinimumDiameterAveraging(),
    MoNNA(),
    SmallestVarianceAveraging(),
    DivideAndConquer(),
    SignGuard(),
    ComparativeGradientElimination(),
    FLTrust(),
    MultiKrum(pre=(NearestNeighbourMixing(),)),
    GeometricMedian(pre=(Bucketing(s=2),)),
    Mean(pre=(StaticClipping(c=1.0),)),
    GeometricMedian(),
]


@pytest.mark.parametrize("rule", MEANS, ids=lambda rule: rule._name())
@pytest.mark.parametrize("d", [7, 40_000])
def test_the_weighted_sum_of_the_rows_is_the_aggregate(rule: Rule, d: int) -> None:
    rows = np.random.default_rng(3).normal(size=(9, d))
    root = root_of(rule, rows)
    vector, weights = rule.weigh(rows, 2, rng(), root)
    assert weights is not None
    # Weiszfeld's steps on a large array begin at the median, which keeps what weight the rows have not got.
    tolerance = 1e-4 if rule.kind == "rfa" else 1e-12
    assert np.allclose(weights @ rows, vector, rtol=tolerance, atol=tolerance * float(np.abs(vector).max()))
    assert np.array_equal(vector, rule(rows, 2, rng(), root))


@pytest.mark.parametrize("rule", [CenteredClipping(), CovarianceFilter()], ids=lambda rule: rule._name())
def test_an_outlier_has_little_weight(rule: Rule) -> None:
    rows = np.random.default_rng(3).normal(size=(9, 7))
    rows[4] += 1000.0
    _, weights = rule.weigh(rows, 2, rng())
    assert weights is not None
    assert weights[4] < 0.1 * np.median(weights)


def test_weights_survive_rows_beyond_the_range_of_squares() -> None:
    rows = 1e200 * np.random.default_rng(3).normal(size=(9, 7))
    _, weights = CovarianceFilter().weigh(rows, 2, rng())
    assert weights is not None
    assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "rule",
    [CoordinateMedian(), Bulyan(), CoordinateMedian(pre=(StaticClipping(c=1.0),))],
    ids=lambda rule: rule._name(),
)
def test_rules_that_look_at_every_coordinate_have_no_weights(rule: Rule) -> None:
    assert rule.weigh(np.random.default_rng(3).normal(size=(9, 7)), 1, rng())[1] is None


def test_distances_beyond_the_range_of_their_ratio_are_cut_off() -> None:
    rows = np.array([[1e-300, 0.0], [0.0, 1e-300], [1e300, 0.0]])
    seen = examine(range(3), combined(rows, np.array([1e-301, 1e-301])), rng())
    assert seen is not None
    assert seen.distance[2] == FARTHEST
