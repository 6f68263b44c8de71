"""A model as Flower apps have it, arrays by name, and as methods have it, one vector x.

The vector is the concatenation of all floating arrays in the order of their names, in float64 if one of them is (and
has numbers), else in float32. Each goes back to its own shape and type. Integers and booleans (the step counter of a
batch normalisation) have no mean that a rule could defend: they stay what they were at the start.

Running statistics may be kept apart: they are then no part of the vector, whatever their type.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from foundation.errors import ConfigError
from strategies.method import Vector
from strategies.vectors import coordinate_median

RUNNING_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""What torch calls running statistics; the last part of an array's name."""
_AT_LEAST_0 = frozenset({"running_var", "num_batches_tracked"})


@dataclass(frozen=True, eq=False)
class ArrayLayout:
    """Which array lies where in the vector.

    Args:
        shapes: of every floating array, by name, in the order of the user's record.
        dtypes: its own type, by name.
        places: where it lies in the vector, by name.
        kept: the arrays that are not part of the vector, by name.
        names: all, in the order of the user's record.
        running: those of ``kept`` that are running statistics, in the order of their names.
        dim: d.
        dtype: of the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    places: Mapping[str, slice]
    kept: Mapping[str, Array]
    names: tuple[str, ...]
    dim: int
    dtype: np.dtype[Any]
    running: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrays: ArrayRecord, running: Collection[str] = ()) -> Self:
        """Return the layout of a model.

        Args:
            arrays: the model.
            running: names of the arrays that are running statistics.

        Raises:
            ConfigError: an array of another kind of type, or not one of floating point; there is no such array.
        """
        if absent := set(running).difference(arrays):
            raise ConfigError(f"running statistics: the model lacks {_listed(absent)}; name arrays that it has")
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, np.dtype[Any]] = {}
        kept: dict[str, Array] = {}
        for name, array in arrays.items():
            dtype = _dtype(name, array)
            if dtype.kind == "f" and name not in running:
                shapes[name], dtypes[name] = tuple(array.shape), dtype
            else:
                kept[name] = array
        places, at = {}, 0
        for name in sorted(shapes):  # the order in a record has no meaning
            places[name] = slice(at, at := at + int(np.prod(shapes[name], dtype=np.int64)))
        if at == 0:
            raise ConfigError(f"the model has no floating point numbers, in {len(arrays)} arrays: nothing to train")
        wide = any(dtype.itemsize == 8 for name, dtype in dtypes.items() if 0 not in shapes[name])
        dtype = np.dtype(np.float64 if wide else np.float32)
        return cls(shapes, dtypes, places, kept, tuple(arrays), at, dtype, tuple(sorted(running)))

    def flat(self, arrays: ArrayRecord) -> Vector:
        """Return a model of this layout as a vector, shape (d,).

        Raises:
            ConfigError: arrays are missing, unknown, of another shape, or not finite.
        """
        unknown = set(arrays).difference(self.names)
        for what, names in (
            ("lacks", (self.shapes.keys() | set(self.running)) - arrays.keys()),
            ("has unknown", unknown),
        ):
            if names:
                raise ConfigError(f"the model {what} {_listed(names)}")
        x = np.empty(self.dim, self.dtype)
        for name, place in self.places.items():
            values = _values(name, arrays[name])
            if values.shape != self.shapes[name]:
                raise ConfigError(f"array {name[:64]!r} has shape {values.shape}, expected {self.shapes[name]}")
            with np.errstate(over="ignore"):
                x[place] = values.reshape(-1)
            if not np.isfinite(x[place]).all():
                beyond = f"numbers beyond {self.dtype}" if np.isfinite(values).all() else "infinity"
                what = "NaN" if np.isnan(values).any() else beyond
                raise ConfigError(f"array {name[:64]!r} is not finite: it holds {what}")
        return x

    def statistics(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the running statistics of a model, as they are.

        Raises:
            ConfigError: one of them has another shape or type, is not finite, or is a negative variance or counter.
        """
        for name in self.running:
            self._running(name, arrays[name])
        return ArrayRecord({name: arrays[name] for name in self.running})

    def _running(self, name: str, array: Array) -> NDArray[Any]:
        like = self.kept[name]
        values = _values(name, array, _dtype(name, like).kind)
        if values.shape != tuple(like.shape):
            raise ConfigError(f"array {name[:64]!r} has shape {values.shape}, expected {tuple(like.shape)}")
        if not np.isfinite(values).all():
            raise ConfigError(f"array {name[:64]!r} is not finite: it holds NaN or infinity")
        if name.rpartition(".")[2] in _AT_LEAST_0 and (values < 0).any():
            raise ConfigError(f"array {name[:64]!r} holds {values.min():.6g}, must be at least 0")
        return values

    def with_medians(self, reports: Sequence[ArrayRecord]) -> Self:
        """Return the layout whose running statistics are the coordinate-wise medians of m >= 1 reports.

        Args:
            reports: each as ``statistics`` gives it.
        """
        found = dict(self.kept)
        for name in self.running:
            values = np.array([self._running(name, report[name]).reshape(-1) for report in reports])
            dtype = _dtype(name, self.kept[name])
            if dtype.kind == "f":
                middle = _narrowed(coordinate_median(values.astype(np.float64)), dtype)
            else:  # of whole numbers the lower one of two
                middle = np.sort(values, axis=0)[(len(values) - 1) // 2].astype(dtype)
            found[name] = Array(middle.reshape(tuple(self.kept[name].shape)))
        return replace(self, kept=found)

    def record(self, x: Vector) -> ArrayRecord:
        """Return a vector as the model that the app knows, in NumPy's format, which all of Flower reads.

        Finite numbers beyond an array's own type become its largest ones, never infinite: ``validate`` reports them.
        """
        named = {name: _narrowed(x[self.places[name]], dtype) for name, dtype in self.dtypes.items()}
        arrays = {name: Array(v.reshape(self.shapes[name])) for name, v in named.items()}
        return ArrayRecord({name: self.kept[name] if name in self.kept else arrays[name] for name in self.names})

    def validate(self, x: Vector) -> str:
        """Say which array of a finite vector has outgrown its own type; "" if none has."""
        for name, dtype in self.dtypes.items():
            if dtype.itemsize >= x.dtype.itemsize:
                continue
            part = x[self.places[name]]
            largest = float(np.abs(part).max(initial=0))
            if np.isinf(_cast(part, dtype)).any():
                limit = f"{dtype} ends at {np.finfo(dtype).max:.4g}"
                return f"array {name[:64]!r} holds numbers up to {largest:.4g}, and {limit}"
        return ""

    def unchanged(self) -> list[str]:
        """Return name, type and size of every array that is not trained, but for single counters."""
        apart = {name: array for name, array in self.kept.items() if name not in self.running}
        sizes = {name: int(np.prod(array.shape, dtype=np.int64)) for name, array in apart.items()}
        return [f"{name[:64]!r} ({self.kept[name].dtype}, {size})" for name, size in sizes.items() if size > 1]


def _cast(x: Vector, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def _narrowed(x: Vector, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in an array's own type, at its ends where they are beyond it."""
    cast = _cast(x, dtype)
    beyond = np.isinf(cast) & np.isfinite(x)
    if beyond.any():
        cast[beyond] = np.copysign(np.finfo(dtype).max, x[beyond])
    return cast


def _dtype(name: str, array: Array) -> np.dtype[Any]:
    try:
        dtype = np.dtype(array.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return dtype
    must = "must be float16, float32 or float64, or integers, which stay as they are"
    raise ConfigError(f"array {name[:64]!r} holds {array.dtype[:20]}: {must}")


def _values(name: str, array: Array, kind: str = "f") -> NDArray[Any]:
    try:
        values: NDArray[Any] = array.numpy()
    except (TypeError, ValueError, OSError, EOFError) as error:
        raise ConfigError(f"array {name[:64]!r} cannot be read: {error}") from None
    if values.dtype.kind != kind:
        expected = "floating point numbers" if kind == "f" else "whole numbers"
        raise ConfigError(f"array {name[:64]!r} holds {values.dtype}: expected {expected}")
    return values


def _listed(names: set[str]) -> str:
    shown = ", ".join(repr(name[:64]) for name in sorted(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
