"""l2-regularised logistic regression on LIBSVM files, as in the published experiments: no bias, labels -1 and +1.

    f_i(x) = mean over worker i's samples of log(1 + exp(-y a.x)) + (l2/2) ||x||^2
    f(x)   = mean of f_i over the honest workers

The only task here that knows its smoothness L and, for small d, its optimum f*, so a run can be held against theory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.method import Evaluation, Vector
from tasks.built_in import BuiltIn
from tasks.contract import Setting, TaskError
from tasks.files import locate
from tasks.libsvm import read_libsvm
from tasks.matrix import Linear, Matrix, build
from tasks.partition import Indices, Partitioned, draw, share_out
from tasks.threads import one_thread

SMALL = 2000
"""Up to this d, matrices of shape (d, d) are formed: for exact eigenvalues and for Newton's method."""


@dataclass(frozen=True, kw_only=True)
class LogisticTask(BuiltIn):
    """Logistic regression on a LIBSVM file.

    Args:
        data: path of the file under the data folder; plain, ``.gz`` or ``.bz2``. Exactly two labels; the smaller one
            becomes -1, the larger one +1.
        normalise: scale every sample to Euclidean norm 1 (samples of zeros stay).
        l2: weight of the regulariser.
        dtype: of data, model and gradients.
        partition: who holds which samples; see ``tasks/partition.py``.
        features: number of columns, where it is not the largest index in the file (as in some test files).
    """

    kind: Literal["logistic"] = "logistic"
    data: str = "libsvm/a9a.gz"
    normalise: bool = True
    l2: float = 0.01
    dtype: Literal["float32", "float64"] = "float64"
    partition: str = "replicated"
    features: int | None = None

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports."""
        return ("scipy.sparse", "scipy.special", "threadpoolctl")

    def load(self, setting: Setting) -> "LogisticProblem":
        """Read the file.

        Raises:
            TaskError: the file is missing or broken, has more columns than ``features``, or not exactly two labels.
        """
        path = locate(setting, self.data)
        samples = read_libsvm(path)
        columns = int(samples.columns.max(initial=-1)) + 1
        features = self.features or columns
        if columns > features:
            raise TaskError(f"features = {features}: the data file {path} has an entry in column {columns}")
        if features == 0:
            raise TaskError(f"data file {path}: all samples are empty; set features to the number of columns")
        kinds = np.unique(samples.labels)
        if len(kinds) != 2:
            shown = ", ".join(f"{label:g}" for label in kinds[:5])
            raise TaskError(f"data file {path}: {len(kinds)} different labels ({shown}); must be exactly two")
        signs = np.where(samples.labels == kinds[1], 1, -1).astype(self.dtype)
        parts, kept = share_out(self.partition, signs, setting)
        one_thread()
        matrix = build(samples, features, signs.dtype, normalise=self.normalise)
        return LogisticProblem(matrix, signs, parts, setting.honest, self.l2).keeping(kept)


class LogisticLoss:
    """The loss sum_j w_j log(1 + exp(-y_j a_j.x)) + (l2/2) ||x||^2 of some samples, w_j = 1/m by default.

    Also a worker's oracle: it has that contract. A model destroyed by an attack gives inf and nan, and no warnings.

    Args:
        matrix: the samples a_j, shape (m, d).
        signs: the labels y_j, -1 or +1, shape (m,).
        l2: weight of the regulariser.
        weights: w, shape (m,), summing to 1; None for the mean.
    """

    def __init__(self, matrix: Matrix, signs: Vector, l2: float, weights: Vector | None = None) -> None:
        self.matrix, self.signs, self.l2, self._weights = matrix, signs, l2, weights
        self._last: tuple[Vector, Vector] | None = None

    @property
    def dim(self) -> int:
        """d, the number of columns."""
        return self.matrix.shape[1]

    @cached_property
    def weights(self) -> Vector:
        """The weights w, shape (m,), float64."""
        return np.full(len(self.signs), 1 / len(self.signs)) if self._weights is None else self._weights

    @np.errstate(over="ignore", invalid="ignore")
    def value(self, x: Vector) -> float:
        """Return the loss at x; summed in float64, without overflow at any margin."""
        return self._value(x, self.matrix.times(x))

    @np.errstate(over="ignore", invalid="ignore")
    def accuracy(self, x: Vector) -> float:
        """Return the share of the samples with the right sign; a.x = 0 reads as -1."""
        return self._share_right(self.matrix.times(x))

    @np.errstate(over="ignore", invalid="ignore")
    def measures(self, x: Vector) -> tuple[float, float]:
        """Return both."""
        products = self.matrix.times(x)
        return self._value(x, products), self._share_right(products)

    def _value(self, x: Vector, products: Vector) -> float:
        margins = self.signs * products
        return float(np.sum(self.weights * np.logaddexp(0, -margins)) + self.l2 / 2 * np.sum(np.square(x)))

    def _share_right(self, products: Vector) -> float:
        return float(np.mean((products > 0) == (self.signs > 0)))

    @np.errstate(over="ignore", invalid="ignore")
    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient at x over all samples, shape (d,).

        The last one is kept: an omniscient attacker asks for many workers' gradients at one point, and they are equal
        where the data are replicated.
        """
        if self._last is None or not np.array_equal(self._last[0], x):
            residuals = -self.signs * _expit(-self.signs * self.matrix.times(x))
            if self._weights is None:
                residuals /= len(self.signs)
            else:
                residuals *= self._weights.astype(residuals.dtype, copy=False)
            self._last = x.copy(), self.matrix.transposed_times(residuals) + self.l2 * x
        return self._last[1].copy()

    @np.errstate(over="ignore", invalid="ignore")
    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch of min(b, m) samples without replacement; return its mean gradient at each point."""
        if batch >= len(self.signs):
            return [self.full_gradient(x) for x in points]
        rows = draw(len(self.signs), batch, rng)
        samples, signs = self.matrix.minibatch(rows), self.signs[rows]
        return [_mean_gradient(samples, signs, x, self.l2) for x in points]

    def flipped(self) -> "LogisticLoss":
        """Return the loss on flipped labels, y -> -y."""
        return LogisticLoss(self.matrix, -self.signs, self.l2, self._weights)


def _expit(z: Vector) -> Vector:
    """Return 1 / (1 + exp(-z)), without overflow."""
    from scipy.special import expit

    out: Vector = expit(z)
    return out


def _mean_gradient(samples: Linear, signs: Vector, x: Vector, l2: float) -> Vector:
    """Return the gradient of mean log(1 + exp(-y a.x)) + (l2/2) ||x||^2 over a minibatch."""
    residuals = -signs * _expit(-signs * samples.times(x))
    return samples.transposed_times(residuals / len(signs)) + l2 * x


class LogisticProblem(Partitioned[LogisticLoss]):
    """A loaded logistic regression.

    Args:
        matrix: all samples, shape (m, d).
        signs: their labels, -1 or +1, shape (m,).
        parts: the rows of each worker.
        honest: |G|; workers from that number on are no part of the objective.
        l2: weight of the regulariser.
    """

    def __init__(self, matrix: Matrix, signs: Vector, parts: Sequence[Indices], honest: int, l2: float) -> None:
        super().__init__(parts, honest)
        self._matrix, self._signs, self._l2 = matrix, signs, l2

    @property
    def dim(self) -> int:
        """d, the number of columns."""
        return self._matrix.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the labels, and so of everything."""
        return self._signs.dtype

    def training_data(self) -> list[NDArray[Any]]:
        """Return all samples and their labels."""
        return [*self._matrix.arrays(), self._signs]

    def initial(self) -> Vector:
        """Return x^0 = 0, shape (d,)."""
        return np.zeros(self.dim, dtype=self.dtype)

    def _oracle_of(self, worker: int, flipped: bool) -> LogisticLoss:
        if flipped:
            return self._local(worker, False).flipped()
        rows = self.parts[worker]
        if len(rows) == len(self._signs):
            return LogisticLoss(self._matrix, self._signs, self._l2)
        return LogisticLoss(self._matrix.part(rows), self._signs[rows], self._l2)

    @cached_property
    def objective(self) -> LogisticLoss:
        """f, the mean of the honest workers' losses, as one weighted loss over their samples."""
        honest = self.parts[: self.honest]
        if all(part is honest[0] for part in honest):
            return self.oracle(0)
        rows = np.concatenate(honest)
        weights = np.concatenate([np.full(len(part), 1 / (len(part) * len(honest))) for part in honest])
        return LogisticLoss(self._matrix.part(rows), self._signs[rows], self._l2, weights)

    @cached_property
    def smoothness(self) -> float:
        """L = lambda_max(A^T diag(w) A) / 4 + l2 of the objective, w = 1/m where the data are replicated."""
        f = self.objective
        if self.dim <= SMALL:
            from scipy.linalg import eigvalsh

            top = eigvalsh(f.matrix.gram(f.weights), subset_by_index=[self.dim - 1, self.dim - 1])[0]
        else:
            top = _largest_eigenvalue(f.matrix, f.weights)
        return float(top) / 4 + self._l2

    @cached_property
    def optimum(self) -> float | None:
        """f*, by Newton's method to machine precision; None for d > 2000, or l2 = 0, where no minimiser need exist."""
        return None if self.dim > SMALL or self._l2 == 0 else _newton(self.objective)

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model; accuracy on the training data of the objective."""
        f, x = self.objective, x.astype(np.float64)  # so that the gap of a float32 run is not lost in rounding
        loss, accuracy = f.measures(x)
        gap = None if self.optimum is None else loss - self.optimum
        return Evaluation(loss=loss, accuracy=accuracy, gap=gap)


def _largest_eigenvalue(matrix: Matrix, weights: Vector) -> float:
    """Return lambda_max(A^T diag(w) A) by Lanczos iterations from a fixed start."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def product(v: Vector) -> Vector:
        return matrix.transposed_times(weights * matrix.times(np.ravel(v)))

    d = matrix.shape[1]
    operator = LinearOperator((d, d), product, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", v0=np.ones(d), return_eigenvectors=False)[0])


def _newton(f: LogisticLoss) -> float:
    """Return min f by damped Newton steps in float64, until no step goes down any more."""
    from scipy.linalg import solve

    x = np.zeros(f.dim)
    value = f.value(x)
    while True:
        share = _expit(-f.signs.astype(np.float64) * f.matrix.times(x))
        gradient = f.matrix.transposed_times(-f.signs * share * f.weights) + f.l2 * x
        hessian = f.matrix.gram(f.weights * share * (1 - share)) + f.l2 * np.eye(f.dim)
        step = solve(hessian, -gradient, assume_a="pos")
        slope = float(np.sum(gradient * step))
        scale = 1.0
        while (new := f.value(x + scale * step)) > value + 1e-4 * scale * slope and scale > 1e-10:
            scale /= 2
        if not new < value:
            return value
        x, value = x + scale * step, new
