"""What both ends share: the loss of a client, as gradients at a vector, and the method.

The loss is logistic regression on scikit-learn's breast cancer data: 569 samples of 30 features, one bias.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from flwr.app import UserConfig

from breakwater.aggregators import CoordinateMedian
from breakwater.compressors import RandK
from breakwater.methods import ByzVRMarinaPP, Vector

DIM = 31
L2 = 0.01


def method(config: UserConfig) -> ByzVRMarinaPP:
    """Return Byz-VR-MARINA-PP with the coordinate-wise median, compressing to 10 of 31 numbers."""
    clients = int(config["clients"])
    return ByzVRMarinaPP(
        n=clients,
        f=int(config["byzantine"]),
        gamma=0.05,
        p=0.2,
        cohort=int(config["cohort"]),
        full_cohort=clients,
        batch=8,
        alpha=4.0,
        aggregator=CoordinateMedian(),
        compressor=RandK(k=10),
    )


@cache
def data() -> tuple[Vector, Vector]:
    """Return all samples with the bias's column of ones, shape (569, 31), and their labels, 1 or -1."""
    from sklearn.datasets import load_breast_cancer  # takes a second: only where data is needed

    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    return np.column_stack([features, np.ones(len(labels))])[order], 2.0 * labels[order] - 1


class Loss:
    """The loss of some samples; an ``Oracle`` of ``breakwater.methods``."""

    dim = DIM

    def __init__(self, features: Vector, labels: Vector) -> None:
        self._rows = features * labels[:, None]

    @classmethod
    def of_client(cls, partition: int, clients: int) -> "Loss":
        """Return the loss of one client's samples."""
        features, labels = data()
        return cls(features[partition::clients], labels[partition::clients])

    def value(self, x: Vector) -> float:
        """Return the loss at x."""
        return float(np.logaddexp(0, -self._rows @ x).mean() + L2 / 2 * (x @ x))

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient at x."""
        return self._gradient(self._rows, x)

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch and return its gradient at each point."""
        rows = self._rows[rng.integers(len(self._rows), size=batch)]
        return [self._gradient(rows, x) for x in points]

    @staticmethod
    def _gradient(rows: Vector, x: Vector) -> Vector:
        gradient: Vector = L2 * x - rows.T @ (1 / (1 + np.exp(rows @ x))) / len(rows)
        return gradient


class Flipped(Loss):
    """What a Byzantine client of the example computes: ten times the gradient, with the wrong sign."""

    @staticmethod
    def _gradient(rows: Vector, x: Vector) -> Vector:
        return -10 * Loss._gradient(rows, x)
