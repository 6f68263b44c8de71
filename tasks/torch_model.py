"""Runs a torch module as a problem on flat NumPy vectors: the base of MNIST and of custom tasks.

The parameters are views of one flat vector, and so are their gradients: a model comes in by one copy and its gradient
goes out by one. On the CPU, with one thread, so that every process computes the same bits. Importing it imports torch.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks.backdoor import Trigger, flaw_of_images
from tasks.contract import Setting, TaskError
from tasks.measures import highest_score, is_one_hot, share_right
from tasks.modules import completed, tied, trained, untrained
from tasks.partition import Indices, Partitioned, draw, share_out
from tasks.threads import one_thread

BLOCK = 250
"""Samples that are pushed through the model at once; bounds the memory of a full gradient. With 1000 the activations of
a small CNN on MNIST no longer fit into the cache, and a full gradient takes twice as long."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(output of the model, targets) -> the MEAN loss of these samples, a scalar."""


def unchanged(inputs: Tensor) -> Tensor:
    """Return the inputs as they are."""
    return inputs


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchTask:
    """What makes a torch problem; the rest comes from the setting.

    Args:
        model: builds the module; called once, under a seed of the run.
        train: inputs and targets, one sample a row.
        test: the same for the accuracy.
        loss: mean loss of some samples.
        correct: which of some samples are predicted rightly, see ``tasks/measures.py``; None, or returning None, for no
            accuracy.
        flip: the targets that an attacker pretends to have, from the true ones.
        prepare: applied to the inputs of each block, so that they can be kept small (bytes of pixels).
        l2: weight of the regulariser (l2/2) ||x||^2.
        dtype: ``"float32"`` or ``"float64"``, of model and gradients.
        partition: see ``tasks/partition.py``; by the targets.
    """

    model: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Loss = nn.functional.cross_entropy
    correct: Callable[[Tensor, Tensor], Tensor | None] | None = highest_score
    flip: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = unchanged
    l2: float = 0.0
    dtype: str = "float32"
    partition: str = "iid"

    def load(self, setting: Setting) -> "TorchProblem":
        """Build the model and split the data.

        Raises:
            TaskError: the model's output would depend on more than parameters and data; more workers than samples.
        """
        model = built(self.model, self.prepare(self.train[0][:1]), self.dtype, setting.seed)
        parts, kept = share_out(self.partition, labels_of(self.train[1]), setting)
        return TorchProblem(self, model, parts, setting.honest).keeping(kept)


def built(model: Callable[[], nn.Module], inputs: Tensor | None, dtype: str, seed: int) -> "FlatModule":
    """Build the module of a run; the same in every process.

    Args:
        model: builds it.
        inputs: of one sample, prepared; None where there is none.
        dtype: of its parameters.
        seed: the run's.

    Raises:
        TaskError: its output would depend on more than parameters and data, or it needs a sample to be built.
    """
    torch.set_num_threads(1)
    one_thread()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, Role.INITIAL).integers(2**63)))
        return FlatModule(completed(model(), inputs, dtype), dtype)


def labels_of(targets: Tensor) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """Return one sortable label a sample: the class of one-hot rows, else the first of several targets."""
    one = targets.argmax(dim=1) if is_one_hot(targets) else targets.reshape(len(targets), -1)[:, 0]
    labels: np.ndarray[tuple[int], np.dtype[Any]] = one.numpy()
    return labels


