"""Model and data, as in any app with scikit-learn; nothing here is specific to Byzantine clients."""

from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

Data = tuple[NDArray[np.float64], NDArray[np.int64]]
CLASSES = np.arange(10)
TEST = 300
"""The first so many images measure the accuracy; nobody trains on them."""


def new_model(lr: float = 0.05) -> Any:
    """Return logistic regression at zero: ``coef_`` of shape (10, 64) and ``intercept_`` of shape (10,)."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=lr, random_state=0)
    model.classes_, model.coef_, model.intercept_ = CLASSES, np.zeros((10, 64)), np.zeros(10)
    return model


def to_record(model: Any) -> ArrayRecord:
    """Return the coefficients of a linear model as Flower sends them."""
    return ArrayRecord({"coef": Array(model.coef_), "intercept": Array(model.intercept_)})


def load_record(model: Any, arrays: ArrayRecord) -> Any:
    """Put the coefficients that Flower sent into a model, and return it."""
    model.coef_, model.intercept_ = arrays["coef"].numpy().copy(), arrays["intercept"].numpy().copy()
    return model


@cache
def digits() -> Data:
    """Return all images, shape (1797, 64), and their digits, in an order that is the same everywhere."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order] / 16, labels[order]


def train_data(partition: int, partitions: int) -> Data:
    """Return the images of one client."""
    images, labels = digits()
    return images[TEST + partition :: partitions], labels[TEST + partition :: partitions]


def accuracy(model: Any) -> float:
    """Return the share of the test images that the model classifies correctly."""
    images, labels = digits()
    return float(model.score(images[:TEST], labels[:TEST]))
