"""Rules over rows with declared weights: their definitions, unit vectors, ties, hostile rows, and large arrays."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from strategies.aggregators import (
    CenteredClipping,
    CoordinateMedian,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    Rule,
    TrimmedMean,
    weighted_rows,
)
from strategies.aggregators.networks import TRIMMED_MEAN
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.aggregators.weighted_rows import WeightedRows
from strategies.cohorts import aggregate
from strategies.compressors import Identity
from strategies.method import Rows, Vector
from strategies.robust_sgd import RobustSGD
from strategies.weights import Masses
from tests.toys import root_of

NNM = NearestNeighbourMixing()
RULES: list[Rule] = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    GeometricMedian(),
    CenteredClipping(),
    CenteredClipping(tau=0.5, steps=2),
    Mean(pre=(StaticClipping(c="median"),)),
    Mean(pre=(StaticClipping(c=1.5),)),
    CoordinateMedian(pre=(NNM,)),
    TrimmedMean(pre=(NNM,)),
    CoordinateMedian(pre=(Bucketing(s=2),)),
    TrimmedMean(pre=(Bucketing(s=2),)),
    FLTrust(),
    FLTrust(pre=(NNM,)),
]
VECTORS = np.array([[0, 1], [2, 1], [2, 5], [10, -3]], float)
WEIGHTS = [0.1, 0.4, 0.2, 0.3]


def name(rule: Rule) -> str:
    return "-".join([*(step.kind for step in rule.pre), rule.kind])


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# --- plain loops, written from the definitions ---


def plain_median(rows: Rows, mass: Masses, f: int) -> Vector:
    out = []
    for column in rows.T.tolist():
        pairs = sorted(zip(column, mass.tolist(), strict=True))
        total = sum(w for _, w in pairs)

        def weight(v: float, pairs: list[tuple[float, int]] = pairs) -> int:
            return sum(w for x, w in pairs if x <= v)

        lo = next(x for x, _ in pairs if 2 * weight(x) >= total)
        hi = next(x for x, _ in pairs if 2 * weight(x) > total)
        out.append((lo + hi) / 2)
    return np.array(out)


def plain_trimmed(rows: Rows, mass: Masses, f: int) -> Vector:
    total = int(mass.sum())
    cut = sum(sorted(mass.tolist(), reverse=True)[:f])
    out = []
    for column in rows.T.tolist():
        before, kept = 0, 0.0
        for x, w in sorted(zip(column, mass.tolist(), strict=True)):
            kept += x * max(0, min(before + w, total - cut) - max(before, cut))
            before += w
        out.append(kept / (total - 2 * cut))
    return np.array(out)


def plain_mean(rows: Rows, mass: Masses, f: int) -> Vector:
    mean: Vector = sum(w * row for w, row in zip(mass / mass.sum(), rows, strict=True))
    return mean


def plain_geometric(rows: Rows, mass: Masses, f: int) -> Vector:
    z = plain_mean(rows, mass, f)
    for _ in range(3000):
        q = mass / np.maximum(1e-12, np.linalg.norm(rows - z, axis=1))
        z = (q[:, None] * rows).sum(axis=0) / q.sum()
    return z


def plain_clipping(rows: Rows, mass: Masses, f: int) -> Vector:
    v, shares = plain_median(rows, mass, f), mass / mass.sum()
    for _ in range(3):
        apart = rows - v
        lengths = np.linalg.norm(apart, axis=1)
        ordered = np.argsort(lengths)
        tau = lengths[ordered[np.searchsorted(np.cumsum(mass[ordered]), mass.sum() / 2)]]
        v = v + (shares[:, None] * apart * np.minimum(1, tau / np.maximum(lengths, 1e-300))[:, None]).sum(axis=0)
    return v


def plain_nnm(rows: Rows, mass: Masses, f: int) -> Rows:
    reach = int(mass.sum()) - sum(sorted(mass.tolist(), reverse=True)[:f])
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        left = reach
        for j in sorted(range(len(rows)), key=lambda j: (j != i, float(((rows[j] - row) ** 2).sum()), j)):
            part = min(left, int(mass[j]))
            out[i] += part / reach * rows[j]
            left -= part
    return out


def plain_trust(rows: Rows, mass: Masses, f: int) -> Vector:
    """The first row is the server's own."""
    lengths = np.linalg.norm(rows, axis=1)
    trust = np.maximum(0.0, rows @ rows[0] / lengths / lengths[0]) * mass
    mean: Vector = (trust * lengths[0] / lengths) @ rows / trust.sum()
    return mean


