"""A small network in NumPy: a linear model, or a perceptron with ReLU layers; loss and gradient by hand.

Why not torch: a torch gradient on a minibatch of 32 digits takes 260 us, most of it overhead, this one 45 us; and a
client process that never imports torch starts seconds earlier. Larger models go through ``torch_model.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.method import Vector
from tasks.partition import draw

Inputs = NDArray[np.floating]
Labels = NDArray[np.int64]
Targets = NDArray[Any]
"""Labels, or the numbers of a regression."""

Head = Literal["softmax", "logit", "squared", "huber"]
"""What the scores s mean, and the loss of a sample with the target y.

==========  ============================================================  ==========================================
softmax     a score for each class, y is the class                        -log softmax(s)[y]
logit       one score, y is 0 or 1                                        log(1 + exp(s)) - y s
squared     one score, y is a number                                      r^2 / 2, with r = s - y
huber       the same                                                      r^2 / 2 up to |r| = delta, linear beyond
==========  ============================================================  ==========================================
"""
CURVATURE: dict[Head, float] = {"softmax": 0.5, "logit": 0.25, "squared": 1.0, "huber": 1.0}
"""The largest second derivative of a sample's loss along any direction of its scores of length 1."""


@dataclass(frozen=True)
class Network:
    """Layers of sizes s_0 (inputs), ..., s_K (classes): affine maps, ReLU between them.

    The model vector x holds W_1, b_1, W_2, b_2, ...: each W_k row by row, shape (s_{k-1}, s_k), each b_k of length s_k.
    A model that an attack has destroyed gives inf and nan, and no warnings.

    Args:
        sizes: s_0, ..., s_K; with K = 1 the model is linear.
        head: what the scores mean; all but ``softmax`` have s_K = 1.
        delta: of ``huber``, where the loss turns linear.
    """

    sizes: tuple[int, ...]
    head: Head = "softmax"
    delta: float = 1.0

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.sizes))

    def layers(self, x: Vector) -> list[tuple[Inputs, Vector]]:
        """Return (W_k, b_k) of every layer as views of x."""
        views, at = [], 0
        for fan_in, fan_out in pairwise(self.sizes):
            middle, end = at + fan_in * fan_out, at + (fan_in + 1) * fan_out
            views.append((x[at:middle].reshape(fan_in, fan_out), x[middle:end]))
            at = end
        return views

    def initial(self, rng: np.random.Generator) -> Vector:
        """Return random parameters, float64: uniform in +-1/sqrt(inputs of the layer), for weights and offsets."""
        x = rng.uniform(-1, 1, self.dim)
        for weight, offset in self.layers(x):
            weight /= np.sqrt(len(weight))
            offset /= np.sqrt(len(weight))
        return x

    @np.errstate(over="ignore", invalid="ignore")
    def scores(self, x: Vector, inputs: Inputs) -> Inputs:
        """Return each sample's score of each class, shape (m, classes); ``inputs`` has shape (m, s_0)."""
        return self._forward(self.layers(x), inputs)[-1]

    @np.errstate(over="ignore", invalid="ignore")
    def losses(self, x: Vector, inputs: Inputs, labels: Targets) -> Vector:
        """Return each sample's loss, shape (m,)."""
        scores = self.scores(x, inputs)
        if self.head != "softmax":
            return self._loss_of_one(scores[:, 0], labels)
        scores = scores - scores.max(axis=1, keepdims=True)
        losses: Vector = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels]
        return losses

    def _loss_of_one(self, score: Vector, target: Targets) -> Vector:
        if self.head == "logit":
            return np.asarray(np.logaddexp(0, score) - target * score)
        distance = np.abs(score - target)
        squares: Vector = distance * distance / 2
        if self.head == "squared":
            return squares
        return np.where(distance <= self.delta, squares, self.delta * (distance - self.delta / 2))

    @np.errstate(over="ignore", invalid="ignore", under="ignore")
    def probabilities(self, x: Vector, inputs: Inputs) -> Inputs:
        """Return each sample's probability of each class, shape (m, classes); of a model that predicts classes."""
        scores = self.scores(x, inputs)
        if self.head == "logit":
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        shares: Inputs = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    @np.errstate(over="ignore", invalid="ignore")
    def classes(self, x: Vector, inputs: Inputs) -> Labels:
        """Return each sample's class with the highest score, shape (m,); of equal ones the first."""
        scores = self.scores(x, inputs)
        return (scores[:, 0] > 0).astype(np.int64) if self.head == "logit" else scores.argmax(axis=1)

    @np.errstate(over="ignore", invalid="ignore")
    def gradient(self, x: Vector, inputs: Inputs, labels: Targets) -> Vector:
        """Return the gradient of the mean loss, shape (d,), a fresh array with the dtype of x."""
        layers = self.layers(x)
        activations = self._forward(layers, inputs)
        delta = activations.pop()  # of shape (m, s_K): the scores, then d loss / d scores
        if self.head == "softmax":  # (softmax - one-hot) / m
            delta -= delta.max(axis=1, keepdims=True)
            np.exp(delta, out=delta)
            delta /= delta.sum(axis=1, keepdims=True)
            delta[np.arange(len(labels)), labels] -= 1
        else:
            if self.head == "logit":  # the logistic function of the score, without overflow
                delta[:] = np.exp(-np.logaddexp(0, -delta))
            delta[:, 0] -= labels
            if self.head == "huber":
                np.clip(delta, -self.delta, self.delta, out=delta)
        delta /= len(labels)

        gradient = np.empty_like(x)
        slots = self.layers(gradient)
        for k in reversed(range(len(layers))):
            np.matmul(activations[k].T, delta, out=slots[k][0])
            delta.sum(axis=0, out=slots[k][1])
            if k > 0:
                delta = delta @ layers[k][0].T
                delta *= activations[k] > 0
        return gradient

    @staticmethod
    def _forward(layers: Sequence[tuple[Inputs, Vector]], inputs: Inputs) -> list[Inputs]:
        """Return what goes into each layer, and the scores."""
        activations = [inputs]
        for k, (weight, offset) in enumerate(layers):
            out = activations[-1] @ weight
            out += offset
            if k < len(layers) - 1:
                np.maximum(out, 0, out=out)
            activations.append(out)
        return activations


