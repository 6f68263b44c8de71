"""A model of named arrays as one vector and back."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from adapters.named_arrays import ArrayLayout
from foundation.errors import ConfigError

MIXED: dict[str, NDArray[Any]] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "batches": np.array(7, np.int64),
    "b": np.array([0.5, -0.5], np.float16),
    "scale": np.array(2.5, np.float32),
    "none": np.empty((0, 4), np.float32),
    "mask": np.array([True, False]),
}


def record(arrays: dict[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def test_the_vector_is_the_floating_arrays_in_the_order_of_their_names() -> None:
    layout = ArrayLayout.of(record(MIXED))
    x = layout.flat(record(MIXED))
    assert (x.dtype.name, layout.dim) == ("float32", 9)
    assert x.tolist() == [0.5, -0.5, 2.5, 0, 1, 2, 3, 4, 5]
    backwards = record({name: MIXED[name] for name in reversed(MIXED)})
    assert layout.flat(backwards).tobytes() == ArrayLayout.of(backwards).flat(backwards).tobytes() == x.tobytes()


def test_a_float64_array_makes_the_vector_float64() -> None:
    arrays = record({"a": np.array([1e-12]), "b": np.ones(1, np.float32)})
    assert ArrayLayout.of(arrays).flat(arrays).tolist() == [1e-12, 1.0]


def test_the_record_has_the_users_names_order_shapes_and_types() -> None:
    layout = ArrayLayout.of(record(MIXED))
    back = layout.record(layout.flat(record(MIXED)) * np.float32(2))
    assert list(back) == list(MIXED)
    for (name, array), got in zip(MIXED.items(), back.to_numpy_ndarrays(), strict=True):
        assert (got.dtype, got.shape) == (array.dtype, array.shape), name
        assert np.array_equal(got, array if name in ("batches", "mask") else 2 * array), name


def test_a_state_dict_with_batch_normalisation_comes_back() -> None:
    import torch  # takes seconds

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    arrays = ArrayRecord(model.state_dict())
    layout = ArrayLayout.of(arrays)
    model.load_state_dict(layout.record(layout.flat(arrays) + np.float32(1)).to_torch_state_dict())
    state = model.state_dict()
    assert state["1.running_var"].tolist() == [2.0, 2.0]
    assert state["1.num_batches_tracked"].item() == 0


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "no floating point numbers, in 0 arrays"),
        ({"n": np.arange(3)}, "no floating point numbers, in 1 arrays"),
        ({"z": np.ones(2, np.complex64)}, r"array 'z' holds complex64: must be float16"),
        ({"z": np.ones(2, np.longdouble)}, r"array 'z' holds float128"),
        ({"z": np.array(["a"])}, r"array 'z' holds <U1"),
    ],
)
def test_what_is_no_model(arrays: dict[str, NDArray[Any]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ArrayLayout.of(record(arrays))


def test_a_type_that_numpy_does_not_know() -> None:
    with pytest.raises(ConfigError, match="array 'z' holds bfloat16"):
        ArrayLayout.of(ArrayRecord({"z": Array("bfloat16", (1,), "numpy.ndarray", b"")}))


GOOD: dict[str, NDArray[Any]] = {"b": np.zeros(2, np.float32), "w": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"b": None}, "the model lacks 'b'"),
        ({"b": None, "w": None}, "the model lacks 'b', 'w'"),
        ({"extra": np.zeros(1)}, "the model has unknown 'extra'"),
        ({f"e{i}": np.zeros(1) for i in range(5)}, "has unknown 'e0', 'e1', 'e2' and 2 more"),
        ({"w": np.ones(4, np.float32)}, r"array 'w' has shape \(4,\), expected \(2, 2\)"),
        ({"b": np.array([0, np.nan], np.float32)}, "array 'b' is not finite"),
        ({"b": np.array([0, 1e300])}, "array 'b' is not finite: it holds numbers beyond float32"),
        ({"b": np.array([0, np.inf], np.float16)}, "array 'b' is not finite: it holds infinity"),
        ({"b": np.array([np.inf, np.nan])}, "array 'b' is not finite: it holds NaN"),
        ({"b": np.zeros(2, np.int64)}, "array 'b' holds int64: expected floating point"),
    ],
)
def test_another_model(change: dict[str, NDArray[Any] | None], reason: str) -> None:
    arrays = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    with pytest.raises(ConfigError, match=reason):
        ArrayLayout.of(record(GOOD)).flat(record(arrays))


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2,), "raw.le", b"\0" * 8),
        Array("float32", (2,), "numpy.ndarray", b""),
        Array("float32", (2,), "numpy.ndarray", b"\x80\x04N."),
        Array("float32", (2,), "numpy.ndarray", b"no array"),
    ],
)
def test_bytes_that_are_no_array(array: Array) -> None:
    with pytest.raises(ConfigError, match="array 'b' cannot be read"):
        ArrayLayout.of(record(GOOD)).flat(ArrayRecord({"b": array, "w": Array(GOOD["w"])}))


def test_a_wider_answer_is_taken() -> None:
    layout = ArrayLayout.of(record(GOOD))
    assert layout.flat(record({name: array.astype(np.float64) for name, array in GOOD.items()})).dtype == np.float32


def test_an_empty_float64_array_does_not_make_everything_wide() -> None:
    arrays = record({"w": np.ones(2, np.float32), "e": np.zeros((3, 0))})
    layout = ArrayLayout.of(arrays)
    assert layout.dtype == np.float32
    back = layout.record(layout.flat(arrays))
    assert [(array.dtype, tuple(array.shape)) for array in back.values()] == [("float32", (2,)), ("float64", (3, 0))]


def test_what_outgrows_its_type_is_cut_off_and_reported() -> None:
    arrays = record({"w": np.ones(4, np.float16), "v": np.ones(1, np.float32)})
    layout = ArrayLayout.of(arrays)
    x = np.array([1e30, 65519, -70000, 65520, np.inf], np.float32)  # v, w
    assert layout.record(x)["w"].numpy().tolist() == [65504, -65504, 65504, np.inf]
    assert layout.validate(np.array([1, 1, -70000, 1, 1], np.float32)) == (
        "array 'w' holds numbers up to 7e+04, and float16 ends at 6.55e+04"
    )
    assert layout.validate(np.array([1e30, 65519, 1, 1, 1], np.float32)) == ""


def test_arrays_that_are_not_trained_are_listed_without_counters() -> None:
    assert ArrayLayout.of(record(MIXED)).unchanged() == ["'mask' (bool, 2)"]


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5, np.float32),
        np.ones(4, ">f4"),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(8, dtype=np.float16)[::2],
        np.ones((2, 1, 2), np.float32),
    ],
)
def test_any_floating_array_comes_back_as_it_was(array: NDArray[Any]) -> None:
    for name in ("w", "", "model/layer 1.größe"):
        arrays = record({name: array})
        layout = ArrayLayout.of(arrays)
        (back,) = layout.record(layout.flat(arrays)).to_numpy_ndarrays()
        assert np.array_equal(back, array)
        assert (back.shape, back.dtype.newbyteorder("=")) == (array.shape, array.dtype.newbyteorder("="))


NORM: dict[str, NDArray[Any]] = {
    "w": np.array([1.0, 2.0], np.float32),
    "n.running_mean": np.zeros(2, np.float32),
    "n.running_var": np.ones(2, np.float32),
    "n.num_batches_tracked": np.array(0, np.int64),
    "ema": np.array([3.0]),
}
RUNNING = ("n.running_mean", "n.running_var", "n.num_batches_tracked", "ema")


def test_running_statistics_are_no_part_of_the_vector() -> None:
    layout = ArrayLayout.of(record(NORM), RUNNING)
    assert (layout.dim, layout.dtype.name, layout.flat(record(NORM)).tolist()) == (2, "float32", [1.0, 2.0])
    assert list(layout.record(np.zeros(2, np.float32))) == list(NORM)
    assert layout.unchanged() == []
    with pytest.raises(ConfigError, match="the model lacks 'other'; name arrays that it has"):
        ArrayLayout.of(record(NORM), ("other",))
    with pytest.raises(ConfigError, match="the model lacks 'ema'"):
        layout.flat(record({name: array for name, array in NORM.items() if name != "ema"}))


@pytest.mark.parametrize("liars", [1, 2])
def test_liars_move_no_running_statistic_beyond_what_honest_clients_sent(liars: int) -> None:
    layout, rng = ArrayLayout.of(record(NORM), RUNNING), np.random.default_rng(liars)
    honest: list[dict[str, NDArray[Any]]] = [
        NORM
        | {
            "n.running_mean": rng.normal(size=2).astype(np.float32),
            "n.running_var": rng.random(2).astype(np.float32),
            "n.num_batches_tracked": np.array(rng.integers(5, 9)),
        }
        for _ in range(liars + 1)
    ]
    for sign in (-1, 1):
        lie = NORM | {
            "n.running_mean": np.full(2, sign * 3e38, np.float32),
            "n.running_var": np.full(2, 3e38 if sign > 0 else 0, np.float32),
            "n.num_batches_tracked": np.array(2**62 if sign > 0 else 0),
        }
        reports = [layout.statistics(record(arrays)) for arrays in [lie] * liars + honest]
        found = layout.with_medians(reports).record(np.zeros(2, np.float32))
        for name in RUNNING:
            values, sent = found[name].numpy(), np.array([arrays[name] for arrays in honest])
            assert (sent.min(axis=0) <= values).all(), name
            assert (values <= sent.max(axis=0)).all(), name
            assert (values.dtype, values.shape) == (NORM[name].dtype, NORM[name].shape)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n.running_var": np.array([1.0, -1e-9], np.float32)}, r"'n.running_var' holds -1e-09, must be at least 0"),
        ({"n.running_mean": np.array([1.0, np.nan], np.float32)}, r"'n.running_mean' is not finite"),
        ({"n.running_mean": np.ones(3, np.float32)}, r"'n.running_mean' has shape \(3,\), expected \(2,\)"),
        ({"n.num_batches_tracked": np.array(1.5)}, r"holds float64: expected whole numbers"),
        ({"n.num_batches_tracked": np.array(-1)}, r"holds -1, must be at least 0"),
    ],
)
def test_running_statistics_that_cannot_be_used(change: dict[str, NDArray[Any]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ArrayLayout.of(record(NORM), RUNNING).statistics(record(NORM | change))
