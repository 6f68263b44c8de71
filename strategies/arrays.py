"""Arrays as users have them, of NumPy or torch, as the NumPy rows that everything here computes on, and back.

torch is never imported here: whoever passes a tensor has imported it.
"""

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies.operators import Rows, Vector


class Array(Protocol):
    """A NumPy array or a torch tensor."""

    @property
    def shape(self) -> Any:
        """Its sizes."""

    @property
    def dtype(self) -> Any:
        """The type of its numbers."""

    def __len__(self) -> int:
        """Return the first of its sizes."""


ArrayT = TypeVar("ArrayT", bound=Array)
Random = Generator | int | None
"""Where random numbers come from: a generator, a seed for one, or None where nothing is drawn."""


@dataclass(frozen=True, eq=False)
class Form:
    """How a user's vectors looked, so that results look the same.

    Args:
        shape: of one vector; (d,) unless they came in another shape.
        dtype: NumPy's or torch's.
        device: of tensors; None for NumPy arrays.
    """

    shape: tuple[int, ...]
    dtype: Any
    device: Any = None

    def vector(self, given: Any, what: str) -> Vector:
        """Return another vector of the user's, shape (d,), in the type that is computed in.

        Raises:
            ValueError: it is no such vector.
        """
        array, form = read_array(given, what)
        if form.shape not in (self.shape, (int(np.prod(self.shape)),)):
            raise ValueError(f"{what} of shape {form.shape}: must be {self.shape}")
        return array.reshape(-1).astype(_working(self.dtype), copy=False)

    def back(self, computed: NDArray[Any], *, many: bool = False) -> Any:
        """Return a result as the user's vectors are: type, device and shape.

        Args:
            computed: shape (d,), or (m, d) where it is ``many`` vectors.
            many: whether it is.
        """
        shaped = computed.reshape((len(computed), *self.shape) if many else self.shape)
        if _is_torch(self.dtype):
            return sys.modules["torch"].from_numpy(np.ascontiguousarray(shaped)).to(self.device, self.dtype)
        return shaped.astype(self.dtype, copy=False)


def read_rows(rows: Any) -> tuple[Rows, Form]:
    """Return vectors as rows that can be computed on, and their form.

    Args:
        rows: a matrix, shape (n', d), or a list of n' arrays of any one shape; arrays of NumPy, tensors on any device,
            or plain numbers. float16 and bfloat16 are computed on in float32.

    Returns:
        Rows of shape (n', d), float32 or float64; no copy of a matrix of NumPy's.

    Raises:
        ValueError: they are no such rows; one line.
    """
    if isinstance(rows, list | tuple):
        rows, shape = _stacked(rows)
        array, form = read_array(rows, "rows")
        return array.reshape(len(array), -1), Form(shape, form.dtype, form.device)
    array, form = read_array(rows, "rows")
    if array.ndim != 2 or 0 in array.shape:
        wanted = "must be a matrix (n', d), both at least 1, or a list of n' arrays of one shape"
        raise ValueError(f"rows of shape {array.shape}: {wanted}")
    return array, Form(array.shape[1:], form.dtype, form.device)


def read_array(given: Any, what: str) -> tuple[NDArray[Any], Form]:
    """Return one array of floating-point numbers as NumPy has it, float32 or float64, and its form.

    Raises:
        ValueError: it is none; one line.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        if given.layout != torch.strided:
            raise ValueError(f"{what} in a sparse tensor: must be dense; use .to_dense()")
        if not given.is_floating_point():
            raise ValueError(f"{what} of {given.dtype}: must be floating-point numbers; convert them, as by .float()")
        wide = given.detach() if given.dtype == torch.float64 else given.detach().to(torch.float32)
        return wide.cpu().numpy(), Form(tuple(given.shape), given.dtype, given.device)
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: no array of numbers: {error}") from None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{what} of {array.dtype}: must be floating-point numbers of at most 64 bits; convert them")
    return array.astype(_working(array.dtype), copy=False), Form(array.shape, array.dtype)


def check_finite(rows: NDArray[Any], what: str = "row") -> None:
    """Raise ValueError with one line if a row holds NaN or infinity.

    Args:
        rows: shape (n', d).
        what: one of them.
    """
    bad = [number for number, row in enumerate(rows) if not _finite(row)]
    if bad:
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        holds = f"{what} {some} holds" if len(bad) == 1 else f"{what}s {some} hold"
        raise ValueError(f"{holds} NaN or infinite numbers: leave such vectors out first, as a server does")


def whole(f: Any, what: str = "f") -> int:
    """Return a whole number.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(f)
    except TypeError:
        raise ValueError(f"{what} = {f!r}: must be a whole number") from None


def generator(rng: Random, what: str) -> Generator:
    """Return a generator; for None one that nothing can be drawn from.

    Args:
        rng: a generator, or a seed, at least 0.
        what: draws from it, for the message.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(rng, Generator):
        return rng
    if rng is None:
        return cast(Generator, _Missing(f"{what} draws at random: pass rng, a NumPy generator or a whole number"))
    if not isinstance(rng, int | np.integer) or rng < 0:
        raise ValueError(f"rng = {rng!r}: must be a NumPy generator, or a whole number of at least 0 as its seed")
    return np.random.default_rng(int(rng))


class _Missing:
    """Stands for what was not given, and says so when it is used."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise ValueError(self._why)

    def __rtruediv__(self, other: object) -> Any:
        raise ValueError(self._why)


def missing(why: str) -> Any:
    """Return what stands for something that was not given: its first use raises ValueError with this line."""
    return _Missing(why)


def _stacked(rows: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
    """Return a list of arrays as one, and the shape of each."""
    if not rows:
        raise ValueError("rows: an empty list; give at least one row")
    torch = sys.modules.get("torch")
    tensors = [torch is not None and isinstance(row, torch.Tensor) for row in rows]
    if any(tensors) and not all(tensors):
        raise ValueError("rows: NumPy arrays and torch tensors in one list; give either")
    if not all(tensors):
        try:
            rows = [np.asarray(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise ValueError(f"rows: no arrays of numbers: {error}") from None
    shapes, types = {tuple(row.shape): None for row in rows}, {str(row.dtype): None for row in rows}
    for many, name in (
        (shapes, "shapes"),
        (types, "types"),
        ({str(getattr(r, "device", "")) for r in rows}, "devices"),
    ):
        if len(many) > 1:
            first, second = list(many)[:2]
            raise ValueError(f"rows of different {name}: {first} and {second}; all must be the same")
    (shape,) = shapes
    if not shape or 0 in shape:
        raise ValueError(f"rows of shape {shape} each: must be vectors, or arrays of one shape, of at least one number")
    return torch.stack([row.detach() for row in rows]) if torch is not None and all(tensors) else np.stack(rows), shape


def _working(dtype: Any) -> np.dtype[Any]:
    """Return the type that vectors of this type are computed in."""
    wide = str(dtype).removeprefix("torch.") == "float64" or dtype == np.float64
    return np.dtype(np.float64 if wide else np.float32)


def _is_torch(dtype: Any) -> bool:
    return type(dtype).__module__.partition(".")[0] == "torch"


def _finite(row: NDArray[Any]) -> bool:
    """Return whether all numbers of a row are finite: by one pass, and by another where their squares overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(row, row))) or bool(np.isfinite(row).all())