@dataclass(frozen=True, eq=False)
class NetworkOracle:
    """A worker's loss f_i(x) = mean loss of its samples + (l2/2) ||x||^2 (all parameters in the norm).

    Args:
        network: the model.
        inputs: shape (m_i, s_0).
        labels: shape (m_i,), 0 .. classes-1; of a regression numbers with the dtype of the inputs.
        l2: weight of the regulariser.
    """

    network: Network
    inputs: Inputs
    labels: Targets
    l2: float

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self.network.dim

    def full_gradient(self, x: Vector) -> Vector:
        """Return grad f_i(x) over all local samples."""
        return self._gradient(x, self.inputs, self.labels)

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch of min(b, m_i) samples without replacement; return its mean gradient at each point."""
        rows = draw(len(self.labels), batch, rng)
        inputs, labels = self.inputs[rows], self.labels[rows]
        return [self._gradient(x, inputs, labels) for x in points]

    @np.errstate(over="ignore", invalid="ignore")
    def value(self, x: Vector) -> float:
        """Return f_i(x), summed in float64."""
        losses = self.network.losses(x, self.inputs, self.labels)
        return float(np.mean(losses, dtype=np.float64) + self.l2 / 2 * np.sum(np.square(x), dtype=np.float64))

    def accuracy(self, x: Vector) -> float:
        """Return the share of samples whose label has the highest score; of a model that predicts classes."""
        return float(np.mean(self.network.classes(x, self.inputs) == self.labels))

    @np.errstate(over="ignore", invalid="ignore")
    def _gradient(self, x: Vector, inputs: Inputs, labels: Targets) -> Vector:
        gradient = self.network.gradient(x, inputs, labels)
        gradient += self.l2 * x
        return gradient
