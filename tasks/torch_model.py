"""Runs a torch module as a problem on flat NumPy vectors: the base of image and custom tasks.

Gradients are those of the module in training, with all that it draws at random fixed by one seed for all points of a
call; measures are those of the module in evaluation. Importing it imports torch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foundation.text import first_line
from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks import compute
from tasks.backdoor import Trigger, flaw_of_images
from tasks.contract import Setting, TaskError
from tasks.flat_module import FlatModule
from tasks.measures import highest_score, is_one_hot, share_right
from tasks.modules import completed, tied, untrained
from tasks.norm_stats import NormSource
from tasks.partition import Indices, Partitioned, draw, share_out
from tasks.pipeline import Fetched
from tasks.samples import TARGETS, Samples, arrays_of, as_array, count, mapped, taken, targets_of, with_targets
from tasks.threads import GENERATORS, one_thread

BLOCK = 250
"""Samples that are pushed through the model at once; bounds the memory of a full gradient. With 1000 the activations of
a small CNN on MNIST no longer fit into the cache, and a full gradient takes twice as long."""

REFERENCE_BATCHES = 50
"""Batches of training data that the running statistics of batch norm are averaged over."""
STATISTICS_BATCHES = 8
"""Batches of a worker's own data that its statistics are averaged over, where the server asks for them."""
_REMARKS: Mapping[NormSource | None, str] = {
    "local": 'norm_stats = "local": running statistics stay at the clients; model.safetensors of the server lacks them',
    "aggregate": 'norm_stats = "aggregate": each client sends mean and variance of its batches, 2 numbers a channel,'
    " before a model is measured or saved; at least 2 byzantine + 1 must answer",
}
"""By where running statistics come from."""

NO_TARGETS = "the Dataset has no attribute targets; give it one with the target of each sample, in their order"

