"""The rows that a rule sees: the received ones, or weighted means of them that are never written down as an array.

A pre-aggregator replaces n' rows of length d by others that are sums of them. ``WeightedRows`` keeps the received array
and the small matrix of weights; whatever a rule asks for (medians, distances, a sum) is computed one block of columns
at a time, and a weighted sum of seen rows is one of received rows. So aggregation needs no second (n', d) array.

Where the server has declared weights of clients, each seen row also has a mass, by which medians and means count it.

Large arrays go through the compiled kernels on all processors, small ones through NumPy, which spares short runs the
import. Which way is taken depends on the shape alone. Either way the bits are the same in every process and with any
number of threads: no BLAS is called, blocks are cut by the shape, and their sums are added in one order.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from time import perf_counter
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from strategies import parallel
from strategies.aggregators.networks import MEAN_AROUND_MEDIAN, MEDIAN, TRIMMED_MEAN, network
from strategies.arrays import generator
from strategies.method import Rows, Vector
from strategies.vectors import column_blocks, mean_of_rows, norm, sort_columns, squared_distances
from strategies.weights import Masses, heaviest

Array = NDArray[np.float64]

LARGE = 2**18
"""Numbers in an array from which on the kernels are used: a few hundred rounds then pay for the import."""
_PART_SUMS = 2**22
"""Most numbers in the partial sums of a matrix of inner products."""
_LEAST_SQUARE = 1e-30
"""A float32 sum of squares below this may have lost digits to underflow."""


class Taken:
    """What the last weighted mean of rows was made of: the weight of every received row; None if there was none."""

    def __init__(self) -> None:
        self.weights: Array | None = None
        self.unit = 1.0
        """What the rows have been divided by, and the mean will be multiplied with."""

    def note(self, weights: Array) -> None:
        """Keep the weights of the received rows."""
        self.weights = weights * self.unit


class WeightedRows:
    """Weighted means of rows, seen_i = sum_j weights_ij rows_j / divisors_i.

    Args:
        rows: shape (n, d), finite; never modified.
        weights: shape (m, n); None for the rows themselves.
        divisors: shape (m,), so that the mean of equal rows is that row exactly; None for ones.
        rng: what a rule that draws draws from; None where nothing may be drawn.
        mass: declared weights of the seen rows, whole numbers of shape (m,); None where all count the same, as they do
            where all numbers are equal.
    """

    def __init__(
        self,
        rows: Rows,
        weights: Array | None = None,
        divisors: Array | None = None,
        rng: Generator | None = None,
        mass: Masses | None = None,
    ) -> None:
        self.rows = rows
        self.weights = weights
        self.divisors = np.ones(len(rows) if weights is None else len(weights)) if divisors is None else divisors
        self.rng = generator(None, "the rule") if rng is None else rng
        self.mass = None if mass is None or (mass == mass[0]).all() else mass
        self.taken = Taken()
        """Shared with what is mixed of this."""

    def __len__(self) -> int:
        """Return m, how many rows are seen."""
        return len(self.divisors)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the rows, and of every vector that comes out."""
        return self.rows.dtype

    @property
    def large(self) -> bool:
        """Whether the rows go through the kernels."""
        return wanted(*self.rows.shape)

    def mixed(self, weights: Array, divisors: Array | None = None, mass: Masses | None = None) -> "WeightedRows":
        """Return weighted means of the seen rows.

        Args:
            weights: shape (m', m).
            divisors: shape (m',); None for ones.
            mass: of the new rows, shape (m',); None where they are as many as before and keep what they have.
        """
        if mass is None and len(weights) == len(self):
            mass = self.mass
        if self.weights is not None:
            weights = np.einsum("ij,jk->ik", weights / self.divisors, self.weights)
        seen = WeightedRows(self.rows, weights, divisors, self.rng, mass)
        seen.taken = self.taken
        return seen

    def columns(self, chosen: slice | NDArray[np.intp]) -> "WeightedRows":
        """Return the same weighted means of these columns alone; what is taken of them is not noted here."""
        return WeightedRows(self.rows[:, chosen], self.weights, self.divisors, mass=self.mass)

    def array(self) -> Rows:
        """Return the seen rows as an array, shape (m, d); the rows themselves where nothing is mixed."""
        if self.weights is None:
            return self.rows
        seen = np.empty((len(self), self.rows.shape[1]), self.dtype)
        for columns, block in self._blocks():
            seen[:, columns] = block
        return seen

    def row(self, i: int) -> Vector:
        """Return a copy of seen row i, shape (d,)."""
        if self.weights is None:
            self.taken.note(np.eye(len(self))[i])
            return np.array(self.rows[i])
        return self.combine(np.eye(len(self))[i])

    def note(self, weights: Array) -> None:
        """Keep the weights, shape (m,), by which a rule has taken the seen rows without ``combine``."""
        if self.weights is not None:
            weights = np.einsum("i,ij->j", weights / self.divisors, self.weights)
        self.taken.note(weights)

    # --- what rules ask for ------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Masses:
        """How much each seen row counts, shape (m,): its mass, or 1 where all count the same."""
        return np.ones(len(self), np.int64) if self.mass is None else self.mass

    def mean(self) -> Vector:
        """Return the mean of the seen rows, each by its mass; shape (d,)."""
        if self.mass is not None:
            return self.combine(self.mass.astype(np.float64), float(self.mass.sum()))
        if self.weights is None and not self.large:
            self.taken.note(np.full(len(self), 1.0 / len(self)))
            return mean_of_rows(self.rows)
        return self.combine(np.ones(len(self)), len(self))

    def mean_of(self, chosen: NDArray[np.intp]) -> Vector:
        """Return the mean of the seen rows with these numbers, shape (d,)."""
        return self.combine(np.bincount(chosen, minlength=len(self)).astype(np.float64), len(chosen))

    def combine(
        self, coefficients: Array, divisor: float = 1.0, center: Vector | None = None, share: float = 0.0
    ) -> Vector:
        """Return sum_i coefficients_i seen_i / divisor + share * center, shape (d,), summed in float64.

        It does not overflow where a convex combination of rows does not. ``center`` may be overwritten.
        """
        if self.weights is not None:
            coefficients = np.einsum("i,ij->j", coefficients / self.divisors, self.weights)
        with np.errstate(over="ignore"):
            self.taken.note(coefficients / divisor)
        largest = float(np.finfo(self.dtype).max)
        if self.large:
            out = np.empty(self.rows.shape[1], self.dtype) if center is None else center
            shares = coefficients / divisor
            self._each_part(lambda k, lo, hi, _: k.combine(self._base, shares, float(share), largest, lo, hi, out))
            return out
        with np.errstate(over="ignore", invalid="ignore"):
            wide = np.einsum("i,ij->j", coefficients, self.rows.astype(np.float64)) / divisor
            if not np.isfinite(wide).all():
                wide = np.einsum("i,ij->j", coefficients / divisor, self.rows.astype(np.float64))
        if center is not None:
            wide += share * center
        return cast(Vector, np.clip(wide, -largest, largest).astype(self.dtype, copy=False))

    def medians(self) -> Vector:
        """Return the median of every coordinate; for an even m the mean of the two middle values.

        With masses: the middle of the least value with at least half of the mass at or below it, and the least with
        more than half, which differ only where a value divides the mass into equal halves.
        """
        return self._order(MEDIAN, 0) if self.mass is None else self._order_by_mass(MEDIAN, self.mass)

    def trimmed_means(self, f: int) -> Vector:
        """Return, per coordinate, the mean without the f lowest and the f highest values.

        With masses: without as much of the mass at either end as the f heaviest rows have. Of a value at such a cut the
        part inside counts.
        """
        if self.mass is None:
            return self._order(TRIMMED_MEAN, f)
        return self._order_by_mass(TRIMMED_MEAN, self.mass, heaviest(self.mass, f))

    def means_around_medians(self, f: int) -> Vector:
        """Return, per coordinate, the mean of the m - f values nearest to the median; of two the lower."""
        return self._order(MEAN_AROUND_MEDIAN, f)

    def norms(self) -> Array:
        """Return the Euclidean norms of the seen rows, shape (m,), exact to rounding."""
        if not self.large:
            return np.array([norm(row) for row in self.array()])
        m, spans = len(self), self._spans
        sums = np.zeros((len(spans), m))
        self._each_part(lambda k, lo, hi, p: k.lengths(self._base, self._through, lo, hi, sums[p]))
        squares = sums.sum(axis=0)
        lost = ~((squares > 1e-280) & (squares < np.inf))
        with np.errstate(over="ignore"):
            lengths: Array = np.sqrt(squares)
        for i in np.flatnonzero(lost):
            lengths[i] = norm(self.row(int(i)))
        return lengths

    def towards(self, v: Vector) -> tuple[Array, Array]:
        """Return the Euclidean norms of the seen rows and their inner products with v, shape (m,) each.

        Args:
            v: shape (d,), dtype of the rows. Squares of neither it nor the rows may leave float64.
        """
        m = len(self)
        if self.large:
            spans = self._spans
            sums = np.zeros((len(spans), 2, m))
            self._each_part(lambda k, lo, hi, p: k.towards(self._base, self._through, v, lo, hi, sums[p]))
            squares, products = sums.sum(axis=0)
        else:
            squares, products = np.zeros((2, m))
            for columns, block in self._blocks():
                wide = block.astype(np.float64)
                squares += np.einsum("ij,ij->i", wide, wide)
                products += np.einsum("ij,j->i", wide, v[columns].astype(np.float64))
        lengths: Array = np.sqrt(squares)
        return lengths, products

    def peaks(self) -> Array:
        """Return the largest absolute value in each seen row, shape (m,)."""
        peaks = np.zeros(len(self))
        for _, block in self._blocks():
            np.maximum(peaks, np.maximum(block.max(axis=1), -block.min(axis=1)), out=peaks)
        return peaks

    def signs(self) -> NDArray[np.int64]:
        """Return how many numbers of each seen row are positive, zero and negative, shape (m, 3)."""
        counts = np.zeros((len(self), 3), np.int64)
        for _, block in self._blocks():
            for i, line in enumerate(block):
                up, down = np.count_nonzero(line > 0), np.count_nonzero(line < 0)
                counts[i] += (up, len(line) - up - down, down)
        return counts

    def squared_distances(self) -> Array:
        """Return ||seen_i - seen_j||^2 for all pairs, never negative and exactly 0 between equal rows.

        Differences are formed first: inner products would cancel between rows far from 0 and beside a huge one. Large
        float32 rows are compared in float32, whose rounding is relative to each single difference, and sums leave it
        after a block; where a sum left the range of float32 or is so small that it may have lost digits, all pairs are
        compared in float64.

        Returns:
            Shape (m, m), symmetric with a zero diagonal; inf where the square exceeds the range of float64.
        """
        if not self.large:
            return squared_distances(self.array())
        squares = self._squares(self.dtype)
        if self.dtype == np.float32:
            doubtful = ~((squares >= _LEAST_SQUARE) & (squares < np.inf))
            np.fill_diagonal(doubtful, False)
            if any(not self._equal(int(i), int(j)) for i, j in np.argwhere(np.triu(doubtful))):
                squares = self._squares(np.dtype(np.float64))
        return squares

    def products(self, center: Vector | None = None, *, exact: bool = True) -> tuple[Vector, Array]:
        """Return a centre c and the inner products (seen_i - c).(seen_j - c).

        Args:
            center: c, shape (d,); None for the coordinate-wise median, beside which no row can hide the others.
            exact: form the products in float64; else, for float32 rows, in float32 where their range allows it.

        Returns:
            c, an array of its own of the rows' dtype, and the products: shape (m, m), symmetric.
        """
        if not self.large:
            return self._products_of_small(center)
        wide = np.dtype(np.float64)
        if exact or self.dtype == wide or np.abs(self.rows[:, :64]).max() > 1e12:
            return self._products(center, wide)
        c, products = self._products(center, self.dtype)
        squares = np.sort(np.diagonal(products))
        if not (squares[-1] < 1e30 and squares[len(self) // 2] > 1e-24):
            return self._products(c, wide)
        return c, products

    def _order(self, mode: int, f: int) -> Vector:
        m, out = len(self), np.empty(self.rows.shape[1], self.dtype)
        ranks = {MEDIAN: ((m - 1) // 2, m // 2 + 1), TRIMMED_MEAN: (f, m - f), MEAN_AROUND_MEDIAN: (0, m)}[mode]
        if self.large:
            exchanges = network(m, *ranks)
            self._each_part(lambda k, lo, hi, _: k.order(self._base, self._through, m, exchanges, mode, f, lo, hi, out))
            return out
        for columns, block in self._blocks():
            lines = sort_columns(block)
            if mode == MEAN_AROUND_MEDIAN:
                middle = (0.5 * lines[[(m - 1) // 2, m // 2]].astype(np.float64)).sum(axis=0)
                for s in range(f - 1, -1, -1):  # as in kernels._mean_around
                    low, high = lines[s], lines[s + m - f]
                    nearer = 0.5 * low.astype(np.float64) + 0.5 * high.astype(np.float64) < middle
                    lines[s] = np.where(nearer, high, low)
                ranks = (0, m - f)
            out[columns] = mean_of_rows(lines[slice(*ranks)])
        return out

    def _order_by_mass(self, mode: int, mass: Masses, cut: int = 0) -> Vector:
        """Return the weighted medians, or the means of what is left where ``cut`` of the mass is cut off at both ends.

        The values of the lowest and the highest ranks cannot matter: not even the heaviest rows there reach the middle,
        or what is left.
        """
        m, out, total = len(self), np.empty(self.rows.shape[1], self.dtype), int(mass.sum())
        most = np.cumsum(np.sort(mass)[::-1])
        first = int(np.count_nonzero(2 * most < total if mode == MEDIAN else most <= cut))
        last = m - first
        if self.large:
            exchanges, wide = network(m, first, last, 4), mass.astype(f"i{self.dtype.itemsize}")

            def order(k: ModuleType, lo: int, hi: int, _: int) -> None:
                k.order_weighted(self._base, self._through, wide, exchanges, mode, cut, first, last, lo, hi, out)

            self._each_part(order)
            return out
        for columns, block in self._blocks():
            ranks = np.argsort(block, axis=0, kind="stable")
            lines = np.take_along_axis(block, ranks, axis=0)
            ends = np.cumsum(mass[ranks], axis=0)
            if mode == MEDIAN:
                rows = [np.argmax(ends >= at, axis=0)[None] for at in (total - total // 2, total // 2 + 1)]
                out[columns] = mean_of_rows(np.concatenate([np.take_along_axis(lines, row, axis=0) for row in rows]))
                continue
            kept = np.minimum(ends, total - cut) - np.maximum(ends - mass[ranks], cut)
            shares = np.maximum(kept, 0) / (total - 2 * cut)
            mean = np.einsum("ij,ij->j", shares, lines.astype(np.float64))
            out[columns] = np.clip(mean, lines[first], lines[last - 1])
        return out

    # --- small arrays: NumPy -----------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[tuple[slice, Rows]]:
        """Yield slices of the columns and the seen rows there, as new arrays or views."""
        for columns in column_blocks(self.rows):
            if self.weights is None:
                yield columns, self.rows[:, columns]
            else:
                block = self.rows[:, columns].astype(np.float64)
                divisors = self.divisors[:, None]
                with np.errstate(over="ignore", invalid="ignore"):
                    seen = np.einsum("ij,jk->ik", self.weights, block) / divisors
                    if not np.isfinite(seen).all():
                        seen = np.einsum("ij,jk->ik", self.weights / divisors, block)
                yield columns, seen.astype(self.dtype)

    def _products_of_small(self, center: Vector | None) -> tuple[Vector, Array]:
        c = self.medians() if center is None else np.array(center, self.dtype)
        products = np.zeros((len(self), len(self)))
        with np.errstate(over="ignore", invalid="ignore"):
            for columns, block in self._blocks():
                apart = block.astype(np.float64) - c[columns]
                products += np.einsum("ij,kj->ik", apart, apart)
        return c, products

    # --- large arrays: kernels ---------------------------------------------------------------------------------------

    @cached_property
    def _base(self) -> Rows:
        """The rows as the one kind of array that kernels are compiled for: contiguous, and not marked as read-only."""
        base = np.ascontiguousarray(self.rows)
        return base if base.flags.writeable else np.asarray(_Lent(base))

    @cached_property
    def _through(self) -> tuple[Array, Rows, NDArray[np.int64]]:
        """Scales, mix and pick of the kernels (see there) for weights / divisors.

        Equal rows of weights are mixed once. Where every seen row is one received row, nothing is mixed. ``mix`` is in
        the rows' type, so what it cannot hold is left to the scales.
        """
        scales, mix, pick = np.zeros(0), np.zeros((0, 0), self.dtype), np.zeros(0, np.int64)
        if self.weights is None:
            return scales, mix, pick
        weights, pick = np.unique(self.weights / self.divisors[:, None], axis=0, return_inverse=True)
        pick = pick.reshape(-1).astype(np.int64)
        m, n = weights.shape
        peaks = np.abs(weights).max(axis=0)
        if ((weights != 0.0).sum(axis=1) == 1).all() and ((weights != 0.0).sum(axis=0) <= 1).all():
            pick = np.argmax(weights != 0.0, axis=1)[pick]
            return (scales if (peaks[pick] == 1.0).all() else weights.sum(axis=0)), mix, pick
        if m == len(self):  # no two are equal: in their own order nothing needs to be picked
            weights, pick = weights[pick], pick[:0]
        mix = np.zeros((-(-m // 4) * 4, -(-n // 4) * 4), self.dtype)
        if ((peaks > 1e-6) | (peaks == 0.0)).all() and peaks.max() < 1e6:
            mix[:m, :n] = weights
            return scales, mix, pick
        mix[:m, :n] = weights / np.where(peaks > 0.0, peaks, 1.0)
        return peaks, mix, pick

    @property
    def _spans(self) -> list[tuple[int, int]]:
        width = -(-max(len(self), 1) // 4) * 4
        return parallel.spans(self.rows.shape[1], 1024, max(1, min(parallel.MOST_PARTS, _PART_SUMS // width**2)))

    def _each_part(self, job: Callable[[ModuleType, int, int, int], None]) -> None:
        """Run job(kernels, lo, hi, number of the part) for every part of the columns."""
        kernels, spans, _, _ = _kernels(), self._spans, self._base, self._through  # made here, not once per thread
        parallel.share(lambda p: job(kernels, *spans[p], p), len(spans))

    def _pair_sums(self, add: Callable[[ModuleType, int, int, Array], None]) -> Array:
        """Return for all pairs of seen rows what add(kernels, lo, hi, sums) adds to the upper triangles."""
        m, spans = len(self), self._spans
        width = -(-m // 4) * 4
        sums = np.zeros((len(spans), width, width))
        self._each_part(lambda k, lo, hi, p: add(k, lo, hi, sums[p]))
        with np.errstate(over="ignore", invalid="ignore"):
            upper: Array = np.triu(sums.sum(axis=0)[:m, :m])
        return upper + np.triu(upper, 1).T

    def _squares(self, work: np.dtype[Any]) -> Array:
        scratch = np.zeros(0, work)
        squares = self._pair_sums(lambda k, lo, hi, sums: k.squares(self._base, self._through, scratch, lo, hi, sums))
        np.fill_diagonal(squares, 0.0)
        return squares

    def _products(self, center: Vector | None, work: np.dtype[Any]) -> tuple[Vector, Array]:
        m, scratch = len(self), np.zeros(0, work)
        if center is None:
            c, exchanges = np.empty(self.rows.shape[1], self.dtype), network(m, (m - 1) // 2, m // 2 + 1)
        else:
            c, exchanges = np.array(center, self.dtype), np.zeros((0, 3), np.int64)

        def add(k: ModuleType, lo: int, hi: int, sums: Array) -> None:
            k.products(self._base, self._through, m, exchanges, scratch, lo, hi, c, sums)

        return c, self._pair_sums(add)

    def _equal(self, i: int, j: int) -> bool:
        """Return whether seen rows i and j are known to be equal."""
        if self.weights is not None:
            return np.array_equal(self.weights[i], self.weights[j]) and self.divisors[i] == self.divisors[j]
        return np.array_equal(self.rows[i], self.rows[j])


class _Lent:
    """An array to be seen as writable, though nothing will write to it."""

    def __init__(self, array: Rows) -> None:
        self._array = array  # stays alive as long as a view of it
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def prepare(dtype: np.dtype[Any], *, weighted: bool = False) -> float:
    """Load the kernels for rows of this type, compiling them where no earlier run has left them on disk.

    A server calls it before round 1 where its arrays are large, so that no round waits for it: compiling takes some ten
    seconds, loading about one.

    Args:
        dtype: float32 or float64.
        weighted: those for rows with declared weights, too.

    Returns:
        Seconds it took.
    """
    began = perf_counter()
    kernels = _kernels()
    rows, sums, exchanges = np.zeros((4, 8), dtype), np.zeros((4, 4)), network(4, 0, 4)
    center = np.zeros(8, dtype)
    through = WeightedRows(rows)._through
    kernels.order(rows, through, 4, exchanges, 0, 0, 0, 8, center)
    kernels.combine(rows, np.zeros(4), 0.0, 1.0, 0, 8, center)
    kernels.lengths(rows, through, 0, 8, np.zeros(4))
    kernels.towards(rows, through, center, 0, 8, np.zeros((2, 4)))
    if weighted:
        mass = np.ones(4, f"i{np.dtype(dtype).itemsize}")
        kernels.order_weighted(rows, through, mass, network(4, 0, 4, 4), MEDIAN, 0, 0, 4, 0, 8, center)
    for work in {np.dtype(dtype), np.dtype(np.float64)}:
        scratch = np.zeros(0, work)
        kernels.squares(rows, through, scratch, 0, 8, sums)
        kernels.products(rows, through, 4, exchanges, scratch, 0, 8, center, sums)
    return perf_counter() - began


def wanted(n: int, d: int) -> bool:
    """Return whether the kernels are used for n rows of length d."""
    return n * d >= LARGE


def _kernels() -> ModuleType:
    from strategies.aggregators import kernels  # imports numba

    return kernels
