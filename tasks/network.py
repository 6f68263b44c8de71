"""A small classifier in NumPy: softmax regression, or a perceptron with ReLU layers; loss and gradient by hand.

Why not torch: a torch gradient on a minibatch of 32 digits takes 260 us, most of it overhead, this one 45 us; and a
client process that never imports torch starts seconds earlier. Larger models go through ``torch_model.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from strategies.method import Vector
from tasks.partition import draw

Inputs = NDArray[np.floating]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """Layers of sizes s_0 (inputs), ..., s_K (classes): affine maps, ReLU between them.

    The model vector x holds W_1, b_1, W_2, b_2, ...: each W_k row by row, shape (s_{k-1}, s_k), each b_k of length s_k.
    A model that an attack has destroyed gives inf and nan, and no warnings.

    Args:
        sizes: s_0, ..., s_K; K = 1 is softmax regression.
    """

    sizes: tuple[int, ...]

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
    def losses(self, x: Vector, inputs: Inputs, labels: Labels) -> Vector:
        """Return each sample's cross-entropy -log softmax(scores)[label], shape (m,)."""
        scores = self.scores(x, inputs)
        scores = scores - scores.max(axis=1, keepdims=True)
        losses: Vector = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels]
        return losses

    @np.errstate(over="ignore", invalid="ignore")
    def gradient(self, x: Vector, inputs: Inputs, labels: Labels) -> Vector:
        """Return the gradient of the mean cross-entropy, shape (d,), a fresh array with the dtype of x."""
        layers = self.layers(x)
        activations = self._forward(layers, inputs)
        # d loss / d scores = (softmax - one-hot) / m
        delta = activations.pop()
        delta -= delta.max(axis=1, keepdims=True)
        np.exp(delta, out=delta)
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
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
    """A worker's loss f_i(x) = mean cross-entropy + (l2/2) ||x||^2 over its samples (all parameters in the norm).

    Args:
        network: the model.
        inputs: shape (m_i, s_0).
        labels: shape (m_i,), 0 .. classes-1.
        l2: weight of the regulariser.
    """

    network: Network
    inputs: Inputs
    labels: Labels
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
        """Return the share of samples whose label has the highest score."""
        return float(np.mean(self.network.scores(x, self.inputs).argmax(axis=1) == self.labels))

    @np.errstate(over="ignore", invalid="ignore")
    def _gradient(self, x: Vector, inputs: Inputs, labels: Labels) -> Vector:
        gradient = self.network.gradient(x, inputs, labels)
        gradient += self.l2 * x
        return gradient