PLAIN: list[tuple[Rule, Callable[[Rows, Masses, int], Vector], float]] = [
    (Mean(), plain_mean, 1e-12),
    (CoordinateMedian(), plain_median, 1e-12),
    (TrimmedMean(), plain_trimmed, 1e-12),
    (GeometricMedian(tol=1e-12, max_steps=5000), plain_geometric, 1e-5),
    (CenteredClipping(), plain_clipping, 1e-9),
    (FLTrust(), plain_trust, 1e-12),
    (CoordinateMedian(pre=(NNM,)), lambda rows, mass, f: plain_median(plain_nnm(rows, mass, f), mass, f), 1e-12),
]


@pytest.mark.parametrize(("rule", "plain", "tolerance"), PLAIN, ids=lambda x: name(x) if isinstance(x, Rule) else "")
@pytest.mark.parametrize("n", [3, 4, 7, 12])
def test_a_rule_is_its_definition(
    rule: Rule, plain: Callable[[Rows, Masses, int], Vector], tolerance: float, n: int
) -> None:
    for seed in range(5):
        draws = np.random.default_rng([n, seed])
        rows, mass = draws.normal(size=(n, 5)), draws.integers(1, 6, n)
        most = max(f for f in range(n) if rule.withstands(mass, f) and f <= rule.tolerates(n))
        for f in {0, most}:
            expected = plain(rows, mass, f)
            result = rule(rows, f, center=root_of(rule, rows), weights=mass.tolist())
            np.testing.assert_allclose(result, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(CoordinateMedian(), [2, 1]), (GeometricMedian(), [2, 1]), (Mean(), [4.2, 0.6])],
    ids=lambda x: name(x) if isinstance(x, Rule) else "",
)
def test_unit_vectors(rule: Rule, expected: list[float]) -> None:
    np.testing.assert_allclose(rule(VECTORS, 1, weights=WEIGHTS), expected, atol=1e-5)


def test_a_quarter_cut_off_at_either_end() -> None:
    """A cut that is no sum of heaviest weights: rows 1 and 3 lie at it, and are split."""
    rows = WeightedRows(VECTORS, mass=np.array([10, 40, 20, 30]))
    np.testing.assert_allclose(rows._order_by_mass(TRIMMED_MEAN, rows.counts, 25), [2.8, 0.6], atol=1e-12)


def test_the_objective_of_the_geometric_median() -> None:
    z = GeometricMedian()(VECTORS, 1, weights=WEIGHTS)
    objective = sum(w * np.linalg.norm(row - z) for w, row in zip(WEIGHTS, VECTORS, strict=True))
    assert objective == pytest.approx(3.683282, abs=1e-5)


def test_a_value_that_divides_the_weight_in_half_shares_the_median_with_the_next() -> None:
    assert CoordinateMedian()([[0.0], [4.0], [9.0]], 0, weights=[0.5, 0.25, 0.25]).tolist() == [2.0]
    assert CoordinateMedian()([[9.0], [0.0], [4.0]], 0, weights=[2, 1, 1]).tolist() == [6.5]


@pytest.mark.parametrize("share", [0.5, 0.6])
def test_a_row_with_half_of_the_weight_is_the_geometric_median(share: float) -> None:
    rows = np.array([[1.0, 1.0], [5.0, 5.0], [7.0, 0.0]])
    weights = [share, (1 - share) / 4, 3 * (1 - share) / 4]
    assert GeometricMedian()(rows, 0, weights=weights).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("shape", [(7, 5), (6, 50_000)], ids=["small", "large"])
