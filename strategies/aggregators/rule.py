"""What all robust aggregation rules share: the check of (n', f) and the pre-aggregators."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import numpy as np
from numpy.random import Generator

from strategies.aggregators.preaggregators import PreAggregator
from strategies.aggregators.weighted_rows import Taken, WeightedRows
from strategies.arrays import ArrayT, Random, check_finite, generator, read_rows, whole
from strategies.method import Rows, Vector, Weights
from strategies.weights import Masses, heaviest, whole_weights


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """One vector out of n' of which up to f may be anything at all.

    Args:
        kind: the rule's name in configs.
        pre: pre-aggregators, applied in this order before the rule.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    defends: ClassVar[bool] = True
    """Whether the rule limits what f rows can do to its output."""
    needs_root: ClassVar[bool] = False
    """Whether its centre is the server's own row, computed on data that the server has for it."""
    takes_weights: ClassVar[bool] = False
    """Whether it has a meaning for rows with weights, see ``strategies.weights``."""
    uses_f: ClassVar[bool] = True
    """Whether what the bare rule returns depends on f."""

    kind: str
    pre: tuple[PreAggregator, ...] = ()

    def limit(self, n: int) -> int:
        """Return the largest f that the bare rule takes for n rows, without pre-aggregators; negative if none.

        It is the largest f below n/2, unless a rule says otherwise.
        """
        return (n - 1) // 2

    def refusal(self, n: int, f: int) -> str:
        """Return what a refusal of (n, f) says beside the numbers."""
        return ""

    @abstractmethod
    def aggregate(self, rows: WeightedRows, f: int, center: Vector | None) -> Vector:
        """Apply the bare rule to n' checked rows; return shape (d,), dtype of ``rows``, an array of its own.

        A rule that draws at random draws from ``rows.rng``. One that ``takes_weights`` finds those of the rows in
        ``rows.mass``.
        """

    @overload
    def __call__(
        self,
        rows: ArrayT,
        f: int,
        rng: Random = None,
        center: ArrayT | None = None,
        weights: Sequence[float] | None = None,
    ) -> ArrayT: ...
    @overload
    def __call__(
        self,
        rows: Sequence[ArrayT],
        f: int,
        rng: Random = None,
        center: ArrayT | None = None,
        weights: Sequence[float] | None = None,
    ) -> ArrayT: ...
    @overload
    def __call__(
        self,
        rows: Sequence[Sequence[float]],
        f: int,
        rng: Random = None,
        center: Vector | None = None,
        weights: Sequence[float] | None = None,
    ) -> Vector: ...
    def __call__(
        self, rows: Any, f: int, rng: Random = None, center: Any = None, weights: Sequence[float] | None = None
    ) -> Any:
        """Aggregate n' vectors of which up to ``f`` may be Byzantine.

        Args:
            rows: a matrix, shape (n', d), or a list of n' arrays of one shape; NumPy arrays, or torch tensors on any
                device. All numbers must be finite. Never modified.
            f: how many rows to defend against; at most ``tolerates(n')``.
            rng: for rules and pre-aggregators that draw, a generator or a seed; others need none.
            center: where the caller believes the answer to lie, one vector; for the rules that need a centre. For
                ``fltrust`` the row that the caller has computed itself.
            weights: how much each row counts, n' finite numbers above 0 of which only the ratios matter; None for all
                the same. The f heaviest rows must have less than half of the weight.

        Returns:
            One vector as the rows are: type, device, and the shape of an array of a list. float16 and bfloat16 are
            computed in float32. An array of its own; a tensor without a gradient.

        Raises:
            ValueError: rows of another shape or type or with NaN, more Byzantine rows than the rule can take, weights
                that are none or that it does not take, or a rule or pre-aggregator that draws and no ``rng``; one line.
        """
        received, form = read_rows(rows)
        middle = None if center is None else form.vector(center, "center")
        f = whole(f)
        self._check(received, f)
        check_finite(received)
        mass = None if weights is None else self._mass(weights, len(received), f)
        return form.back(self._weigh(received, f, generator(rng, self._name()), middle, mass)[0])

    def weigh(
        self, rows: Rows, f: int, rng: Generator, center: Vector | None = None, mass: Masses | None = None
    ) -> tuple[Vector, Weights | None]:
        """Return the same for NumPy rows that are known to be finite, and the weight of each row in it.

        A server calls this one, as it has screened the rows; see ``strategies.operators.Aggregator``.
        """
        self._check(rows, f)
        if mass is not None:
            self._check_weights(mass, len(rows))
        return self._weigh(rows, f, rng, center, mass)

    def _weigh(
        self, rows: Rows, f: int, rng: Generator, center: Vector | None, mass: Masses | None
    ) -> tuple[Vector, Weights | None]:
        """Do what ``weigh`` does with rows and f that were checked."""
        seen = WeightedRows(rows, rng=rng, mass=mass)
        for step in self.pre:
            left = step.after(len(seen), f)[1]
            seen, f = step.mix(seen, f, rng), left
        taken = seen.taken = Taken()
        return self.aggregate(seen, f, center), taken.weights

    @property
    def depends_on_f(self) -> bool:
        """Whether what rule and pre-aggregators return depends on f."""
        return self.uses_f or any(step.uses_f for step in self.pre)

    def refuses_weights(self) -> str | None:
        """Return the name of what of rule and pre-aggregators does not take weights; None where all do."""
        parts = (self, *self.pre)
        return next((str(part.kind) for part in parts if not part.takes_weights), None)

    def withstands(self, mass: Masses, f: int) -> bool:
        """Return whether rule and pre-aggregators withstand f Byzantine rows among rows with these weights.

        Who is Byzantine is not known, so the f heaviest are taken for it: they must have less than half of the weight.

        Args:
            mass: whole weights, shape (n',), n' at least 1.
            f: how many, at least 0.
        """
        total, n = int(mass.sum()), len(mass)
        for step in self.pre:
            if step.tolerates(n) < n and 2 * heaviest(mass, f) >= total:
                return False
            f = step.spread(f)
        return self.limit(n) >= n or 2 * heaviest(mass, f) < total

    def weighted_kappa(self, delta: float) -> float | None:
        """Return kappa for rows with weights, of which Byzantine rows have the share delta; see ``kappa``.

        Mean and variance of the honest rows are the weighted ones. A weighted rule equals the unweighted one on as many
        copies of each row as its weight says, so delta takes the place of f/n.

        Args:
            delta: in [0, 1/2).
        """
        kappa = self.bound(1.0, delta)
        for step in reversed(self.pre):
            kappa = None if kappa is None else step.bound(1.0, delta, kappa)
        return kappa

    def _mass(self, weights: Sequence[float], n: int, f: int) -> Masses | None:
        """Return a user's weights as whole numbers; None where all are equal."""
        self._check_weights(weights, n)
        numbers = whole_weights([float(w) for w in weights])
        if not numbers:
            return None
        mass = np.array(numbers, np.int64)
        if not self.withstands(mass, f):
            raise ValueError(f"f = {f}: the {f} heaviest of n' = {n} rows can spoil half of the weight or more")
        return mass

    def _check_weights(self, weights: Sequence[float] | Masses, n: int) -> None:
        """Raise ValueError with one line unless all parts take weights, and there are as many as rows."""
        part = self.refuses_weights()
        if part is not None:
            raise ValueError(f"weights: {part} does not take any")
        if len(weights) != n:
            raise ValueError(f"weights: {len(weights)} of them for n' = {n} rows; give one for each")

    def _check(self, rows: Rows, f: int) -> None:
        """Raise ValueError with one line unless the rule takes these rows and this f."""
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in (np.float32, np.float64):
            wanted = "must be (n', d), both at least 1, float32 or float64"
            raise ValueError(f"rows of shape {rows.shape}, {rows.dtype}: {wanted}")
        self._check_count(len(rows), f)

    def _check_count(self, n: int, f: int) -> None:
        """Raise ValueError with one line unless the rule takes this f of n rows."""
        if not self._accepts(n, f):
            most = f"{self._name()} takes at most {self.tolerates(n)}{self.refusal(n, f)}"
            raise ValueError(f"f = {f} of n' = {n} rows: {most}")

    def tolerates(self, n: int) -> int:
        """Return the largest f that rule and pre-aggregators take for n rows; -1 if they cannot take n rows at all."""
        return max((f for f in range(n + 1) if self._accepts(n, f)), default=-1)

    def breakdown(self, n: int) -> float:
        """Return the largest share f/n that rule and pre-aggregators take of n rows; negative if they cannot take n."""
        return self.tolerates(n) / n

    def kappa(self, n: int, f: int) -> float | None:
        """Return the constant of (f, kappa)-robustness of rule and pre-aggregators.

        For every S of n - f rows, ||R - mean_S||^2 <= kappa * mean over S of ||v_i - mean_S||^2, whatever the other f
        rows are. No rule has less than f / (n - 2f).

        Args:
            n: rows, at least 1.
            f: of which that many may be Byzantine, from 0 to ``tolerates(n)``.

        Returns:
            kappa; None where no bound is known.

        Raises:
            ValueError: the rule does not take f of n rows; one line.

        Source:
            Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by mixing (AISTATS 2023), Definition 2,
            Table 1 and Lemma 1 for ``nnm``.
        """
        self._check_count(n, f)
        sizes = [(n, f)]
        for step in self.pre:
            sizes.append(step.after(*sizes[-1]))
        kappa = self.bound(*sizes[-1])
        for step, (rows, spoilt) in zip(reversed(self.pre), sizes[-2::-1], strict=True):
            kappa = None if kappa is None else step.bound(rows, spoilt, kappa)
        return kappa

    def bound(self, n: float, f: float) -> float | None:
        """Return kappa of the bare rule, see ``kappa``; None, unless a rule says otherwise."""
        return None

    def _accepts(self, n: int, f: int) -> bool:
        if f < 0 or n < 1:
            return False
        for step in self.pre:
            if f > step.tolerates(n):
                return False
            n, f = step.after(n, f)
        return f <= self.limit(n)

    def _name(self) -> str:
        return self.kind + "".join(f" after {step.kind}" for step in reversed(self.pre))
