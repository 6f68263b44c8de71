"""Rules, pre-aggregators and compressors called alone: NumPy arrays, torch tensors, and lists of either."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from strategies.aggregators import CenteredClipping, CoordinateMedian, GeometricMedian, Krum
from strategies.aggregators.preaggregators import Bucketing, NearestNeighbourMixing
from strategies.arrays import generator
from strategies.compressors import QSGD, PermK, RandK, TopK

ROWS = np.random.default_rng(1).standard_normal((9, 6))
RULE = GeometricMedian(pre=(NearestNeighbourMixing(),))
MEDIAN = CoordinateMedian()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.mark.parametrize("rows", [ROWS, list(ROWS), ROWS.tolist()], ids=["matrix", "arrays", "numbers"])
def test_a_rule_gives_the_same_bits_as_on_the_server_and_needs_no_generator(rows: Any) -> None:
    wanted = RULE.weigh(ROWS, 2, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(RULE(rows, f=2), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_rule_leaves_tensors_where_they_are_in_their_type(dtype: torch.dtype, device: str) -> None:
    rows = torch.tensor(ROWS, dtype=dtype, device=device, requires_grad=True)
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = RULE(rows.detach().to(computed_in).cpu().numpy(), f=2)
    for given in (rows, list(rows)):
        result = RULE(given, f=2)
        assert (result.dtype, result.device, result.requires_grad) == (dtype, rows.device, False)
        torch.testing.assert_close(result, torch.from_numpy(wanted).to(device, dtype), rtol=0, atol=0)


def test_the_arrays_of_a_list_keep_their_shape() -> None:
    kernels = [torch.tensor(row).reshape(2, 3) for row in ROWS]
    result = MEDIAN(kernels, f=4)
    assert result.shape == (2, 3)
    np.testing.assert_array_equal(result.numpy().reshape(-1), np.median(ROWS, axis=0))
    assert MEDIAN(ROWS.astype(np.float16), f=4).dtype == np.float16


def test_the_centre_of_a_rule_may_be_a_tensor_too() -> None:
    center = torch.tensor(ROWS[0])
    wanted = CenteredClipping()(ROWS, 2, center=ROWS[0])
    np.testing.assert_array_equal(CenteredClipping()(torch.tensor(ROWS), 2, center=center).numpy(), wanted)
    with pytest.raises(ValueError, match=r"center of shape \(5,\): must be \(6,\)"):
        CenteredClipping()(ROWS, 2, center=ROWS[0, :5])


def test_random_pre_aggregators_take_a_generator_or_a_seed_and_ask_for_one() -> None:
    rule = CoordinateMedian(pre=(Bucketing(s=2),))
    np.testing.assert_array_equal(rule(ROWS, 1, rng=7), rule(ROWS, 1, np.random.default_rng(7)))
    for call in (lambda: rule(ROWS, 1), lambda: Bucketing()(ROWS, 1)):
        with pytest.raises(ValueError, match="bucketing draws at random: pass rng, a NumPy generator or a whole num"):
            call()
    with pytest.raises(ValueError, match="rng = -1: must be a NumPy generator, or a whole number of at least 0"):
        rule(ROWS, 1, rng=-1)
    assert generator(3, "x").random() == np.random.default_rng(3).random()


WITH_NAN = np.where(np.arange(9)[:, None] % 4 == 1, np.nan, ROWS)


@pytest.mark.parametrize(
    ("rows", "f", "message"),
    [
        (ROWS[0], 1, r"rows of shape \(6,\): must be a matrix \(n', d\)"),
        (np.zeros((2, 3, 4)), 0, r"rows of shape \(2, 3, 4\): must be a matrix"),
        ([], 0, "rows: an empty list"),
        ([np.zeros(3), np.zeros(4)], 0, r"rows of different shapes: \(3,\) and \(4,\)"),
        ([np.zeros(3), np.zeros(3, np.float32)], 0, "rows of different types: float64 and float32"),
        ([np.zeros(3), torch.zeros(3)], 0, "rows: NumPy arrays and torch tensors in one list"),
        (["a", "b"], 0, r"rows of shape \(\) each"),
        ([[1.0], [[2.0]]], 0, r"rows of different shapes"),
        (None, 0, "rows of object: must be floating-point numbers"),
        (ROWS.astype(np.int64), 0, "rows of int64: must be floating-point numbers of at most 64 bits"),
        (torch.ones(3, 3, dtype=torch.int32), 0, "rows of torch.int32: must be floating-point numbers"),
        (torch.eye(3).to_sparse(), 0, "rows in a sparse tensor: must be dense"),
        (ROWS, 5, "f = 5 of n' = 9 rows: cm takes at most 4"),
        (ROWS, -1, "f = -1 of n' = 9 rows"),
        (ROWS, 1.5, "f = 1.5: must be a whole number"),
        (WITH_NAN, 2, "rows 1, 5 hold NaN or infinite numbers: leave such vectors out first"),
        (torch.tensor([[1.0], [torch.inf], [2.0]]), 1, "row 1 holds NaN or infinite"),
    ],
)
def test_rows_that_are_none_are_refused_in_one_line(rows: Any, f: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        MEDIAN(rows, f=f)
    assert "\n" not in str(error.value)


def test_numbers_whose_squares_overflow_are_finite() -> None:
    np.testing.assert_array_equal(MEDIAN(np.full((3, 4), 1e200), f=1), 1e200)


def test_rows_are_never_modified_nor_returned() -> None:
    rows = torch.tensor(ROWS)
    before = rows.clone()
    MEDIAN(rows[:1], f=0).zero_()
    Krum()(rows, f=3).zero_()
    assert torch.equal(rows, before)


def test_a_pre_aggregator_alone_gives_rows_and_f() -> None:
    mixed, f = NearestNeighbourMixing()(torch.tensor(ROWS), 3)
    wanted, _ = NearestNeighbourMixing()(ROWS, 3)
    assert (f, mixed.dtype) == (3, torch.float64)
    np.testing.assert_array_equal(mixed.numpy(), wanted)
    buckets, f = Bucketing(s=2)(ROWS, 1, rng=3)
    assert (buckets.shape, f) == ((5, 6), 1)
    with pytest.raises(ValueError, match="f = 5 of n = 9 rows: must be from 0 to 4"):
        NearestNeighbourMixing()(ROWS, 5)


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
def test_a_compressor_alone_gives_what_the_receiver_reads(make: Callable[..., Any]) -> None:
    v = ROWS[0]
    for compressor in (QSGD(levels=4), RandK(k=3), TopK(k=2)):
        read = compressor.decompress(compressor.compress(v, np.random.default_rng(5)), v.dtype)
        q = compressor(make(v).reshape(2, 3), rng=5)
        assert (type(q), q.shape) == (type(make(v)), (2, 3))
        np.testing.assert_array_equal(np.asarray(q).reshape(-1), read)
    np.testing.assert_array_equal(TopK(k=6)(make(v)), v)


def test_a_compressor_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="qsgd draws at random: pass rng"):
        QSGD(levels=4)(ROWS[0])
    with pytest.raises(ValueError, match="k = 7: must be at most d = 6"):
        TopK(k=7)(ROWS[0])
    with pytest.raises(ValueError, match="perm-k: all workers of a round draw from one seed"):
        PermK(parts=2)(ROWS[0])
    with pytest.raises(ValueError, match="holds NaN or infinite numbers"):
        TopK(k=1)(np.array([1.0, np.nan]))
    assert np.count_nonzero(PermK(parts=2).of_round(3, worker=1)(ROWS[0])) == 3