class FlatModule:
    """A torch module whose parameters, and gradients, lie in one flat vector each.

    Args:
        module: any module on the CPU whose output is a function of its parameters and the inputs alone.
        dtype: what its parameters are converted to.

    Raises:
        TaskError: it has no parameters; or it has layers that keep running statistics or draw at random.
    """

    def __init__(self, module: nn.Module, dtype: str) -> None:
        for name, layer in module.named_modules():
            which = f'the model\'s layer "{name}" ({type(layer).__name__})'
            if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats:
                fix = "use GroupNorm, LayerNorm or track_running_stats=False"
                raise TaskError(f"{which} keeps running statistics, which no gradient carries to the server; {fix}")
            if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
                raise TaskError(f"{which} draws at random, so no run could be repeated; leave it out")
        trained(module)  # before they are converted, which would drop the imaginary part of a number
        self.module = module.to(getattr(torch, dtype))
        self.trained = trained(module)
        parameters = list(self.trained.values())
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        gradient = torch.zeros_like(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, x, slope in zip(parameters, torch.split(flat, sizes), torch.split(gradient, sizes), strict=True):
            parameter.data, parameter.grad = x.view_as(parameter), slope.view_as(parameter)
        # These share memory with the parameters. Writing through NumPy is safe: no graph outlives a call of a method.
        self._x: Vector = flat.numpy()
        self._gradient: Vector = gradient.numpy()
        self.initial: Vector = self._x.copy()

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return len(self._x)

    def layout(self) -> str:
        """Return the names and shapes of what x holds, in its order, as JSON."""
        return json.dumps([[name, list(parameter.shape)] for name, parameter in self.trained.items()])

    def gradient(self, x: Vector, blocks: Iterator[tuple[Tensor, Tensor]], loss: Loss, samples: int) -> Vector:
        """Return the gradient at x of the mean loss over all blocks, shape (d,), a fresh array.

        Args:
            x: shape (d,).
            blocks: inputs and targets.
            loss: mean loss of one block.
            samples: how many samples the blocks have together.
        """
        self._x[:] = x
        self._gradient[:] = 0
        for inputs, targets in blocks:
            mean = loss(self.module(inputs), targets)
            (mean * (len(targets) / samples)).backward()  # type: ignore[no-untyped-call]  # torch does not type it
        return self._gradient.copy()

    @torch.no_grad()
    def outputs(self, x: Vector, blocks: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the output at x, and the targets, of each block."""
        self._x[:] = x
        for inputs, targets in blocks:
            yield self.module(inputs), targets


class OnModule:
    """What a problem has whose parameters are those of a module, whatever data it has."""

    model: FlatModule

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self.model.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.model.initial.dtype

    def layout(self) -> str:
        """Return the names and shapes of what x holds, in its order."""
        return self.model.layout()

    def tied(self) -> dict[str, str]:
        """Return the further names that a state dict has for trained parameters, with the name in ``layout``."""
        return tied(self.model.module)

    def frozen(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Return what belongs to the model beside x: frozen parameters and buffers by name."""
        return untrained(self.model.module)

    def initial(self) -> Vector:
        """Return x^0: as the module was built, under a torch seed drawn from the run's."""
        return self.model.initial.copy()


class TorchProblem(OnModule, Partitioned["TorchOracle"]):
    """A loaded torch task.

    Args:
        task: data, loss and hyper-parameters.
        model: the module, shared by all oracles.
        parts: the rows of each worker.
        honest: |G|; workers from that number on are no part of the objective.
    """

    def __init__(self, task: TorchTask, model: FlatModule, parts: Sequence[Indices], honest: int) -> None:
        super().__init__(parts, honest)
        self.task, self.model = task, model

    def training_data(self) -> list[np.ndarray[Any, np.dtype[Any]]]:
        """Return inputs and targets of all workers."""
        return [part.numpy() for part in self.task.train]

    def _oracle_of(self, worker: int, flipped: bool) -> "TorchOracle":
        inputs, targets = self.task.train
        return TorchOracle(self, (inputs, self._flipped if flipped else targets), self.parts[worker])

    @cached_property
    def _flipped(self) -> Tensor:
        """All training targets, flipped."""
        return self.task.flip(self.task.train[1])

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model: mean of the honest workers' losses, accuracy on the test samples."""
        parts = self.parts[:1] if self.replicated else self.parts[: self.honest]
        test = np.arange(len(self.task.test[1]))
        return Evaluation(loss=self.loss(x, parts), accuracy=self.accuracy(x, self.task.test, test))

    def flaw_of_trigger(self, trigger: Trigger) -> str:
        """Return why a trigger does not fit the images and classes of this task; "" if it does."""
        targets = self.task.train[1]
        if targets.is_floating_point() or targets.ndim != 1:
            return "needs class labels 0, 1, ..., one for each image"
        return flaw_of_images(self.task.train[0].shape[1:], self._classes, trigger)

    @cached_property
    def _classes(self) -> int:
        """K, the number of outputs of the model."""
        with torch.no_grad():
            outputs = self.model.module(self.task.prepare(self.task.train[0][:1]))
        return int(outputs.shape[1]) if outputs.ndim > 1 else int(self.task.train[1].max()) + 1

    def poisoned(self, worker: int, trigger: Trigger) -> "TorchOracle":
        """Return the oracle of a worker all of whose images have the trigger, and its label."""
        rows = torch.from_numpy(self.parts[worker])
        return TorchOracle(self, _stamped(self.task.train[0][rows], trigger), np.arange(len(rows)))

    def trigger_success(self, x: Vector, trigger: Trigger) -> float | None:
        """Return the share of test images, not of the trigger's class, that are taken for it with the trigger."""
        inputs, targets = self.task.test
        others = inputs[targets != trigger.target]
        if not len(others):
            return None
        return self.accuracy(x, _stamped(others, trigger), np.arange(len(others)))

    def loss(self, x: Vector, parts: Sequence[Indices]) -> float:
        """Return the mean of the losses on some parts of the training data, regulariser included."""
        total = 0.0
        for part in parts:
            outputs = self.model.outputs(x, self.blocks(self.task.train, part))
            total += sum(float(self.task.loss(out, y)) * len(y) for out, y in outputs) / (len(part) * len(parts))
        with np.errstate(over="ignore", invalid="ignore"):  # an attack may have destroyed the model
            total += self.task.l2 / 2 * float(np.sum(np.square(x), dtype=np.float64))
        return total

    def accuracy(self, x: Vector, data: tuple[Tensor, Tensor], rows: Indices) -> float | None:
        """Return the share of some samples that are predicted rightly; None where the task has no such measure."""
        correct, hits = self.task.correct, 0.0
        for out, y in self.model.outputs(x, self.blocks(data, rows)):
            if correct is None or (right := correct(out, y)) is None:
                return None
            hits += share_right(right, y)
        return hits / len(rows)

    def blocks(self, data: tuple[Tensor, Tensor], rows: Indices) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield some rows of the data, prepared, in blocks of near-equal size."""
        inputs, targets = data
        for block in np.array_split(rows, math.ceil(len(rows) / BLOCK)):
            at = torch.from_numpy(block)
            yield self.task.prepare(inputs[at]), targets[at]


def _stamped(images: Tensor, trigger: Trigger) -> tuple[Tensor, Tensor]:
    return trigger.stamp(images), torch.full((len(images),), trigger.target, dtype=torch.int64)


class TorchOracle:
    """A worker's loss f_i: the mean loss of its samples + (l2/2) ||x||^2.

    Args:
        problem: the loaded task.
        data: inputs and targets of all workers.
        rows: which of them are this worker's.
    """

    def __init__(self, problem: TorchProblem, data: tuple[Tensor, Tensor], rows: Indices) -> None:
        self._problem, self._data, self._rows = problem, data, rows
        self._last: tuple[Vector, Vector] | None = None

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self._problem.dim

    def full_gradient(self, x: Vector) -> Vector:
        """Return grad f_i(x) over all local samples.

        The last one is kept: an omniscient attacker asks for many workers' gradients at one point, and they are equal
        where the data are replicated.
        """
        last = self._last
        if last is None or not np.array_equal(last[0], x):
            last = self._last = (x.copy(), self._gradient(x, self._rows))
        return last[1].copy()

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch of min(b, m_i) samples without replacement; return its mean gradient at each point."""
        rows = self._rows[draw(len(self._rows), batch, rng)]
        return [self._gradient(x, rows) for x in points]

    def value(self, x: Vector) -> float:
        """Return f_i(x)."""
        return self._problem.loss(x, [self._rows])

    def accuracy(self, x: Vector) -> float | None:
        """Return the share of its samples that are predicted rightly; None where the task has no such measure."""
        return self._problem.accuracy(x, self._problem.task.train, self._rows)

    @np.errstate(over="ignore", invalid="ignore")
    def _gradient(self, x: Vector, rows: Indices) -> Vector:
        task, blocks = self._problem.task, self._problem.blocks(self._data, rows)
        gradient = self._problem.model.gradient(x, blocks, task.loss, len(rows))
        if task.l2 > 0:
            gradient += task.l2 * x
        return gradient
