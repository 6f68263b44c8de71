"""Laws that every rule keeps, whatever the rows: invariances, what it leaves alone, and how far f rows can pull it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.method import Rows
from tests.toys import root_of

NNM = NearestNeighbourMixing()
ROBUST: list[Rule] = [CoordinateMedian(), TrimmedMean(), GeometricMedian(), Krum()]
MORE: list[Rule] = [
    MeanAroundMedian(),
    MultiKrum(),
    Bulyan(),
    MinimumDiameterAveraging(),
    MoNNA(),
    CenteredClipping(),
    CovarianceFilter(),
    SmallestVarianceAveraging(),
    DivideAndConquer(),
    ComparativeGradientElimination(),
]
SHORTENED: list[Rule] = [
    SignGuard(),
    FLTrust(),
    Mean(pre=(StaticClipping(),)),
    Mean(pre=(AdaptiveRobustClipping(),)),
]
MIXED: list[Rule] = [replace(rule, pre=(NNM,)) for rule in ROBUST]
BUCKETED: list[Rule] = [replace(rule, pre=(Bucketing(s=2),)) for rule in ROBUST]
ALL: list[Rule] = [Mean(), *ROBUST, *MIXED, *BUCKETED]
CLIPS = ("static-clip", "arc")

DTYPES = st.sampled_from([np.float32, np.float64])


def name(rule: object) -> str:
    assert isinstance(rule, Rule)
    return "-".join([*(step.kind for step in rule.pre), rule.kind])


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


@st.composite
def any_rows(draw: st.DrawFn, least: int = 1) -> Rows:
    """Rows of every size that floats have: zeros, ties, denormals and 2^100 = 1.3e30 among them."""
    shape = draw(st.tuples(st.integers(least, 9), st.integers(1, 4)))
    dtype = draw(DTYPES)
    number = st.one_of(
        st.floats(-(2.0**100), 2.0**100, width=32),
        st.sampled_from([0.0, -0.0, 1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**100, -(2.0**100)]),
    )
    return draw(hnp.arrays(dtype, shape, elements=number))


@st.composite
def tame_rows(draw: st.DrawFn, least: int = 3) -> Rows:
    """Rows of small multiples of 1/8, on which float64 sums are exact."""
    shape = draw(st.tuples(st.integers(least, 9), st.integers(1, 4)))
    return draw(hnp.arrays(np.int8, shape)).astype(np.float64) / 8


@pytest.mark.parametrize("rule", [*ALL, *MORE, *SHORTENED], ids=name)
@given(rows=any_rows())
def test_keeps_shape_type_and_input_and_stays_finite(rule: Rule, rows: Rows) -> None:
    f = rule.tolerates(len(rows))
    if f < 0:
        return
    before = rows.copy()
    rows.flags.writeable = False
    result = rule(rows, f, generator(), root_of(rule, rows))
    assert result.shape == rows.shape[1:]
    assert result.dtype == rows.dtype
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(rows, before)
    assert not np.shares_memory(result, rows)


@pytest.mark.parametrize("rule", [*ALL, *MORE], ids=name)
@given(rows=any_rows())
def test_stays_within_the_range_of_the_rows(rule: Rule, rows: Rows) -> None:
    f = rule.tolerates(len(rows))
    if f < 0:
        return
    result = rule(rows, f, generator()).astype(np.float64)
    slack = 1e-6 * np.abs(rows).max(axis=0).astype(np.float64) + np.finfo(rows.dtype).smallest_subnormal
    assert (result >= rows.min(axis=0) - slack).all()
    assert (result <= rows.max(axis=0) + slack).all()


@pytest.mark.parametrize("rule", [*ALL, *MORE, SignGuard(), FLTrust()], ids=name)
@given(row=hnp.arrays(np.float64, 3, elements=st.floats(-1e30, 1e30)), n=st.integers(1, 8))
def test_equal_rows_give_that_row(rule: Rule, row: np.ndarray, n: int) -> None:
    if rule.tolerates(n) >= 0:
        rows = np.tile(row, (n, 1))
        np.testing.assert_allclose(rule(rows, 0, generator(), root_of(rule, rows)), row, rtol=1e-15, atol=n * 5e-324)


@pytest.mark.parametrize(
    "rule",
    [
        Mean(),
        CoordinateMedian(),
        TrimmedMean(),
        GeometricMedian(),
        MeanAroundMedian(),
        CenteredClipping(),
        SignGuard(),
        FLTrust(),
    ],
    ids=name,
)
@given(rows=tame_rows(), data=st.data())
def test_order_of_rows_does_not_matter(rule: Rule, rows: Rows, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    f = rule.tolerates(len(rows))
    root = root_of(rule, rows)
    np.testing.assert_allclose(rule(rows[order], f, generator(), root), rule(rows, f, generator(), root), atol=2e-4)


@pytest.mark.parametrize(
    "rule",
    [Krum(), *MIXED[:3], *MORE[1:2], *MORE[6:], DivideAndConquer(iters=2, sub=2), *SHORTENED],
    ids=name,
)
@given(seed=st.integers(0, 2**32), n=st.integers(5, 9))
def test_order_of_rows_does_not_matter_where_no_distances_tie(rule: Rule, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rows, order = rng.normal(size=(n, 4)), rng.permutation(n)
    # f = 1: at the largest f Krum has one neighbour to count, which two rows are for each other, so that they tie.
    # (So they do after nnm, which makes pairs of equal rows.)
    root = root_of(rule, rows)
    np.testing.assert_allclose(rule(rows[order], 1, generator(), root), rule(rows, 1, generator(), root), atol=1e-4)


@pytest.mark.parametrize("rule", [Bulyan(), MinimumDiameterAveraging()], ids=name)
@given(seed=st.integers(0, 2**32))
def test_order_of_rows_does_not_matter_where_no_choice_ties(rule: Rule, seed: int) -> None:
    # Bulyan's last choice has f - 1 neighbours to count; the one set of least diameter is all but the far rows.
    rng = np.random.default_rng(seed)
    rows, order = rng.normal(size=(15, 4)), rng.permutation(15)
    rows[:3] += [[50.0], [-70.0], [90.0]]
    np.testing.assert_allclose(rule(rows[order], 3, generator()), rule(rows, 3, generator()), atol=1e-9)


@pytest.mark.parametrize("rule", [*ALL, MeanAroundMedian(), MoNNA(), CenteredClipping()], ids=name)
@given(rows=tame_rows(), shift=st.integers(-1000, 1000))
def test_shifted_rows_give_the_shifted_result(rule: Rule, rows: Rows, shift: int) -> None:
    f = rule.tolerates(len(rows))
    if f >= 0:
        result = rule(rows, f, generator())
        np.testing.assert_allclose(rule(rows + shift, f, generator()), result + shift, atol=2e-3)


@pytest.mark.parametrize("rule", [MultiKrum(), *MORE[6:9]], ids=name)
@given(seed=st.integers(0, 2**32), n=st.integers(5, 9), shift=st.integers(-1000, 1000))
def test_shifted_rows_give_the_shifted_result_where_nothing_ties(rule: Rule, seed: int, n: int, shift: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, 4))
    result = rule(rows, 1, generator())
    np.testing.assert_allclose(rule(rows + shift, 1, generator()), result + shift, atol=1e-6)


@pytest.mark.parametrize("rule", [*ALL, MeanAroundMedian(), CenteredClipping(), *MORE[-2:], *SHORTENED[:2]], ids=name)
@given(rows=tame_rows(), power=st.sampled_from([-900, -300, -60, -1, 1, 60, 300, 900]))
def test_scaled_rows_give_the_scaled_result(rule: Rule, rows: Rows, power: int) -> None:
    f = rule.tolerates(len(rows))
    if f >= 0 and (abs(power) <= 60 or not uses_squares(rule)):
        longer, root = rows * 2.0**power, root_of(rule, rows)
        scaled = rule(longer, f, generator(), root_of(rule, longer))
        np.testing.assert_allclose(scaled / 2.0**power, rule(rows, f, generator(), root), atol=2e-3)


def uses_squares(rule: Rule) -> bool:
    """Whether the rule compares squared distances, which leave float64 before the rows do."""
    return rule.kind == "krum" or NNM in rule.pre


BOUNDED: list[Rule] = [*ROBUST, *MIXED, SmallestVarianceAveraging()]
"""Rules with a kappa."""


@pytest.mark.parametrize("rule", BOUNDED, ids=name)
@given(rows=any_rows(least=3), data=st.data())
def test_f_arbitrary_rows_move_it_no_further_than_kappa_allows(rule: Rule, rows: Rows, data: st.DataObject) -> None:
    """||R - mean_S||^2 <= kappa * mean over S of ||x_i - mean_S||^2, for the n - f honest rows S."""
    n = len(rows)
    f = data.draw(st.integers(0, rule.tolerates(n)))
    rows = np.concatenate([data.draw(honest_rows(n - f, rows.shape[1], rows.dtype)), rows[:f]])
    kappa = rule.kappa(n, f)
    assert kappa is not None
    honest = rows[: n - f].astype(np.float64)
    spread = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
    error = np.linalg.norm(rule(rows, f, generator()) - honest.mean(axis=0))
    assert error <= np.sqrt(kappa * spread) + 1e-5 * (np.abs(honest).max() + np.sqrt(spread)) + 1e-30


def worst_ratio(rule: Rule, rows: Rows, f: int) -> float:
    """Return the largest ||R - mean_S||^2 over the mean of ||v_i - mean_S||^2 over S, for all S of n - f rows."""
    chosen = np.array(list(combinations(range(len(rows)), len(rows) - f)))
    sets = rows[chosen]
    means = sets.mean(axis=1)
    spreads = ((sets - means[:, None]) ** 2).sum(axis=2).mean(axis=1)
    errors = ((rule(rows, f, generator()) - means) ** 2).sum(axis=1)
    return float(np.max(errors / np.maximum(spreads, 1e-12)))


def adversarial_rows(n: int, f: int) -> Iterator[Rows]:
    """Yield rows with f attackers: far and near, one-sided and on both sides, beside the honest and among them."""
    rng = np.random.default_rng([n, f])
    for d in (1, 2, 5):
        for honest in (
            rng.normal(size=(n - f, d)),
            np.sign(rng.normal(size=(n - f, d))),  # two heaps a coordinate
            np.r_[np.zeros((n - 2 * f, d)), np.ones((f, d))],  # f honest outliers
            np.r_[np.zeros((n - 2 * f, d)), np.eye(d)[np.arange(f) % d]],
        ):
            out = np.ones(d) / d**0.5
            std = honest.std(axis=0)
            for size in (0.3, 1.0, 1.5, 3.0, 30.0, 1e4):
                yield np.r_[honest, np.tile(honest.mean(axis=0) + size * std * out, (f, 1))]
                yield np.r_[honest, honest.mean(axis=0) - size * std * rng.normal(size=(f, d))]
            yield np.r_[honest, np.tile(honest[-1], (f, 1))]  # they join the outermost honest row
            yield np.r_[honest, np.tile(-honest.mean(axis=0), (f, 1))]


@pytest.mark.parametrize(("n", "f"), [(10, 2), (11, 4), (7, 1)])
@pytest.mark.parametrize("rule", BOUNDED, ids=name)
def test_no_attack_gets_past_kappa_and_some_attack_gets_as_far_as_no_rule_can_prevent(
    rule: Rule, n: int, f: int
) -> None:
    kappa, least = rule.kappa(n, f), f / (n - 2 * f)
    assert kappa is not None
    worst = max(worst_ratio(rule, rows, f) for rows in adversarial_rows(n, f))
    assert least * (1 - 1e-6) <= worst <= kappa
    if rule == TrimmedMean():
        assert worst == pytest.approx(least)


@pytest.mark.parametrize("rule", [Mean(), *MORE[-2:], *SHORTENED[:2]], ids=name)
def test_rules_without_kappa_are_moved_where_all_honest_rows_are_equal(rule: Rule) -> None:
    honest = np.array([1.0, 2.0, -3.0, 0.5])
    attack = {
        "mean": [honest, honest + 1.0],
        "dnc": [honest + np.array([9.0, 0, 0, 0]), honest + np.array([1.0, 1, 0, 0])],  # one at the mean of axis 0
        "signguard": [honest[[0, 1, 2, 3]], honest[[1, 0, 2, 3]]],  # the same numbers in other places
        "cge": [-0.9 * honest, -0.9 * honest],  # shorter than all
        "fltrust": [honest + np.array([4.0, -2.0, 0, 0])] * 2,  # of the same length in the end, beside the root
    }[rule.kind]
    assert rule.kappa(10, 2) is None
    rows = np.concatenate([attack, np.tile(honest, (8, 1))])
    center = honest if rule.needs_root else None
    assert np.linalg.norm(rule(rows, 2, generator(), center) - honest) > 0.1


def honest_rows(n: int, d: int, dtype: np.dtype[Any]) -> st.SearchStrategy[Rows]:
    return hnp.arrays(dtype, (n, d), elements=st.floats(-100, 100, width=32))


@pytest.mark.parametrize("rule", [*MORE, *SHORTENED[:2]], ids=name)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e3, 1e30, -1e30, 3e38]), dtype=DTYPES)
def test_f_huge_rows_do_not_move_it_out_of_the_others(rule: Rule, seed: int, size: float, dtype: type) -> None:
    f = rule.tolerates(11)
    rows: Rows = np.random.default_rng(seed).uniform(-1, 1, (11, 4)).astype(dtype)
    root = root_of(rule, rows)
    rows[11 - f :] = size  # the first row, which monna trusts, stays honest
    assert np.abs(rule(rows, f, generator(), root)).max() <= 5.0


@pytest.mark.parametrize("rule", BUCKETED, ids=name)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e3, 1e30, -1e30]))
def test_bucketed_rules_hold_up_to_what_they_tolerate(rule: Rule, seed: int, size: float) -> None:
    f = rule.tolerates(13)
    rows = np.random.default_rng(seed).uniform(-1, 1, (13, 4)).astype(np.float32)
    rows[:f] = size
    assert np.abs(rule(rows, f, np.random.default_rng(seed))).max() <= 10.0


@given(rows=any_rows(least=2))
def test_the_mean_is_destroyed_by_one_row(rows: Rows) -> None:
    rows = np.clip(rows, -1, 1)
    rows[0] = 1e6
    assert (Mean()(rows, 1, generator()) >= (1e6 - len(rows)) / len(rows)).all()


@given(rows=any_rows(), s=st.integers(1, 10))
def test_bucketing_with_the_same_generator_is_the_same(rows: Rows, s: int) -> None:
    step = Bucketing(s=s)
    first, second = (step(rows, 0, np.random.default_rng(1))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == step.after(len(rows), 0)[0]
