"""Model, data and training, as in any app; nothing here is specific to Byzantine clients."""

from functools import cache

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Model = dict[str, Floats]


def new_model() -> Model:
    """Return softmax regression at zero."""
    return {"weights": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}


def to_record(model: Model) -> ArrayRecord:
    """Return the model as Flower sends it."""
    return ArrayRecord({name: Array(values) for name, values in model.items()})


def from_record(arrays: ArrayRecord) -> Model:
    """Return the model that Flower sent."""
    return {name: array.numpy() for name, array in arrays.items()}


@cache
def digits() -> tuple[Floats, NDArray[np.int64]]:
    """Return all images, shape (1797, 64), and their digits, in an order that is the same everywhere."""
    from sklearn.datasets import load_digits  # takes a second: only where data is needed

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order]


def train_data(partition: int, partitions: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return the images of one client."""
    images, labels = digits()
    return images[300 + partition :: partitions], labels[300 + partition :: partitions]


def accuracy(model: Model) -> float:
    """Return the share of the 300 test images that the model classifies correctly."""
    images, labels = digits()
    scores = images[:300] @ model["weights"] + model["bias"]
    return float(np.mean(scores.argmax(axis=1) == labels[:300]))


def train(model: Model, images: Floats, labels: NDArray[np.int64], steps: int, lr: float) -> Model:
    """Take a few steps of gradient descent."""
    weights, bias = model["weights"], model["bias"]
    wanted = np.eye(10, dtype=np.float32)[labels]
    for _ in range(steps):
        scores = images @ weights + bias
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True) - wanted
        weights = weights - lr * images.T @ error / len(labels)
        bias = bias - lr * error.mean(axis=0)
    return {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
