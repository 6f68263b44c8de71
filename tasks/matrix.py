"""A data matrix, one sample a row, that is fast both for all rows and for a minibatch of few.

Sparse data (less than a quarter of the entries) are held as SciPy CSR, others as a plain array. For a minibatch of 32
rows SciPy's own row selection takes 43 us, gathering the entries by hand 8 us; a round of a run is a few such calls.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from strategies.method import Vector
from tasks.contract import TaskError
from tasks.libsvm import Samples

DENSE_ABOVE = 0.25
"""Share of non-zero entries from which a plain array is the faster form."""


class Linear(Protocol):
    """A linear map A of shape (m, d)."""

    def times(self, x: Vector) -> Vector:
        """Return A x, shape (m,)."""

    def transposed_times(self, r: Vector) -> Vector:
        """Return A^T r, shape (d,)."""


class Matrix(Linear, Protocol):
    """A data matrix A of shape (m, d); ``rows`` is a plain array or a ``scipy.sparse.csr_array``."""

    rows: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape[0], self.rows.shape[1]

    def times(self, x: Vector) -> Vector:
        """Return A x, shape (m,)."""
        product: Vector = self.rows @ x
        return product

    def minibatch(self, rows: NDArray[np.int64]) -> Linear:
        """Return few rows, for two products or so."""

    def part(self, rows: NDArray[np.int64]) -> "Matrix":
        """Return many rows as another matrix."""

    def gram(self, weights: Vector) -> Vector:
        """Return A^T diag(weights) A as a plain array, shape (d, d), float64."""

    def arrays(self) -> list[NDArray[Any]]:
        """Return what it is held in."""


@dataclass(frozen=True, eq=False)
class DenseMatrix(Matrix):
    """A data matrix as a plain array."""

    rows: NDArray[np.floating]

    def transposed_times(self, r: Vector) -> Vector:
        """Return A^T r, shape (d,)."""
        return r @ self.rows

    def part(self, rows: NDArray[np.int64]) -> "DenseMatrix":
        """Return these rows."""
        return DenseMatrix(self.rows.take(rows, axis=0))

    minibatch = part

    def gram(self, weights: Vector) -> Vector:
        """Return A^T diag(weights) A, shape (d, d), float64."""
        rows = self.rows.astype(np.float64)
        return rows.T @ (rows * weights[:, None])

    def arrays(self) -> list[NDArray[Any]]:
        """Return the rows."""
        return [self.rows]


@dataclass(frozen=True, eq=False)
class SparseMatrix(Matrix):
    """A data matrix as SciPy CSR."""

    rows: Any

    @cached_property
    def _columns(self) -> Any:
        """The transpose as CSR: A^T r then sums along memory, which takes two thirds of the time."""
        return self.rows.T.tocsr()

    def transposed_times(self, r: Vector) -> Vector:
        """Return A^T r, shape (d,)."""
        product: Vector = self._columns @ r
        return product

    def minibatch(self, rows: NDArray[np.int64]) -> "Entries":
        """Return few rows as their non-zero entries."""
        first = self.rows.indptr[rows]
        counts = self.rows.indptr[rows + 1] - first
        ends = np.cumsum(counts)
        at = np.repeat(first - (ends - counts), counts) + np.arange(ends[-1])
        row = np.repeat(np.arange(len(rows)), counts)
        return Entries((len(rows), self.shape[1]), row, self.rows.indices[at], self.rows.data[at])

    def part(self, rows: NDArray[np.int64]) -> "SparseMatrix":
        """Return many rows as another matrix."""
        return SparseMatrix(self.rows[rows])

    def gram(self, weights: Vector) -> Vector:
        """Return A^T diag(weights) A as a plain array, shape (d, d), float64."""
        from scipy.sparse import dia_array

        rows = self.rows.astype(np.float64)
        weighted = dia_array((weights[None, :], [0]), shape=(len(weights), len(weights))) @ rows
        product: Vector = (rows.T @ weighted).toarray()
        return product

    def arrays(self) -> list[NDArray[Any]]:
        """Return values, columns and where rows begin."""
        return [self.rows.data, self.rows.indices, self.rows.indptr]


@dataclass(frozen=True, eq=False)
class Entries:
    """Few rows of a sparse matrix, as coordinates of their non-zero entries.

    Args:
        shape: (b, d).
        row, column, value: shape (non-zeros,) each.
    """

    shape: tuple[int, int]
    row: NDArray[np.integer]
    column: NDArray[np.integer]
    value: NDArray[np.floating]

    def times(self, x: Vector) -> Vector:
        """Return A x, shape (b,), the dtype of x. Sums in float64, as ``bincount`` does."""
        return np.bincount(self.row, self.value * x[self.column], self.shape[0]).astype(x.dtype, copy=False)

    def transposed_times(self, r: Vector) -> Vector:
        """Return A^T r, shape (d,), the dtype of r. Sums in float64."""
        return np.bincount(self.column, self.value * r[self.row], self.shape[1]).astype(r.dtype, copy=False)


def build(samples: Samples, features: int, dtype: np.dtype[Any], *, normalise: bool) -> Matrix:
    """Build the data matrix of a file in the form that suits its density.

    Args:
        samples: what the file holds; no column at or above ``features``.
        features: d.
        dtype: float32 or float64.
        normalise: scale every row to Euclidean norm 1; rows of zeros stay.

    Raises:
        TaskError: a value is beyond the range of ``dtype``.
    """
    from scipy.sparse import csr_array

    count = len(samples.labels)
    values = samples.values
    if normalise:
        row = np.repeat(np.arange(count), np.diff(samples.starts))
        # The largest entry first: squares of tiny or huge ones would leave the range of floats.
        largest = np.zeros(count)
        np.maximum.at(largest, row, np.abs(values))
        largest[largest == 0] = 1.0
        values = values / largest[row]
        norms = np.sqrt(np.bincount(row, values**2, count))
        norms[norms == 0] = 1.0
        values = values / norms[row]
    with np.errstate(over="ignore"):
        fits = np.isfinite(values.astype(dtype))
    if not fits.all():
        at = int(np.argmin(fits))
        sample = int(np.searchsorted(samples.starts, at, side="right"))
        entry = f"{samples.columns[at] + 1}:{values[at]:g}, beyond the range of {dtype}"
        raise TaskError(f'sample {sample} has the entry {entry}; set dtype = "float64", or normalise = true')
    entries = values.astype(dtype), samples.columns.astype(np.int32), samples.starts.astype(np.int32)
    rows = csr_array(entries, shape=(count, features))
    dense = rows.nnz >= DENSE_ABOVE * count * features
    return DenseMatrix(rows.toarray()) if dense else SparseMatrix(rows)
