"""Rules and pre-aggregators against their definitions, written as plain loops over Python numbers."""

import math
import statistics
from collections.abc import Iterable
from itertools import combinations, pairwise

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
    weighted_rows,
)
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    PreAggregator,
    StaticClipping,
)
from strategies.method import Rows
from tests.toys import root_of

Lists = list[list[float]]


def slow_mean(rows: Lists, f: int) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_median(rows: Lists, f: int) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def slow_trimmed_mean(rows: Lists, f: int) -> list[float]:
    result = []
    for column in zip(*rows, strict=True):
        kept = sorted(column)[f : len(rows) - f]
        result.append(math.fsum(kept) / len(kept))
    return result


def slow_krum(rows: Lists, f: int) -> list[float]:
    best, least = rows[0], math.inf
    for i, row in enumerate(rows):
        squares = sorted(math.dist(row, other) ** 2 for j, other in enumerate(rows) if j != i)
        score = math.fsum(squares[: len(rows) - f - 2])
        if score < least:
            best, least = row, score
    return best


def slow_geometric_median(rows: Lists, f: int) -> list[float]:
    """Descend by halving steps along every axis and to every row until nothing smaller than 1e-9 helps."""

    def cost(z: list[float]) -> float:
        return math.fsum(math.dist(row, z) for row in rows)

    z = min(rows, key=cost)
    step = max(math.dist(row, z) for row in rows)
    while step > 1e-9:
        size = math.hypot(*(g := gradient(rows, z)))
        towards = [[a - step * b / size for a, b in zip(z, g, strict=True)]] if size > 0 else []
        for axis in range(len(z)):
            for sign in (-step, step):
                towards.append([a + sign * (i == axis) for i, a in enumerate(z)])
        best = min(towards, key=cost)
        if cost(best) < cost(z):
            z = best
        else:
            step /= 2
    return z


def gradient(rows: Lists, z: list[float]) -> list[float]:
    """Return the gradient of the sum of distances; rows at z itself do not count."""
    g = [0.0] * len(z)
    for row in rows:
        if (distance := math.dist(row, z)) > 0:
            g = [a + (b - c) / distance for a, b, c in zip(g, z, row, strict=True)]
    return g


def slow_mean_around_median(rows: Lists, f: int) -> list[float]:
    result = []
    for column in zip(*rows, strict=True):
        middle = statistics.median(column)
        kept = sorted(column, key=lambda value: (abs(value - middle), value))[: len(rows) - f]
        result.append(math.fsum(kept) / len(kept))
    return result


def slow_multi_krum(rows: Lists, f: int) -> list[float]:
    def score(i: int) -> float:
        return math.fsum(
            sorted(math.dist(rows[i], row) ** 2 for j, row in enumerate(rows) if j != i)[: len(rows) - f - 2]
        )

    return slow_mean([rows[i] for i in sorted(range(len(rows)), key=score)[: len(rows) - f]], 0)


def slow_bulyan(rows: Lists, f: int) -> list[float]:
    left, chosen = list(rows), []
    for _ in range(len(rows) - 2 * f):
        scores = []
        for i, row in enumerate(left):
            squares = sorted(math.dist(row, other) ** 2 for j, other in enumerate(left) if j != i)
            scores.append(math.fsum(squares[: max(1, len(left) - f - 2)]))
        chosen.append(left.pop(scores.index(min(scores))))
    return slow_mean_around_median(chosen, 2 * f)


def slow_minimum_diameter(rows: Lists, f: int) -> list[float]:
    def diameter(chosen: Iterable[list[float]]) -> float:
        chosen = list(chosen)
        return max(math.dist(a, b) for a in chosen for b in chosen)

    return slow_mean(list(min(combinations(rows, len(rows) - f), key=diameter)), 0)


def slow_monna(rows: Lists, f: int) -> list[float]:
    return slow_mean(sorted(rows, key=lambda row: math.dist(row, rows[0]))[: len(rows) - f], 0)


