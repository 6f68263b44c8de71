"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that come with the package; nothing to download.

Softmax regression or a small perceptron, in NumPy (``network.py`` says why). The task of ``breakwater demo``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks.backdoor import Trigger, flaw_of_images
from tasks.built_in import BuiltIn
from tasks.contract import Setting
from tasks.network import Inputs, Labels, Network, NetworkOracle
from tasks.partition import Indices, Partitioned, share_out, stratified
from tasks.threads import one_thread

CLASSES = 10
PIXELS = 64


@dataclass(frozen=True, kw_only=True)
class DigitsTask(BuiltIn):
    """Classification of the handwritten digits; pixels scaled to [0, 1].

    Args:
        model: ``softmax`` (d = 650) or ``mlp``, one hidden ReLU layer (d = 2,410 with 32 units).
        hidden: units of the hidden layer; ``softmax`` has none.
        l2: weight of the regulariser (l2/2) ||x||^2.
        partition: who holds which training samples; see ``tasks/partition.py``.
        dtype: of data, model and gradients.
        test_share: share of each digit's images kept for the test; which ones is drawn from the run's seed.
    """

    has_images: ClassVar[bool] = True

    kind: Literal["digits"] = "digits"
    model: Literal["softmax", "mlp"] = "mlp"
    hidden: int = 32
    l2: float = 1e-4
    partition: str = "iid"
    dtype: Literal["float32", "float64"] = "float32"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.01 <= self.test_share <= 0.9:
            raise ValueError(f"test_share = {self.test_share}: must be from 0.01 to 0.9")

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports."""
        return ("threadpoolctl",)

    def load(self, setting: Setting) -> "DigitsProblem":
        """Load the digits and split them.

        Raises:
            TaskError: more workers than training samples.
        """
        one_thread()
        pixels, labels = read_digits()
        inputs, labels = (pixels / 16).astype(self.dtype), labels.astype(np.int64)
        # The partition has this role's stream of worker 0.
        test = stratified(labels, self.test_share, stream(setting.seed, Role.PARTITION, worker=1))
        network = Network((PIXELS, self.hidden, CLASSES) if self.model == "mlp" else (PIXELS, CLASSES))
        x0 = network.initial(stream(setting.seed, Role.INITIAL)).astype(self.dtype)
        parts, kept = share_out(self.partition, labels[~test], setting)
        tested = NetworkOracle(network, inputs[test], labels[test], self.l2)
        return DigitsProblem(x0, (inputs[~test], labels[~test]), tested, parts, setting.honest).keeping(kept)


def read_digits() -> tuple[Inputs, Labels]:
    """Return the images, shape (1797, 64), pixels 0 .. 16, and what they show, shape (1797,).

    scikit-learn's own reader is called only where its file is not found: to import the package takes 2.5 s of a core,
    reading the file 0.02, and a Flower SuperNode does it for every message.
    """
    package = find_spec("sklearn")
    path = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz" if package else Path()
    if path.is_file():
        table: Any = np.loadtxt(path, delimiter=",")  # it unpacks by the file's name
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)  # type: ignore[no-any-return]  # ships no types


class DigitsProblem(Partitioned[NetworkOracle]):
    """The loaded digits.

    Args:
        x0: x^0, shape (d,).
        train: inputs of shape (m, 64) and labels of shape (m,) that the parts index.
        test: the model on the test samples.
        parts: the rows of each worker.
        honest: |G|; workers from that number on are no part of the objective.
    """

    def __init__(
        self, x0: Vector, train: tuple[Inputs, Labels], test: NetworkOracle, parts: Sequence[Indices], honest: int
    ) -> None:
        super().__init__(parts, honest)
        self._x0, self._train, self._test = x0, train, test

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self._test.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._x0.dtype

    def training_data(self) -> list[NDArray[Any]]:
        """Return images and labels of all workers."""
        return list(self._train)

    def initial(self) -> Vector:
        """Return x^0, drawn from the run's seed."""
        return self._x0.copy()

    def _oracle_of(self, worker: int, flipped: bool) -> NetworkOracle:
        inputs, labels = self._train[0][self.parts[worker]], self._train[1][self.parts[worker]]
        return replace(self._test, inputs=inputs, labels=CLASSES - 1 - labels if flipped else labels)

    def flaw_of_trigger(self, trigger: Trigger) -> str:
        """Return why a trigger does not fit 8 x 8 pixels and ten classes; "" if it does."""
        return flaw_of_images((8, 8), CLASSES, trigger)

    def poisoned(self, worker: int, trigger: Trigger) -> NetworkOracle:
        """Return the oracle of a worker all of whose images have the trigger, and its label."""
        clean = self.oracle(worker)
        return self._stamped(clean, np.arange(len(clean.labels)), trigger)

    def trigger_success(self, x: Vector, trigger: Trigger) -> float | None:
        """Return the share of test images, not of the trigger's class, that are taken for it with the trigger."""
        rows = np.flatnonzero(self._test.labels != trigger.target)
        return self._stamped(self._test, rows, trigger).accuracy(x) if len(rows) else None

    def _stamped(self, oracle: NetworkOracle, rows: Indices, trigger: Trigger) -> NetworkOracle:
        images = trigger.stamp(oracle.inputs[rows].reshape(-1, 8, 8)).reshape(-1, PIXELS)
        return replace(oracle, inputs=images, labels=np.full(len(rows), trigger.target))

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model: mean of the honest workers' losses, accuracy on the test samples."""
        losses = [self.oracle(worker).value(x) for worker in range(1 if self.replicated else self.honest)]
        return Evaluation(loss=float(np.mean(losses)), accuracy=self._test.accuracy(x))
