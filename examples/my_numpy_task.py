"""Example of a custom task that is no torch module: least squares in NumPy, with gradients of its own.

Use it in a config that lies in the same folder::

    [task]
    kind = "custom"
    path = "my_numpy_task.py:LeastSquares"
    options = { features = 20 }
"""

from collections.abc import Sequence

import numpy as np

from breakwater.tasks import Evaluation, Setting, Vector


class LeastSquares:
    """Linear regression on generated data. The options of the config are the arguments of the constructor."""

    def __init__(self, features: int = 20, samples: int = 100) -> None:
        self.features, self.samples = features, samples

    def load(self, setting: Setting) -> "Regression":
        """Return the loaded task; the seed makes it the same in every process."""
        rng = np.random.default_rng(setting.seed)
        inputs = rng.normal(size=(setting.clients, self.samples, self.features))
        truth = rng.normal(size=self.features)
        targets = inputs @ truth + 0.1 * rng.normal(size=inputs.shape[:2])
        return Regression(inputs, targets, setting.honest)


class Regression:
    """A ``Problem``: inputs of shape (n, m, d), targets of shape (n, m); the first ``honest`` workers count."""

    dtype = np.dtype(np.float64)
    smoothness = optimum = None  # not known

    def __init__(self, inputs: Vector, targets: Vector, honest: int) -> None:
        self.inputs, self.targets, self.honest = inputs, targets, honest
        self.samples, self.dim = inputs.shape[1:]

    def initial(self) -> Vector:
        """Return x^0."""
        return np.zeros(self.dim)

    def oracle(self, worker: int, *, flipped: bool = False) -> "Residuals":
        """Return the gradients of one worker; an attacker may ask for those of flipped targets."""
        return Residuals(self.inputs[worker], -self.targets[worker] if flipped else self.targets[worker])

    def evaluate(self, x: Vector) -> Evaluation:
        """Return the mean loss of the honest workers; a regression has no accuracy."""
        errors = self.inputs[: self.honest] @ x - self.targets[: self.honest]
        return Evaluation(loss=float(np.mean(errors**2) / 2), accuracy=None)

    def training_data(self) -> list[Vector]:
        """Return all data, which server and clients compare when a client joins."""
        return [self.inputs, self.targets]


class Residuals:
    """An ``Oracle``: the gradients of one worker's loss."""

    def __init__(self, inputs: Vector, targets: Vector) -> None:
        self.inputs, self.targets = inputs, targets
        self.dim = inputs.shape[1]

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all samples of the worker."""
        return self.inputs.T @ (self.inputs @ x - self.targets) / len(self.targets)

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch and return its gradient at each point."""
        rows = rng.choice(len(self.targets), size=min(batch, len(self.targets)), replace=False)
        part = Residuals(self.inputs[rows], self.targets[rows])
        return [part.full_gradient(x) for x in points]
