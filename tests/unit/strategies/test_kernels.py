"""What large arrays go through: the same laws as for small ones, whatever the threads, and no second array."""

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from strategies import parallel
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
    TrimmedMean,
    kernels,
    weighted_rows,
)
from strategies.aggregators.networks import exchanges, network
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.aggregators.weighted_rows import WeightedRows, prepare
from strategies.method import Rows
from tests.toys import root_of

NNM = NearestNeighbourMixing()
RULES: list[Rule] = [
    Mean(),
    CoordinateMedian(),
    TrimmedMean(),
    MeanAroundMedian(),
    Krum(),
    MultiKrum(),
    Bulyan(),
    MinimumDiameterAveraging(),
    MoNNA(),
    GeometricMedian(),
    CenteredClipping(),
    CovarianceFilter(),
    DivideAndConquer(),
    SignGuard(),
    ComparativeGradientElimination(),
    FLTrust(),
]
MIXED: list[Rule] = [
    Mean(pre=(NNM,)),
    CoordinateMedian(pre=(NNM,)),
    Krum(pre=(NNM,)),
    CoordinateMedian(pre=(Bucketing(s=2),)),
    TrimmedMean(pre=(AdaptiveRobustClipping(), NNM)),
    GeometricMedian(pre=(StaticClipping(c=9.0),)),
]


def name(rule: Rule) -> str:
    return "-".join([*(step.kind for step in rule.pre), rule.kind])


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def sample(n: int, d: int, dtype: type = np.float32) -> Rows:
    rows = np.random.default_rng(n).normal(size=(n, d))
    rows[: n // 5] *= 100.0
    return rows.astype(dtype)


@pytest.fixture
def always_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_rows, "LARGE", 0)


@pytest.mark.parametrize("n", range(1, 10))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n: int) -> None:
    """Then it sorts everything (Knuth's 0-1 principle)."""
    for values in itertools.product((0, 1), repeat=n):
        line = list(values)
        for i, j, _ in exchanges(n):
            line[i], line[j] = min(line[i], line[j]), max(line[i], line[j])
        assert line == sorted(values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 23, 24, 31, 33, 50])
def test_pruned_networks_put_the_wanted_ranks_in_place(n: int) -> None:
    rows = np.random.default_rng(n).integers(0, n, (n, 3)).astype(np.float32)
    for first in range(n):
        for last in {first + 1, n}:
            lines = np.zeros((n, kernels.BLOCK), np.float32)
            eights, fours = n // 8 * 8, n // 8 * 8 + n % 8 // 4 * 4
            lines[:, :3] = rows
            for start, end in [*((g, g + 8) for g in range(0, eights, 8)), (eights, fours)]:
                lines[start:end] = np.sort(lines[start:end], axis=0)  # what loading does
            for i, j, keep in network(n, first, last):
                a, b = np.minimum(lines[i], lines[j]), np.maximum(lines[i], lines[j])
                lines[i] = a if keep & 1 else np.nan
                lines[j] = b if keep & 2 else np.nan
            np.testing.assert_array_equal(lines[first:last, :3], np.sort(rows, axis=0)[first:last])


