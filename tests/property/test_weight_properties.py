"""Laws of weights: N_i copies of row i are a weight of N_i; shares after a cap; a bound on what f rows can do."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregators import (
    CenteredClipping,
    CoordinateMedian,
    FLTrust,
    GeometricMedian,
    Mean,
    Rule,
    TrimmedMean,
)
from strategies.aggregators.preaggregators import Bucketing, NearestNeighbourMixing, StaticClipping
from strategies.aggregators.weighted_rows import WeightedRows
from strategies.weights import TOTAL, capped, heaviest, whole_weights
from tests.toys import rng, root_of

NNM = NearestNeighbourMixing()
REPLICATED: list[Rule] = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    GeometricMedian(tol=1e-10, max_steps=1000),
    CenteredClipping(),
    CenteredClipping(tau=1.0),
    Mean(pre=(StaticClipping(c="median"),)),
    Mean(pre=(StaticClipping(),)),
    FLTrust(),
    FLTrust(pre=(NNM,)),
]
BOUNDED: list[Rule] = [CoordinateMedian(), TrimmedMean(), GeometricMedian(), CoordinateMedian(pre=(NNM,))]
COUNTS = st.lists(st.integers(1, 5), min_size=2, max_size=8)
SEEDS = st.integers(0, 2**20)


def name(rule: object) -> str:
    assert isinstance(rule, Rule)
    return "-".join([*(step.kind for step in rule.pre), rule.kind])


def most(rule: Rule, mass: list[int]) -> int:
    """Return the largest f that the rule withstands."""
    counts = np.array(mass)
    return max(f for f in range(len(mass)) if f <= rule.tolerates(len(mass)) and rule.withstands(counts, f))


@pytest.mark.parametrize("rule", REPLICATED, ids=name)
@given(counts=COUNTS, seed=SEEDS, ties=st.booleans())
def test_a_weight_of_three_is_three_equal_rows(rule: Rule, counts: list[int], seed: int, ties: bool) -> None:
    draws = np.random.default_rng(seed)
    rows = draws.integers(-3, 4, (len(counts), 3)).astype(float) if ties else draws.normal(size=(len(counts), 3))
    f = most(rule, counts)
    copies = np.repeat(rows, counts, axis=0)
    expected = rule(copies, heaviest(np.array(counts), f), rng(), root_of(rule, rows))
    tolerance = 1e-4 if rule.kind == "rfa" else 1e-10
    np.testing.assert_allclose(rule(rows, f, rng(), root_of(rule, rows), weights=counts), expected, atol=tolerance)


@given(counts=COUNTS, seed=SEEDS)
def test_mixing_weighted_rows_is_mixing_their_copies(counts: list[int], seed: int) -> None:
    rows, mass = np.random.default_rng(seed).normal(size=(len(counts), 3)), np.array(counts)
    f = most(CoordinateMedian(pre=(NNM,)), counts)
    mixed = NNM.mix(WeightedRows(rows, mass=mass), f, rng())
    copies, _ = NNM(np.repeat(rows, counts, axis=0), heaviest(mass, f))
    np.testing.assert_allclose(np.repeat(mixed.array(), counts, axis=0), copies, atol=1e-12)


@pytest.mark.parametrize("rule", BOUNDED, ids=name)
@given(counts=COUNTS.filter(lambda counts: len(counts) > 2), seed=SEEDS, size=st.sampled_from([1.0, 10.0, 1e6]))
def test_the_error_is_within_kappa_times_the_weighted_variance(
    rule: Rule, counts: list[int], seed: int, size: float
) -> None:
    """Whoever the f Byzantine rows are, and whatever they hold."""
    draws, mass = np.random.default_rng(seed), np.array(counts)
    f = most(rule, counts)
    rows = draws.normal(size=(len(counts), 3))
    bad = draws.permutation(len(counts))[:f]
    rows[bad] = size * draws.normal(size=(f, 3))
    honest = np.delete(np.arange(len(counts)), bad)
    share = mass[honest] / mass[honest].sum()
    mean = share @ rows[honest]
    variance = float(share @ ((rows[honest] - mean) ** 2).sum(axis=1))
    kappa = rule.weighted_kappa(heaviest(mass, f) / int(mass.sum()))
    assert kappa is not None
    error = float(((rule(rows, f, rng(), weights=counts) - mean) ** 2).sum())
    assert error <= kappa * variance + 1e-9 or f == 0


@pytest.mark.parametrize("rule", [*REPLICATED, *BOUNDED], ids=name)
@given(counts=COUNTS, seed=SEEDS)
def test_the_order_of_rows_does_not_matter(rule: Rule, counts: list[int], seed: int) -> None:
    draws, f = np.random.default_rng(seed), most(rule, counts)
    rows, order = draws.normal(size=(len(counts), 3)), draws.permutation(len(counts))
    root = root_of(rule, rows)
    moved = rule(rows[order], f, rng(), root, weights=[counts[i] for i in order])
    np.testing.assert_allclose(moved, rule(rows, f, rng(), root, weights=counts), atol=1e-5)


@given(counts=COUNTS, seed=SEEDS)
def test_buckets_never_exceed_the_weight_that_is_checked(counts: list[int], seed: int) -> None:
    rule, mass = CoordinateMedian(pre=(Bucketing(s=2),)), np.array(counts)
    f = most(rule, counts)
    draws = np.random.default_rng(seed)
    mixed = Bucketing(s=2).mix(WeightedRows(draws.normal(size=(len(counts), 2)), mass=mass), f, draws)
    if mixed.mass is not None and f:
        assert 2 * heaviest(mixed.mass, f) < mixed.mass.sum()


WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


@given(weights=WEIGHTS, cap=st.floats(0.0, 1.0))
def test_shares_under_a_cap(weights: list[float], cap: float) -> None:
    cap = max(cap, 1 / len(weights))
    shares = capped(weights, cap)
    assert sum(shares) == 1
    assert max(shares) <= max(Fraction(str(cap)), Fraction(1, len(weights)))
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    assert [shares[i] for i in order] == sorted(shares)
    free = [i for i in order if shares[i] < max(shares)]
    ratios = [float(shares[i]) / weights[i] for i in free]
    assert not ratios or max(ratios) == pytest.approx(min(ratios))  # those below the cap keep their proportion


@given(weights=WEIGHTS)
def test_whole_numbers_keep_the_ratios(weights: list[float]) -> None:
    whole = whole_weights(weights)
    if not whole:
        assert len(set(weights)) == 1
        return
    assert min(whole) >= 1
    assert sum(whole) <= TOTAL + len(weights)
    shares = np.array(whole) / sum(whole)
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=(len(weights) + 1) / TOTAL)


def test_replication_holds_through_clipping_and_mixing() -> None:
    """One long row of weight 2, clipped to the median length, then mixed."""
    rule = replace(CoordinateMedian(), pre=(StaticClipping(c="median"), NNM))
    rows, counts = np.array([[9.0, 0], [1, 0], [0, 1], [1, 1]]), [2, 1, 2, 1]
    expected = rule(np.repeat(rows, counts, axis=0), 2)
    np.testing.assert_allclose(rule(rows, 1, weights=counts), expected, atol=1e-12)
