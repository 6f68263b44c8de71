"""Pre-steps: what is done to the received rows before a robust rule sees them.

A pre-step maps n' rows of which f may be Byzantine to other rows of which f' may be. Bucketing averages random groups,
so that honest rows differ less, but every Byzantine row spoils a whole group; nearest-neighbour mixing averages each
row with those around it and keeps f. The rules of ``aggregators`` run them in the order of their field ``pre``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from strategies.algorithm import Rows
from strategies.vectors import mean_of_rows, squared_distances


@dataclass(frozen=True, kw_only=True)
class Bucketing:
    """Means of random groups of s rows; the last group may be smaller and is divided by its own size.

    Args:
        s: rows in a bucket, at least 1. A share delta of Byzantine rows becomes up to s * delta of the buckets.

    Source:
        Karimireddy, He, Jaggi: Byzantine-robust learning on heterogeneous datasets via bucketing (ICLR 2022),
        Algorithm 1.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["bucketing"] = "bucketing"
    s: int = 2

    def __post_init__(self) -> None:
        if self.s < 1:
            raise ValueError(f"s = {self.s}: must be at least 1")

    def tolerates(self, n: int) -> int:
        """Return the largest f that this step takes for n rows: any, the rule after it decides."""
        return n

    def after(self, n: int, f: int) -> tuple[int, int]:
        """Return (n', f') for n rows with f Byzantine: ceil(n/s) buckets, of which f may be spoilt."""
        buckets = -(-n // self.s)
        return buckets, min(f, buckets)

    def __call__(self, rows: Rows, f: int, rng: np.random.Generator) -> tuple[Rows, int]:
        """Average the rows in random buckets.

        Args:
            rows: shape (n, d); never modified.
            f: how many of them may be Byzantine.
            rng: draws the permutation.

        Returns:
            Rows of shape (ceil(n/s), d), dtype of ``rows``, and f'.
        """
        n, d = rows.shape
        buckets, spoilt = self.after(n, f)
        order = rng.permutation(n)
        mixed = np.empty((buckets, d), rows.dtype)
        for j in range(buckets):
            mixed[j] = mean_of_rows(rows[order[j * self.s : (j + 1) * self.s]])
        return mixed, spoilt


@dataclass(frozen=True, kw_only=True)
class NearestNeighbourMixing:
    """Every row becomes the mean of its n - f nearest rows, itself included.

    Source:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by mixing (AISTATS 2023).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    kind: Literal["nnm"] = "nnm"

    def tolerates(self, n: int) -> int:
        """Return the largest f that this step takes for n rows: fewer than half of them."""
        return (n - 1) // 2

    def after(self, n: int, f: int) -> tuple[int, int]:
        """Return (n', f') for n rows with f Byzantine: both unchanged."""
        return n, f

    def __call__(self, rows: Rows, f: int, rng: np.random.Generator) -> tuple[Rows, int]:
        """Mix every row with its nearest ones; of equally distant rows the lowest index comes first.

        Args:
            rows: shape (n, d); never modified.
            f: how many of them may be Byzantine.
            rng: not drawn from.

        Returns:
            Rows of shape (n, d), dtype of ``rows``, and f.
        """
        n = len(rows)
        squares = squared_distances(rows)
        np.fill_diagonal(squares, -1.0)  # a row is its own nearest, also among equal ones
        nearest = np.argsort(squares, axis=1, kind="stable")[:, : n - f]
        mixed = np.empty_like(rows)
        for i in range(n):
            # Ascending, so that rows with the same neighbours become the same row to the last bit.
            mixed[i] = mean_of_rows(rows[np.sort(nearest[i])])
        return mixed, f


PreStep = Bucketing | NearestNeighbourMixing
"""Any pre-step; told apart by ``kind``."""