def test_equal_weights_give_the_bits_of_none(rule: Rule, shape: tuple[int, int]) -> None:
    rows = rng().normal(size=shape).astype(np.float32)
    f = min(1, rule.tolerates(len(rows)))
    root = root_of(rule, rows)
    expected = rule(rows, f, rng(), root)
    assert np.array_equal(rule(rows, f, rng(), root, weights=[0.7] * len(rows)), expected)
    assert np.array_equal(rule.weigh(rows, f, rng(), root, np.full(len(rows), 9))[0], expected)


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kernels_agree_with_numpy(rule: Rule, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (3, 5, 8, 13, 20):
        draws = np.random.default_rng(n)
        rows: Rows = draws.normal(size=(n, 2500)).astype(dtype)
        mass = draws.integers(1, 4, n)
        rows[:, ::7] = draws.integers(-2, 3, rows[:, ::7].shape)  # ties
        f = max(f for f in range(n) if rule.withstands(mass, f) and f <= rule.tolerates(n))
        root = root_of(rule, rows)
        small = rule.weigh(rows, f, rng(), root, mass)[0]
        with monkeypatch.context() as patch:
            patch.setattr(weighted_rows, "LARGE", 1)
            large = rule.weigh(rows, f, rng(), root, mass)[0]
        assert large.dtype == dtype
        np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-5 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("rule", [Mean(), CoordinateMedian(), TrimmedMean()], ids=name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_numbers_do_not_overflow(
    rule: Rule, dtype: type, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(weighted_rows, "LARGE", 1)
    most = np.finfo(dtype).max
    rows: Rows = np.full((5, 9), most, dtype)
    mass = np.array([3, 1, 2, 2, 1])
    assert (rule.weigh(rows, 1, rng(), None, mass)[0] >= most * (1 - 1e-6)).all()
    rows[0] = -most
    result = rule.weigh(rows, 1, rng(), None, mass)[0]
    assert np.isfinite(result).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kind != "mean"], ids=name)
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_the_heaviest_rows_cannot_pull_a_rule_away(rule: Rule, size: float) -> None:
    """Two rows with 43 % of the weight, of which each is one of seven."""
    mass = np.array([3, 3, 2, 2, 2, 1, 1])
    f = 2 if rule.withstands(mass, 2) else 1
    assert rule.withstands(mass, f)
    honest = rng().normal(size=(7, 4))
    for direction in (np.ones(4), -np.ones(4)):
        rows = honest.copy()
        rows[:f] = size * direction
        assert np.abs(rule.weigh(rows, f, rng(), root_of(rule, honest), mass)[0]).max() < 20


def test_a_light_majority_of_rows_cannot_outvote_a_heavy_minority() -> None:
    rows = np.array([[1.0], [1.1], [50.0], [50.0], [50.0]])
    for rule in (CoordinateMedian(), GeometricMedian()):
        assert rule(rows, 0, weights=[5, 5, 1, 1, 1])[0] == pytest.approx(1.1, abs=0.1)
        assert rule(rows, 0)[0] == pytest.approx(50.0, abs=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_as_without_weights(bad: float) -> None:
    rows = VECTORS.copy()
    rows[1, 0] = bad
    with pytest.raises(ValueError, match="row 1 holds NaN or infinite numbers"):
        CoordinateMedian()(rows, 1, weights=WEIGHTS)


@pytest.mark.parametrize(
    ("rule", "weights", "f", "why"),
    [
        (Krum(), WEIGHTS, 0, "weights: krum does not take any"),
        (MeanAroundMedian(), WEIGHTS, 0, "weights: meamed does not take any"),
        (CoordinateMedian(pre=(AdaptiveRobustClipping(),)), WEIGHTS, 0, "weights: arc does not take any"),
        (CoordinateMedian(), WEIGHTS[:3], 0, "weights: 3 of them for n' = 4 rows; give one for each"),
        (CoordinateMedian(), [1, 1, 0, 1], 0, "weights[2] = 0.0: must be a finite number above 0"),
        (CoordinateMedian(), [5, 1, 2, 2], 1, "f = 1: the 1 heaviest of n' = 4 rows can spoil half of the weight"),
    ],
    ids=lambda x: name(x) if isinstance(x, Rule) else "",
)
def test_weights_are_refused_with_the_reason(rule: Rule, weights: list[float], f: int, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        rule(VECTORS, f, rng(), weights=weights)


def test_a_rule_of_the_server_refuses_weights_too() -> None:
    with pytest.raises(ValueError, match="weights: krum does not take any"):
        Krum().weigh(VECTORS, 0, rng(), None, np.array([1, 2, 3, 4]))


@pytest.mark.parametrize("weights", [(1, 2, 3), (1, 2, 3, 0)])
def test_a_method_has_a_weight_for_every_client(weights: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be n = 4 whole numbers of at least 1"):
        RobustSGD(n=4, f=1, gamma=0.1, aggregator=CoordinateMedian(), compressor=Identity(), cohort=4, weights=weights)


def test_buckets_add_weights_and_spoil_those_of_their_rows() -> None:
    rows = WeightedRows(np.arange(6.0).reshape(6, 1), mass=np.array([1, 2, 3, 4, 5, 6]))
    mixed = Bucketing(s=2).mix(rows, 1, rng())
    order = rng().permutation(6).reshape(3, 2)
    assert mixed.mass is not None
    assert mixed.mass.tolist() == [sum(i + 1 for i in pair) for pair in order.tolist()]
    expected = [sum((i + 1) * i for i in pair) / sum(i + 1 for i in pair) for pair in order.tolist()]
    np.testing.assert_allclose(mixed.array()[:, 0], expected)
    rule = CoordinateMedian(pre=(Bucketing(s=2),))
    with pytest.raises(ValueError, match="f = 1: the 1 heaviest of n' = 6 rows can spoil half of the weight or more"):
        rule(np.eye(6), 1, rng(), weights=[6, 5, 1, 1, 1, 1])
    assert rule.withstands(np.array([2, 2, 2, 2, 2, 1]), 1)
    assert not rule.withstands(np.array([6, 5, 1, 1, 1, 1]), 1)  # both may be in one bucket


def test_kappa_has_delta_in_the_place_of_the_share() -> None:
    """20 rows of which 5 are Byzantine: a quarter, whether by number or by weight."""
    for rule in (CoordinateMedian(), TrimmedMean(), GeometricMedian(), CoordinateMedian(pre=(NNM,))):
        assert rule.weighted_kappa(0.25) == pytest.approx(rule.kappa(20, 5))
    assert CoordinateMedian().weighted_kappa(0.4) == pytest.approx(36.0)
    assert Mean().weighted_kappa(0.25) is None
    assert CoordinateMedian(pre=(Bucketing(s=2),)).weighted_kappa(0.1) is None


# --- how many rows must come ---


def test_a_round_is_below_quorum_where_f_of_its_rows_may_have_half_of_the_weight() -> None:
    rows, mass = rng().normal(size=(4, 2)), np.array([4, 3, 2, 2])
    assert aggregate(CoordinateMedian(), rows, 4, 1, rng(), mass=mass, asked=4).vector is not None
    for gone, came in ((0, False), (2, True)):
        left = np.delete(np.arange(4), gone)
        combined = aggregate(CoordinateMedian(), rows[left], 4, 1, rng(), mass=np.array([4, 1, 1, 1])[left], asked=4)
        assert (combined.vector is not None, combined.below_quorum) == (not came, came)
    assert combined.note.startswith("no quorum by weight: 1 of the 3 rows may have 66.7 % of their weight")


def test_all_byzantine_rows_count_where_everybody_was_asked() -> None:
    """Of 20 clients 5 may be Byzantine. 12 came: those that are missing are not known to be among the 5."""
    rows, mass = rng().normal(size=(12, 2)), np.array([3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1])
    assert aggregate(CoordinateMedian(), rows, 20, 5, rng(), mass=mass, asked=20).below_quorum
    assert not aggregate(CoordinateMedian(), rows, 20, 5, rng(), mass=mass, asked=12).below_quorum  # of 12 sampled, 3


def test_clipped_rows_are_defended_as_far_as_the_rule_can() -> None:
    rows, mass = rng().normal(size=(3, 2)), np.array([5, 1, 1])
    combined = aggregate(TrimmedMean(), rows, 20, 5, rng(), mass=mass, clipped=True)
    assert combined.vector is not None
    assert np.array_equal(combined.vector, TrimmedMean().weigh(rows, 0, rng(), None, mass)[0])


def test_the_plain_mean_needs_no_quorum() -> None:
    rows, mass = rng().normal(size=(2, 2)), np.array([5, 1])
    assert aggregate(Mean(), rows, 4, 1, rng(), mass=mass, asked=4).vector is not None


def test_weights_of_rows_are_those_that_the_rule_gave() -> None:
    rows, mass = rng().normal(size=(5, 3)), np.array([1, 2, 3, 2, 1])
    for rule in (Mean(), GeometricMedian(), replace(Mean(), pre=(NNM,)), CenteredClipping(tau=100.0)):
        vector, taken = rule.weigh(rows, 1, rng(), None, mass)
        assert taken is not None
        np.testing.assert_allclose(taken @ rows, vector, atol=1e-6)