def slow_centered_clipping(rows: Lists, f: int) -> list[float]:
    v = slow_median(rows, 0)
    for _ in range(3):
        distances = [math.dist(row, v) for row in rows]
        tau = sorted(distances)[(len(rows) - 1) // 2]
        moves = [
            [(a - b) * (1.0 if far <= tau else tau / far) for a, b in zip(row, v, strict=True)]
            for row, far in zip(rows, distances, strict=True)
        ]
        v = [a + b for a, b in zip(v, slow_mean(moves, 0), strict=True)]
    return v


def covariance(rows: Lists, weights: list[float]) -> tuple[list[float], Lists]:
    """Return the weighted mean and covariance."""
    total = math.fsum(weights)
    mean = [
        math.fsum(w * a for w, a in zip(weights, column, strict=True)) / total for column in zip(*rows, strict=True)
    ]
    apart = [[a - b for a, b in zip(row, mean, strict=True)] for row in rows]
    axes = range(len(mean))
    return mean, [
        [math.fsum(w * x[i] * x[j] for w, x in zip(weights, apart, strict=True)) / total for j in axes] for i in axes
    ]


def main_axis(matrix: Lists) -> tuple[float, list[float]]:
    """Return the largest eigenvalue and its unit vector, by squaring the matrix until only they are left."""
    power = matrix
    for _ in range(60):
        largest = max(abs(a) for row in power for a in row)
        if largest == 0.0:
            return 0.0, [1.0] + [0.0] * (len(matrix) - 1)
        power = [[a / largest for a in row] for row in power]
        power = [[math.fsum(a * power[k][j] for k, a in enumerate(row)) for j in range(len(row))] for row in power]
    v = max(power, key=lambda row: math.hypot(*row))
    v = [a / math.hypot(*v) for a in v]
    return math.fsum(v[i] * matrix[i][j] * v[j] for i in range(len(v)) for j in range(len(v))), v


def slow_covariance_filter(rows: Lists, f: int) -> list[float]:
    weights, best, least = [1.0] * len(rows), slow_mean(rows, 0), math.inf
    while math.fsum(weights) > len(rows) - 2 * f:
        mean, matrix = covariance(rows, weights)
        largest, v = main_axis(matrix)
        if largest < least:
            best, least = mean, largest
        parts = [math.fsum((a - b) * c for a, b, c in zip(row, mean, v, strict=True)) ** 2 for row in rows]
        most = max(part for part, weight in zip(parts, weights, strict=True) if weight > 0.0)
        weights = [max(0.0, w * (1.0 - t / most)) for w, t in zip(weights, parts, strict=True)]
    return best


def slow_smallest_variance(rows: Lists, f: int) -> list[float]:
    def variance(chosen: Iterable[list[float]]) -> float:
        chosen = list(chosen)
        return main_axis(covariance(chosen, [1.0] * len(chosen))[1])[0]

    return slow_mean(list(min(combinations(rows, len(rows) - f), key=variance)), 0)


def left_by_a_pass(rows: Lists, struck: int) -> set[int]:
    """Return the rows that a pass of dnc over all their columns leaves."""
    mean, matrix = covariance(rows, [1.0] * len(rows))
    _, v = main_axis(matrix)
    scores = [math.fsum((a - b) * c for a, b, c in zip(row, mean, v, strict=True)) ** 2 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], -i))
    return set(range(len(rows))) - set(order[:struck])


def slow_divide_and_conquer(rows: Lists, f: int) -> list[float]:
    return slow_mean([rows[i] for i in sorted(left_by_a_pass(rows, f))], 0)


def slow_drawn_divide_and_conquer(rows: Lists, f: int) -> list[float]:
    """Three passes, each of which draws two columns and leaves out ceil(f / 2) rows."""
    rng, left = np.random.default_rng(0), set(range(len(rows)))
    for _ in range(3 if f else 0):
        columns = list(range(len(rows[0])))
        if len(columns) > 2:
            columns = sorted(rng.choice(len(columns), 2, replace=False, shuffle=False).tolist())
        left &= left_by_a_pass([[row[j] for j in columns] for row in rows], math.ceil(f / 2))
    return slow_mean([rows[i] for i in sorted(left)], 0) if left else slow_median(rows, 0)