@pytest.mark.usefixtures("always_large")
@pytest.mark.parametrize("rule", [*RULES, *MIXED], ids=name)
def test_any_number_of_threads_gives_the_same_bits(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sample(11, 9000)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setenv(parallel.THREADS, str(threads))
        results.append(rule(rows, 2, rng(), root_of(rule, rows)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("rule", [*RULES, *MIXED], ids=name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_ways_agree(rule: Rule, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, d in ((7, 1), (8, 1023), (13, 2500)):
        rows = sample(n, d, dtype)
        f = min(rule.tolerates(n), n // 5)
        root = root_of(rule, rows)
        small = rule(rows, f, rng(), root)
        monkeypatch.setattr(weighted_rows, "LARGE", 0)
        large = rule(rows, f, rng(), root)
        monkeypatch.undo()
        np.testing.assert_allclose(large, small, rtol=2e-5, atol=2e-5)


@pytest.mark.usefixtures("always_large")
@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30, 3e38])
def test_rows_of_any_size(rule: Rule, size: float) -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (12, 3000)).astype(np.float32)
    f = min(rule.tolerates(12), 3)
    root = root_of(rule, rows)
    rows[12 - f :] = np.float32(size)
    before = rows.copy()
    rows.flags.writeable = False
    result = rule(rows, f, rng(), root)
    assert np.isfinite(result).all()
    if rule.defends:
        assert np.abs(result).max() <= 2.0
    np.testing.assert_array_equal(rows, before)
    assert not np.shares_memory(result, rows)


@pytest.mark.usefixtures("always_large")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_do_not_overflow(dtype: type) -> None:
    largest = np.finfo(dtype).max
    rows: Rows = np.full((6, 2000), largest, dtype)
    rows[3:, 1000:] *= -1
    for rule in (Mean(), CoordinateMedian(), TrimmedMean(), MeanAroundMedian()):
        result = rule(rows, 1, rng())
        np.testing.assert_allclose(result[:1000], largest, rtol=1e-6)
        assert np.isfinite(result).all()


@pytest.mark.usefixtures("always_large")
def test_distances_are_exact_where_inner_products_would_cancel() -> None:
    rows: Rows = np.full((6, 5000), 1e6, np.float32)
    rows[1, 0] += 0.25  # far from 0, near to each other
    rows[3] = 1e30  # beside a huge row
    rows[4, :] = 1e-25  # squares that float32 does not have
    rows[5, :] = 0.0
    squares = WeightedRows(rows).squared_distances()
    assert squares[0, 1] == 0.0625
    assert squares[0, 2] == 0.0
    assert squares[0, 3] == pytest.approx(5000e60, rel=1e-5)
    assert squares[4, 5] == pytest.approx(5000e-50, rel=1e-5)
    np.testing.assert_array_equal(squares, squares.T)


@pytest.mark.usefixtures("always_large")
@pytest.mark.parametrize("n", [5, 20])
def test_distances_do_not_depend_on_the_place_of_a_row(n: int) -> None:
    rows = sample(n, 3000)
    order = rng().permutation(n)
    squares = WeightedRows(rows).squared_distances()
    np.testing.assert_array_equal(WeightedRows(rows[order]).squared_distances(), squares[np.ix_(order, order)])


@pytest.mark.usefixtures("always_large")
def test_geometric_median_of_large_rows_is_a_row_that_holds_almost_half() -> None:
    rows = np.random.default_rng(0).normal(size=(21, 3000)).astype(np.float32)
    rows[:10] = rows[0]  # products in float32 tell no distance below a thousandth of the typical one
    assert np.linalg.norm(GeometricMedian()(rows, 2, rng()) - rows[0]) <= 1e-3 * np.linalg.norm(rows[0])


@pytest.mark.usefixtures("always_large")
def test_other_layouts_give_the_same() -> None:
    rows = sample(7, 1500)
    for other in (np.asfortranarray(rows), np.repeat(rows, 2, axis=1)[:, ::2]):
        for rule in (CoordinateMedian(), MultiKrum()):
            np.testing.assert_array_equal(rule(other, 1, rng()), rule(rows, 1, rng()))


@pytest.mark.parametrize("rule", [*RULES, *MIXED], ids=name)
def test_no_second_array(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the rows, 4.8 MB, at most two vectors, and a block's scratch, which does not grow with d."""
    monkeypatch.setenv(parallel.THREADS, "1")
    rows = np.random.default_rng(0).normal(size=(20, 60_000)).astype(np.float32)
    f = min(rule.tolerates(20), 4)
    root = root_of(rule, rows)
    rule(rows, f, rng(), root)
    tracemalloc.start()
    rule(rows, f, rng(), root)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 2 * rows[0].nbytes + 500_000


def test_parts_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parallel.spans(100_000, 1024)
    assert expected[0] == (0, 4096)
    assert [lo for lo, _ in expected[1:]] == [hi for _, hi in expected[:-1]]
    assert expected[-1][1] == 100_000
    monkeypatch.setenv(parallel.THREADS, "3")
    assert parallel.spans(100_000, 1024) == expected
    assert parallel.threads() == 3


def test_every_part_runs_once_and_errors_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parallel.THREADS, "4")
    done: list[int] = []
    parallel.share(done.append, 50)
    assert sorted(done) == list(range(50))

    def fail(part: int) -> None:
        if part == 40:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parallel.share(fail, 50)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prepare_leaves_nothing_to_compile(dtype: type) -> None:
    prepare(np.dtype(dtype))
    before = {kernel: len(kernel.signatures) for kernel in (kernels.order, kernels.squares, kernels.products)}
    rows = sample(20, 8000, dtype)
    for rule in (*RULES, *MIXED):
        rule(rows, min(rule.tolerates(20), 4), rng(), root_of(rule, rows))
    assert {kernel: len(kernel.signatures) for kernel in before} == before


def test_importing_the_rules_does_not_import_numba() -> None:
    import subprocess
    import sys

    code = "import sys, strategies.aggregators; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