_ESTIMATES = "full gradients are estimates: theorems on exact ones do not apply"

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
        train: inputs and targets, one sample a row; with ``batch_loss`` any samples, see ``tasks/samples.py``.
        test: the same for the accuracy.
        loss: mean loss of some samples.
        correct: which of some samples are predicted rightly, see ``tasks/measures.py``; None, or returning None, for no
            accuracy.
        batch_loss: mean loss of a batch, given the module and the batch; in place of ``loss``.
        batch_correct: which samples of a batch are predicted rightly, given the same; in place of ``correct``.
        flip: the targets that an attacker pretends to have, from the true ones.
        prepare: applied to the inputs of each block, so that they can be kept small (bytes of pixels); without
            ``batch_loss``.
        augment: changes the inputs of each batch of a gradient at random, before ``prepare``; draws from the generator
            that it is given, which begins anew at each point of a call; without ``batch_loss``. None for nothing.
        l2: weight of the regulariser (l2/2) ||x||^2.
        dtype: of the model: ``"float32"``, ``"float64"``, or one of ``HALF``, whose x and gradients are float32.
        partition: see ``tasks/partition.py``; by the targets.
        norm_source: where the running statistics of batch norm come from, see ``tasks/norm_stats.py``.
    """

    model: Callable[[], nn.Module]
    train: Samples
    test: Samples
    loss: Loss = nn.functional.cross_entropy
    correct: Callable[[Tensor, Tensor], object] | None = highest_score
    batch_loss: Callable[[nn.Module, Samples], Tensor] | None = None
    batch_correct: Callable[[nn.Module, Samples], object] | None = None
    flip: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = unchanged
    augment: Callable[[Tensor, np.random.Generator], Tensor] | None = None
    l2: float = 0.0
    dtype: str = "float32"
    partition: str = "iid"
    norm_source: NormSource = "reference"

    def load(self, setting: Setting) -> "TorchProblem":
        """Build the model and split the data.

        Raises:
            TaskError: the model has no parameters; more workers than samples; the batches are too small for the model.
        """
        model = built(self.model, self.first_of(self.train), self.dtype, setting.seed)
        labels = labels_for(self.partition, self.train)
        parts, kept = share_out(self.partition, labels, setting)
        problem = TorchProblem(self, model, parts, setting.honest, batch=setting.batch, seed=setting.seed)
        problem.check_batches()
        return problem.keeping(kept)

    def batch(self, samples: Samples, rows: Indices, rng: np.random.Generator | None = None) -> Samples:
        """Return some rows of the samples, prepared; for a gradient, with a generator, augmented too."""
        batch = taken(samples, torch.from_numpy(rows))
        if self.batch_loss is not None:
            return batch
        inputs = self.augment(batch[0], rng) if self.augment is not None and rng is not None else batch[0]
        return self.prepare(inputs), batch[1]

    def batches(
        self, samples: Samples, parts: Sequence[Indices], seed: int = 0, rng: np.random.Generator | None = None
    ) -> Iterator[Samples]:
        """Yield a batch of each part of the samples, prepared.

        Args:
            samples: of which ``parts`` has row numbers.
            parts: rows of each batch.
            seed: of the random transforms of samples that are fetched by index.
            rng: for ``augment``; None for inputs as they are.
        """
        if isinstance(samples, Fetched):
            return samples.batches(parts, seed)
        return (self.batch(samples, rows, rng) for rows in parts)

    def first_of(self, samples: Samples) -> Tensor | None:
        """Return the inputs of the first sample, for a module that takes one tensor; else None."""
        samples = samples.shown if isinstance(samples, Fetched) else samples
        inputs = samples if isinstance(samples, Tensor) else samples[0] if isinstance(samples, tuple | list) else None
        return self.prepare(inputs[:1]) if isinstance(inputs, Tensor) else None

    def objective(self, module: nn.Module, batch: Samples) -> Tensor:
        """Return the mean loss of a batch."""
        if self.batch_loss is not None:
            return self.batch_loss(module, batch)
        return self.loss(widened(module(batch[0])), batch[1])

    def right(self, module: nn.Module, batch: Samples) -> object:
        """Return which samples of a batch are predicted rightly; None for no accuracy."""
        if self.batch_correct is not None:
            return self.batch_correct(module, batch)
        if self.correct is not None and not isinstance(batch, tuple | list):
            kind = type(batch).__name__
            raise TaskError(
                f"correct(output, target) needs pairs (inputs, targets), not {kind}; write correct(module, batch)"
            )
        if self.correct is None:
            return None
        output = widened(module(batch[0]))
        # On the CPU, where measures may use float64, and tensors of their own.
        return self.correct(output.cpu() if isinstance(output, Tensor) else output, mapped(batch[1], Tensor.cpu))

    def flipped(self, samples: Samples) -> Samples:
        """Return the samples with flipped targets.

        Raises:
            TaskError: it does not show which tensors are the targets.
        """
        targets = targets_of(samples)
        if targets is None and isinstance(samples, Fetched):
            raise TaskError(f"label flipping: {NO_TARGETS}")
        if targets is None:
            keys = ", ".join(f'"{key}"' for key in TARGETS)
            raise TaskError(f"label flipping needs targets: the last of a tuple, or in a dict one of {keys}")
        return with_targets(samples, self.flip(targets))


def widened(output: Any) -> Any:
    """Return an output of a half type as float32, in which losses keep their digits; any other as it is."""
    return output.float() if isinstance(output, Tensor) and output.dtype in _HALF else output


_HALF = (torch.float16, torch.bfloat16)


def built(model: Callable[[], nn.Module], inputs: Tensor | None, dtype: str, seed: int) -> "FlatModule":
    """Build the module of a run; the same in every process.

    Args:
        model: builds it.
        inputs: of one sample, prepared; None where there is none.
        dtype: of its parameters.
        seed: the run's.

    Raises:
        TaskError: it has no parameters that can be trained, or it needs a sample to be built.
        ConfigError: it cannot compute where this process computes.
    """
    torch.set_num_threads(1)
    one_thread()
    with GENERATORS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, Role.INITIAL).integers(2**63)))
        return FlatModule(completed(model(), inputs, dtype), dtype, compute.current())


def labels_of(targets: Tensor) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """Return one sortable label a sample: the class of one-hot rows, else the first of several targets."""
    one = targets.argmax(dim=1) if is_one_hot(targets) else targets.reshape(len(targets), -1)[:, 0]
    labels: np.ndarray[tuple[int], np.dtype[Any]] = as_array(one)
    return labels


def labels_for(partition: str, samples: Samples) -> np.ndarray[tuple[int], np.dtype[Any]]:
    """Return the labels that samples are split by; zeros for a partition that looks at none.

    Raises:
        TaskError: the partition needs them, and the samples have none.
    """
    targets = targets_of(samples)
    if targets is not None:
        return labels_of(targets)
    if partition not in ("iid", "replicated"):
        if isinstance(samples, Fetched):
            raise TaskError(f'partition = "{partition}": {NO_TARGETS}, or use "iid"')
        keys = ", ".join(f'"{key}"' for key in TARGETS)
        where = f"the last of a tuple, or in a dict one of {keys}"
        raise TaskError(f'partition = "{partition}": the samples have no targets ({where}); add them, or use "iid"')
    return np.zeros(count(samples))


class OnModule(ABC):
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

    @property
    def computes_on(self) -> str:
        """The device that it computes on, and the precision, for logs."""
        return str(self.model.place)

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

    _given: Vector | None = None

    @property
    @abstractmethod
    def norm_source(self) -> NormSource | None:
        """Where the model's running statistics come from; None where it has none, or this process cannot know."""

    @abstractmethod
    def norm_stats(self, x: Vector) -> Vector | None:
        """Return the running statistics that the model is measured with at x; None where it has none."""

    @property
    def answers_statistics(self) -> bool:
        """Whether a client answers the server's questions for batch statistics."""
        return bool(self.model.norm_stats.size) and self.norm_source in ("aggregate", None)

    @property
    def variances(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the running statistics are variances; the others are means."""
        return self.model.norm_stats.variances

    def set_norm_stats(self, stats: Vector | None) -> None:
        """Measure and write models with these running statistics from now on; None for those of ``norm_stats``.

        Where each worker has its own, it keeps these.

        Raises:
            TaskError: they do not fit the model.
        """
        size = self.model.norm_stats.size
        if stats is not None and stats.shape != (size,):
            raise TaskError(f"running statistics of shape {stats.shape}; the model has ({size},)")
        self._given = None if self.norm_source == "local" else stats

    def norm_buffers(
        self, x: Vector, stats: Vector | None = None
    ) -> Mapping[str, np.ndarray[Any, np.dtype[Any]] | None]:
        """Return the running statistics of the model at x by their names in a state dict.

        None for each that this process does not know, as they never leave the clients: a file of the model lacks it.
        Nothing where they are as ``model()`` made them, since no clients have answered yet.

        Args:
            x: shape (d,).
            stats: these statistics; None for those that the model is measured with.
        """
        stats, layers = self.norm_stats(x) if stats is None else stats, self.model.norm_stats
        if stats is not None:
            return layers.by_name(stats)
        return dict.fromkeys(layers.by_name(np.zeros(layers.size))) if self.norm_source == "local" else {}

    def remarks_on(self, batch: int, sizes: Sequence[int]) -> Iterator[str]:
        """Yield what dropout and batch norm change, one line each; nothing where the model has none.

        Args:
            batch: b; 0 for full gradients alone.
            sizes: how many samples each worker that is known has.
        """
        if drops := [name for name, layer in self.model.module.named_modules() if _drops(layer)]:
            exact = "they are estimates, and theorems on exact ones do not apply"
            yield f'dropout (layer "{drops[0]}"): full gradients draw masks too, so {exact}'
        if remark := _REMARKS.get(self.norm_source):
            yield remark
        if not self.model.norm_stats.by_batch:
            return
        estimates = f"full gradients are estimates, in batches of {batch or BLOCK}: theorems on exact ones do not apply"
        yield f"batch norm: losses depend on the batch, so {estimates}; with GroupNorm or LayerNorm they do"
        if fewer := [size for size in sizes if size < batch]:
            who = (
                f"{len(fewer)} of {len(sizes)} workers have fewer than b = {batch} samples (the smallest {min(fewer)})"
            )
            yield f"batch norm: {who}, so theirs are losses of smaller batches; lower strategy.batch"


def _drops(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0


class TorchProblem(OnModule, Partitioned["TorchOracle"]):
    """A loaded torch task.

    Args:
        task: data, loss and hyper-parameters.
        model: the module, shared by all oracles.
        parts: the rows of each worker.
        honest: |G|; workers from that number on are no part of the objective.
        batch: b, the size of minibatches; 0 where only full gradients are computed.
        seed: the run's.
    """

    def __init__(
        self,
        task: TorchTask,
        model: FlatModule,
        parts: Sequence[Indices],
        honest: int,
        *,
        batch: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(parts, honest)
        self.task, self.model, self.batch, self.seed = task, model, batch, seed
        self._reference: tuple[Vector, Vector] | None = None

    @property
    def chunk(self) -> int:
        """How many rows batch norm sees at once in training: b, also in a full gradient."""
        return self.batch or BLOCK

    def check_batches(self) -> None:
        """Refuse a device that model and loss cannot use, and batches of one row where the model needs more.

        Raises:
            TaskError: one line.
        """
        self._check_device()
        if not self.model.norm_stats.by_batch or min(self.chunk, *map(len, self.parts)) > 1:
            return
        row = self.task.batches(self.task.train, [self.parts[0][:1]])
        try:
            self.model.gradient(self.model.initial, row, self.task.objective, 1)
        except ValueError as error:  # as torch says it
            if "more than 1 value per channel" not in str(error):
                raise
            of = "strategy.batch = 1" if self.batch == 1 else "a worker with one sample"
            fix = "use a larger batch, or GroupNorm or LayerNorm"
            raise TaskError(f"{of}: batch norm needs more than one value of each channel in a batch; {fix}") from None

    def _check_device(self) -> None:
        """Try a gradient on a device that is not the CPU, where tensors of the user's may have stayed on the CPU."""
        place, rows = self.model.place, self.parts[0][:2]
        if place.on_cpu or len(rows) < 2:
            return
        try:
            batches = self.task.batches(self.task.train, [rows])
            self.model.gradient(self.model.initial, batches, self.task.objective, 2)
        except RuntimeError as error:
            fix = "make tensors in forward() and loss() on the device of what they are given, or compute on the cpu"
            raise TaskError(f"a gradient on {place} fails ({first_line(error)}); {fix}") from None

    def training_data(self) -> list[np.ndarray[Any, np.dtype[Any]]]:
        """Return inputs and targets of all workers."""
        return arrays_of(self.task.train)

    def _oracle_of(self, worker: int, flipped: bool) -> "TorchOracle":
        return TorchOracle(self, self._flipped if flipped else self.task.train, self.parts[worker])

    @cached_property
    def _flipped(self) -> Samples:
        """All training samples with flipped targets."""
        return self.task.flipped(self.task.train)

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model: mean of the honest workers' losses, accuracy on the test samples."""
        test = np.arange(count(self.task.test))
        return Evaluation(loss=self.loss(x, self._honest_parts()), accuracy=self.accuracy(x, self.task.test, test))

    def _honest_parts(self) -> Sequence[Indices]:
        return self.parts[:1] if self.replicated else self.parts[: self.honest]

    def flaw_of_trigger(self, trigger: Trigger) -> str:
        """Return why a trigger does not fit the images and classes of this task; "" if it does."""
        targets, first = targets_of(self.task.train), self.task.first_of(self.task.train)
        in_memory = not any(isinstance(data, Fetched) for data in (self.task.train, self.task.test))
        if targets is None or first is None or self.task.batch_loss is not None or not in_memory:
            return "needs images and their labels as two tensors, and a loss(output, target)"
        if targets.is_floating_point() or targets.ndim != 1:
            return "needs class labels 0, 1, ..., one for each image"
        return flaw_of_images(first.shape[1:], self._classes, trigger)

    @cached_property
    def _classes(self) -> int:
        """K, the number of outputs of the model."""
        with self.model.evaluating(self.model.initial, self.norm_stats(self.model.initial)) as module:
            (first,) = self.model.place.moved([self.task.first_of(self.task.train)])
            outputs = module(first)
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
        total, objective = 0.0, self.task.objective
        with self.model.evaluating(x, self.norm_stats(x)) as module:
            for part in parts:
                blocks = self.model.place.moved(self.blocks(self.task.train, part))
                losses = sum(float(objective(module, batch)) * count(batch) for batch in blocks)
                total += losses / (len(part) * len(parts))
        with np.errstate(over="ignore", invalid="ignore"):  # an attack may have destroyed the model
            total += self.task.l2 / 2 * float(np.sum(np.square(x), dtype=np.float64))
        return total

    def accuracy(self, x: Vector, data: Samples, rows: Indices) -> float | None:
        """Return the share of some samples that are predicted rightly; None where the task has no such measure."""
        hits = 0.0
        with self.model.evaluating(x, self.norm_stats(x)) as module:
            for batch in self.model.place.moved(self.blocks(data, rows)):
                if (right := self.task.right(module, batch)) is None:
                    return None
                targets = targets_of(batch)
                hits += share_right(right, torch.empty(count(batch)) if targets is None else targets)
        return hits / len(rows)

    def blocks(self, data: Samples, rows: Indices) -> Iterator[Samples]:
        """Yield some rows of the data, prepared, in blocks of near-equal size."""
        return self.task.batches(data, _blocks(rows))

    def chunks(self, rows: Indices, seed: int) -> list[Indices]:
        """Return the batches in which a gradient over some rows is computed.

        With batch norm each has exactly b rows, at random; where the rows do not fill the last, rows of the first are
        in it too. So the gradient of a minibatch and of all rows are estimates of one function: the mean loss of a
        random batch of b rows.

        Args:
            rows: of a worker.
            seed: of the order.
        """
        if not self.model.norm_stats.by_batch:
            return _blocks(rows)
        if len(rows) <= self.chunk:
            return [rows]
        number = -(-len(rows) // self.chunk)
        order = np.random.default_rng(seed).permutation(rows)
        return np.split(np.resize(order, number * self.chunk), number)

    # --- batch norm in evaluation -----------------------------------------------------------------------------------

    def norm_stats(self, x: Vector) -> Vector | None:
        """Return the running statistics that the model is measured with at x; None where it has none here.

        They are the mean of the batch statistics of ``REFERENCE_BATCHES`` batches of the honest workers' training data,
        always the same batches, unless others were set. None where they are the clients' affair and none were set.

        Returns:
            Means and variances, layer by layer, float64, shape (two numbers a channel,).
        """
        if not self.model.norm_stats.size or self._given is not None:
            return self._given
        if self.task.norm_source != "reference":
            return None
        if self._reference is None or not np.array_equal(self._reference[0], x):
            rows = np.unique(np.concatenate(self._honest_parts()))
            self._reference = x.copy(), self.stats_on(rows, x, stream(self.seed, Role.NORM_STATS))
        return self._reference[1]

    @property
    def norm_source(self) -> NormSource | None:
        """Where the model's running statistics come from; None where it has none."""
        return self.task.norm_source if self.model.norm_stats.size else None

    def batch_rows(self, worker: int) -> int:
        """Return how many rows each batch has that a worker's statistics are computed from: b, or all if fewer."""
        return min(self.chunk, len(self.parts[worker]))

    def batch_statistics(self, worker: int, x: Vector, round_: int) -> Vector:
        """Return the mean of the batch statistics at x of ``STATISTICS_BATCHES`` batches of a worker's own rows.

        Args:
            worker: whose rows, and whose random stream.
            x: shape (d,).
            round_: r; other batches in each round, the same for a repeated question.

        Returns:
            Means and variances as ``norm_stats`` has them, float64.
        """
        rng = stream(self.seed, Role.NORM_STATS, worker, round_)
        return self.stats_on(self.parts[worker], x, rng, STATISTICS_BATCHES)

    def stats_on(self, rows: Indices, x: Vector, rng: np.random.Generator, number: int = REFERENCE_BATCHES) -> Vector:
        """Return the mean of the batch statistics at x of some batches of these rows."""
        size = min(self.chunk, len(rows))
        passes = -(-number * size // len(rows))
        order = np.concatenate([rng.permutation(rows) for _ in range(passes)])[: number * size]
        seed = int(rng.integers(2**63))
        batches = self.task.batches(self.task.train, np.split(order, number), seed)
        return self.model.statistics(x, batches, self.task.objective, seed)

    def measure(self, worker: int, x: Vector) -> Evaluation:
        """Measure the model on a worker's part of the training data; local statistics are those of that part."""
        if self.norm_source != "local":
            return super().measure(worker, x)
        before, rng = self._given, stream(self.seed, Role.NORM_STATS, worker)
        self._given = self.stats_on(self.parts[worker], x, rng)
        try:
            return super().measure(worker, x)
        finally:
            self._given = before

    def remarks(self) -> Iterator[str]:
        """Yield what deserves a second thought about this model and its batches, one line each."""
        if self.task.augment is not None:
            yield f"samples are augmented anew in each round, so {_ESTIMATES}"
        yield from self.remarks_on_samples()
        yield from self.remarks_on(self.batch, list(map(len, self._honest_parts())))

    def remarks_on_samples(self) -> Iterator[str]:
        """Yield what it means that samples are fetched by index."""
        train = self.task.train
        if isinstance(train, Fetched) and train.random:
            what = f"{train.source.method}() gives samples with random transforms, drawn anew in each round"
            yield f"{what}, so {_ESTIMATES}"


def _blocks(rows: Indices) -> list[Indices]:
    return np.array_split(rows, math.ceil(len(rows) / BLOCK))


def _stamped(images: Tensor, trigger: Trigger) -> tuple[Tensor, Tensor]:
    return trigger.stamp(images), torch.full((len(images),), trigger.target, dtype=torch.int64)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


class TorchOracle:
    """A worker's loss f_i: the mean loss of its samples + (l2/2) ||x||^2.

    What the model draws at random (dropout) is the same at all points of one call, and drawn afresh for the next.

    Args:
        problem: the loaded task.
        data: samples of all workers.
        rows: which of them are this worker's.
    """

    def __init__(self, problem: TorchProblem, data: Samples, rows: Indices) -> None:
        self._problem, self._data, self._rows = problem, data, rows
        self._last: tuple[Vector, Vector] | None = None
        self._rng = np.random.default_rng(0)
        self._batch = 0

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self._problem.dim

    def begin(self, rng: np.random.Generator) -> None:
        """Draw from this stream from now on: that of a worker and a round."""
        self._rng = rng

    def prepare(self, model: np.random.Generator, worker: np.random.Generator) -> None:
        """Begin to fetch, in other processes, the minibatch that these streams of a later round give.

        Args:
            model: as for ``begin``, of that round.
            worker: as for ``minibatch_gradients``.
        """
        if self._batch and isinstance(self._data, Fetched):
            self._data.prepare(*self._minibatch(self._batch, worker, model))

    def full_gradient(self, x: Vector) -> Vector:
        """Return grad f_i(x) over all local samples.

        The last one is kept, of a model that draws nothing: an omniscient attacker asks for many workers' gradients at
        one point, and they are equal where the data are replicated.
        """
        return self.full_gradients([x])[0]

    def full_gradients(self, points: Sequence[Vector]) -> list[Vector]:
        """Return the gradient over all local samples at each point, of one random function."""
        seed = _seed(self._rng)
        chunks = self._problem.chunks(self._rows, seed)
        return [self._full_gradient(x, chunks, seed) for x in points]

    def _full_gradient(self, x: Vector, chunks: Sequence[Indices], seed: int) -> Vector:
        if (last := self._last) is not None and np.array_equal(last[0], x):
            return last[1].copy()
        gradient, drawn = self._gradient(x, chunks, seed)
        if not (drawn or self._problem.model.norm_stats.by_batch):
            self._last = x.copy(), gradient.copy()
        return gradient

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: np.random.Generator) -> list[Vector]:
        """Draw one minibatch of min(b, m_i) samples without replacement; return its mean gradient at each point."""
        self._batch = batch
        chunks, seed = self._minibatch(batch, rng, self._rng)
        fetched = list(self._batches(chunks, seed)) if isinstance(self._data, Fetched) and len(points) > 1 else None
        return [self._gradient(x, chunks, seed, fetched)[0] for x in points]

    def value(self, x: Vector) -> float:
        """Return f_i(x)."""
        return self._problem.loss(x, [self._rows])

    def accuracy(self, x: Vector) -> float | None:
        """Return the share of its samples that are predicted rightly; None where the task has no such measure."""
        return self._problem.accuracy(x, self._problem.task.train, self._rows)

    def _minibatch(
        self, batch: int, worker: np.random.Generator, model: np.random.Generator
    ) -> tuple[list[Indices], int]:
        seed = _seed(model)
        return self._problem.chunks(self._rows[draw(len(self._rows), batch, worker)], seed), seed

    def _batches(self, chunks: Sequence[Indices], seed: int) -> Iterator[Samples]:
        task = self._problem.task
        # Another generator than that of the order of the chunks.
        rng = None if task.augment is None else np.random.default_rng([seed, 1])
        return task.batches(self._data, chunks, seed, rng)

    @np.errstate(over="ignore", invalid="ignore")
    def _gradient(
        self, x: Vector, chunks: Sequence[Indices], seed: int, fetched: Sequence[Samples] | None = None
    ) -> tuple[Vector, bool]:
        """Return the gradient at a point, and whether it depends on the seed.

        Args:
            x: the point.
            chunks: rows of each batch.
            seed: of all that is drawn at random.
            fetched: the batches, where they are at hand.
        """
        task = self._problem.task
        batches = self._batches(chunks, seed) if fetched is None else fetched
        samples = sum(map(len, chunks))
        gradient, drawn = self._problem.model.gradient(x, batches, task.objective, samples, seed, task.l2)
        return gradient, drawn or task.augment is not None or isinstance(self._data, Fetched)