def slow_clusters(points: Lists, width: float) -> list[int]:
    """Mean shift: return the number of every point's cluster, densest first; -1 for none."""
    if width == 0:
        heaps = sorted(points, key=lambda point: (points.count(point), point), reverse=True)
        return [0 if point == heaps[0] else -1 for point in points]
    seeds = [[a * width for a in place] for place in {tuple(round(a / width) for a in point) for point in points}]
    if len(seeds) == len(points):
        seeds = points
    modes = set[tuple[float, ...]]()
    for centre in seeds:
        for _ in range(300):
            near = [point for point in points if math.dist(point, centre) <= width]
            if not near:
                break
            old, centre = centre, slow_mean(near, 0)
            if math.dist(old, centre) <= 1e-3 * width:
                break
        if near:
            modes.add((len(near), *centre))
    kept: Lists = []
    for _, *centre in sorted(modes, reverse=True):
        if all(math.dist(centre, other) > width for other in kept):
            kept.append(centre)
    labels = []
    for point in points:
        far = [math.dist(point, centre) for centre in kept]
        labels.append(far.index(min(far)) if min(far) <= width else -1)
    return labels


def slow_signguard(rows: Lists, f: int) -> list[float]:
    n, d = len(rows), len(rows[0])
    norms = [math.hypot(*row) for row in rows]
    usual = [i for i in range(n) if 0.1 * statistics.median(norms) < norms[i] < 3 * statistics.median(norms)]
    width = max(1, d // 10)
    start = int(np.random.default_rng(0).integers(0, d - width + 1))
    window = [row[start : start + width] for row in rows]
    shares = [[sum(sign(a) == s for a in line) / width for s in (1, 0, -1)] for line in window]
    most = [max(column) + 1e-8 for column in zip(*shares, strict=True)]
    points = [[a / b for a, b in zip(share, most, strict=True)] for share in shares]
    nearest = [sorted(math.dist(a, b) for b in points)[max(1, n // 2) - 1] for a in points]
    labels = slow_clusters(points, math.fsum(nearest) / n)
    largest = max(range(max(labels) + 1), key=labels.count)
    chosen = [i for i in usual if labels[i] == largest]
    if not chosen:
        return slow_median([rows[i] for i in usual] or rows, 0)
    radius = statistics.median_low(norms)
    return slow_mean([[a * min(1.0, radius / norms[i]) for a in rows[i]] for i in chosen], 0)


def sign(a: float) -> int:
    return (a > 0) - (a < 0)


def slow_comparative_elimination(rows: Lists, f: int) -> list[float]:
    return slow_mean(sorted(rows, key=lambda row: math.hypot(*row))[: len(rows) - f], 0)


def slow_fltrust(rows: Lists, f: int) -> list[float]:
    """The first row is the server's own."""
    length, total, result = math.hypot(*rows[0]), 0.0, [0.0] * len(rows[0])
    for row in rows:
        own = math.hypot(*row)
        trust = max(0.0, math.fsum(a * b for a, b in zip(row, rows[0], strict=True)) / (own * length))
        result = [a + trust * length / own * b for a, b in zip(result, row, strict=True)]
        total += trust
    return [a / total for a in result]


def slow_static_clipping(rows: Lists, f: int) -> Lists:
    return [[a * min(1.0, 2.0 / max(math.hypot(*row), 1e-300)) for a in row] for row in rows]


def slow_median_clipping(rows: Lists, f: int) -> Lists:
    radius = statistics.median(math.hypot(*row) for row in rows)
    return [[a * min(1.0, radius / math.hypot(*row)) for a in row] for row in rows]


def slow_adaptive_clipping(rows: Lists, f: int) -> Lists:
    n = len(rows)
    norms = sorted(math.hypot(*row) for row in rows)
    radius = norms[n - math.floor(2 * f / n * (n - f)) - 1]
    return [[a * min(1.0, radius / max(math.hypot(*row), 1e-300)) for a in row] for row in rows]


def slow_nnm(rows: Lists, f: int) -> Lists:
    mixed = []
    for i, row in enumerate(rows):
        order = sorted(range(len(rows)), key=lambda j: -1.0 if j == i else math.dist(row, rows[j]))
        mixed.append(slow_mean([rows[j] for j in order[: len(rows) - f]], 0))
    return mixed


REFERENCES = [
    (Mean(), slow_mean, 1e-6),
    (CoordinateMedian(), slow_median, 1e-6),
    (TrimmedMean(), slow_trimmed_mean, 1e-6),
    (Krum(), slow_krum, 0.0),
    (GeometricMedian(), slow_geometric_median, 1e-4),
    (MeanAroundMedian(), slow_mean_around_median, 1e-6),
    (MultiKrum(), slow_multi_krum, 1e-6),
    (Bulyan(), slow_bulyan, 1e-6),
    (MinimumDiameterAveraging(), slow_minimum_diameter, 1e-6),
    (MoNNA(), slow_monna, 1e-6),
    (CenteredClipping(), slow_centered_clipping, 1e-5),
    (CovarianceFilter(), slow_covariance_filter, 1e-4),
    (SmallestVarianceAveraging(), slow_smallest_variance, 1e-6),
    (DivideAndConquer(sub=10**6), slow_divide_and_conquer, 1e-6),
    (DivideAndConquer(iters=3, c=0.5, sub=2), slow_drawn_divide_and_conquer, 1e-6),
    (SignGuard(), slow_signguard, 1e-6),
    (ComparativeGradientElimination(), slow_comparative_elimination, 1e-6),
    (FLTrust(), slow_fltrust, 1e-6),
]
SAMPLED = (DivideAndConquer(iters=3, c=0.5, sub=2), SignGuard())
"""Rules that look at some of the columns alone."""
SHAPES = [(1, 1), (3, 4), (4, 3), (5, 2), (8, 5), (13, 3), (20, 6)]
MOST_SLOW_SETS = 500
"""Sets of rows that a slow reference may look at."""


def sample(n: int, d: int, dtype: type, seed: int) -> Rows:
    """Draw rows of which the last third is far away."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    rows[n - n // 3 :] += 50.0
    return rows.astype(dtype)


@pytest.mark.parametrize(("rule", "slow", "tolerance"), REFERENCES, ids=[rule.kind for rule, _, _ in REFERENCES])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_rule_is_its_definition(rule: Rule, slow, tolerance: float, dtype: type, n: int, d: int) -> None:  # type: ignore[no-untyped-def]  # any of the above
    for f in range(rule.tolerates(n) + 1):
        if rule.kind in ("mda", "smea") and math.comb(n, f) > MOST_SLOW_SETS:
            continue
        rows = sample(n, d, dtype, seed=n + f)
        result = rule(rows, f, np.random.default_rng(0), root_of(rule, rows))
        assert result.dtype == dtype
        np.testing.assert_allclose(result, slow(rows.astype(float).tolist(), f), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rule", "slow", "tolerance"), REFERENCES, ids=[rule.kind for rule, _, _ in REFERENCES])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_compute_the_definition(  # type: ignore[no-untyped-def]  # any of the above
    rule: Rule, slow, tolerance: float, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_rows, "LARGE", 0)
    for n, d in SHAPES:
        f = min(rule.tolerates(n), n // 4)
        if f < 0 or (rule.kind in ("mda", "smea") and math.comb(n, f) > MOST_SLOW_SETS):
            continue
        rows = sample(n, d, dtype, seed=n + f)
        result = rule(rows, f, np.random.default_rng(0), root_of(rule, rows))
        expected = slow(rows.astype(float).tolist(), f)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, rtol=max(tolerance, 1e-6), atol=max(tolerance, 1e-5))


@pytest.mark.parametrize("large", [0, 2**60], ids=["kernels", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("step", "slow"),
    [
        (NearestNeighbourMixing(), slow_nnm),
        (StaticClipping(), slow_static_clipping),
        (StaticClipping(c="median"), slow_median_clipping),
        (AdaptiveRobustClipping(), slow_adaptive_clipping),
    ],
    ids=["nnm", "static-clip", "median-clip", "arc"],
)
def test_rules_see_what_a_pre_step_gives(  # type: ignore[no-untyped-def]  # any of the above
    step: PreAggregator, slow, dtype: type, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_rows, "LARGE", large)
    for n in (1, 2, 5, 9, 12):
        f = (n - 1) // 3
        rows = sample(n, 4, dtype, seed=n)
        mixed = slow(rows.astype(float).tolist(), f)
        for rule, plain in ((CoordinateMedian, slow_median), (Mean, slow_mean), (TrimmedMean, slow_trimmed_mean)):
            result = rule(pre=(step,))(rows, f, np.random.default_rng(0))
            np.testing.assert_allclose(result, plain(mixed, f), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [StaticClipping(), AdaptiveRobustClipping()], ids=["static-clip", "arc"])
def test_clipping_step_is_its_definition(step: PreAggregator, dtype: type) -> None:
    slow = slow_static_clipping if step.kind == "static-clip" else slow_adaptive_clipping
    for n in (1, 2, 5, 12):
        for f in range((n - 1) // 2 + 1):
            rows = sample(n, 4, dtype, seed=n)
            clipped, left = step(rows, f, np.random.default_rng(0))
            assert clipped.dtype == dtype
            assert left == f
            np.testing.assert_allclose(clipped, slow(rows.astype(float).tolist(), f), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_nnm_is_its_definition(dtype: type, n: int) -> None:
    for f in range((n - 1) // 2 + 1):
        rows = sample(n, 4, dtype, seed=n)
        mixed, _ = NearestNeighbourMixing()(rows, f, np.random.default_rng(0))
        assert mixed.dtype == dtype
        np.testing.assert_allclose(mixed, slow_nnm(rows.astype(float).tolist(), f), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("s", [1, 2, 3, 7, 20])
def test_bucketing_is_its_definition(dtype: type, s: int) -> None:
    rows = sample(7, 3, dtype, seed=s)
    mixed, _ = Bucketing(s=s)(rows, 2, np.random.default_rng(4))
    shuffled = rows.astype(float)[np.random.default_rng(4).permutation(7)].tolist()
    expected = [slow_mean(shuffled[i : i + s], 0) for i in range(0, 7, s)]
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


@pytest.mark.parametrize("large", [0, 2**60], ids=["kernels", "numpy"])
@pytest.mark.parametrize("rule", [rule for rule, _, _ in REFERENCES if rule not in SAMPLED], ids=lambda rule: rule.kind)
def test_cutting_long_rows_into_blocks_changes_nothing(rule: Rule, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A row of several blocks is a short one repeated: so must the result be.
    monkeypatch.setattr(weighted_rows, "LARGE", large)
    short = sample(9, 50, np.float64, seed=3)
    f = min(2, rule.tolerates(9))
    long = np.tile(short, (1, 500))
    result = rule(long, f, np.random.default_rng(0), root_of(rule, long))
    monkeypatch.setattr(weighted_rows, "LARGE", 2**60)
    expected = rule(short, f, np.random.default_rng(0), root_of(rule, short))
    np.testing.assert_allclose(result, np.tile(expected, 500), atol=1e-6)


@pytest.mark.parametrize("large", [0, 2**60], ids=["kernels", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rules_that_look_at_some_columns_are_their_definition_on_long_rows(
    large: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_rows, "LARGE", large)
    rows: Rows = np.random.default_rng(8).normal(0.2, 1.0, (12, 5000)).astype(dtype)
    rows[:3] -= 0.8  # other signs
    rows[7:9] *= 20.0
    seen = SignGuard()(rows, 3, np.random.default_rng(0))
    np.testing.assert_allclose(seen, slow_signguard(rows.astype(float).tolist(), 3), rtol=1e-4, atol=1e-5)
    rule = DivideAndConquer(iters=2, sub=1500)  # gathered in two parts
    rng, left = np.random.default_rng(0), np.ones(12, bool)
    for _ in range(2):
        part = rows[:, np.sort(rng.choice(5000, 1500, replace=False, shuffle=False))].astype(float)
        part -= part.mean(axis=0)
        u, s, _ = np.linalg.svd(part, full_matrices=False)
        left[np.argsort((s[0] * u[:, 0]) ** 2)[-3:]] = False
    assert 12 - 6 <= left.sum() <= 12 - 3
    expected = rows[left].astype(float).mean(axis=0)
    np.testing.assert_allclose(rule(rows, 3, np.random.default_rng(0)), expected, rtol=1e-4, atol=1e-5)


def test_reference_of_the_geometric_median_descends() -> None:
    """The slow search itself is right: at its result the gradient vanishes."""
    rows = sample(9, 3, np.float64, seed=1).tolist()
    z = slow_geometric_median(rows, 0)
    assert math.hypot(*gradient(rows, z)) < 1e-4
    costs = [sum(math.dist(row, point) for row in rows) for point in (z, slow_mean(rows, 0))]
    assert all(a < b for a, b in pairwise(costs))
