"""A torch task whose parties each have data of their own: one module, and the data of those that this process holds.

A client loads its own folder and nothing else; the server loads no training data, and a test set where it has one. What
a party's data give is the same as under a partition of shared data with the same rows, bit for bit. Imports torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks.backdoor import Trigger
from tasks.contract import Setting, TaskError
from tasks.norm_stats import NormSource
from tasks.partition import check_root, kept_back
from tasks.samples import Samples, arrays_of, count, taken, targets_of
from tasks.torch_model import STATISTICS_BATCHES, OnModule, TorchOracle, TorchProblem, TorchTask, built, labels_of

NO_DATA = "has no training data: each client has its own"


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnDataTask:
    """What makes a torch problem whose parties have their own data.

    Args:
        model: builds the module; called once, under a seed of the run.
        local: returns the data of a party, given its folder; called at clients only.
        test: returns the server's test set, given its folder or None; called at the server only. None for no test set,
            here or as what it returns.
        task: makes the rest of the task from training data and test data.
        root: returns the server's own training data, given its folder or None; called at the server only. Of them come
            the running statistics of batch norm, and the server's own row. None for none.
        flips: the task has its own way to flip targets.
        test_share: the part of a party's rows that it keeps back to measure models.
        dtype: of the model.
        norm_source: where the running statistics of batch norm come from, see ``tasks/norm_stats.py``; None for the
            server's own training data where it has some, else for what clients answer.
    """

    model: Callable[[], nn.Module]
    local: Callable[[Path], Samples]
    test: Callable[[Path | None], Samples | None] | None
    task: Callable[[Samples, Samples], TorchTask]
    root: Callable[[Path | None], Samples | None] | None = None
    flips: bool = False
    test_share: float = 0.0
    dtype: str = "float32"
    norm_source: NormSource | None = None

    def load(self, setting: Setting) -> "OwnDataProblem":
        """Build the model, and load the data that this process has.

        Raises:
            TaskError: the data or the model cannot be used.
        """
        return OwnDataProblem(self, setting)


class OwnDataProblem(OnModule):
    """A loaded task with own data.

    Args:
        task: data, model and loss.
        setting: which party this process is, and its folders.
    """

    optimum = None
    smoothness = None

    def __init__(self, task: OwnDataTask, setting: Setting) -> None:
        self._task, self._setting = task, setting
        self._parts = cache(self._load)
        at_server = setting.party == "server"
        test = task.test(setting.data_dir) if at_server and task.test is not None else None
        # Before anybody connects: what is wrong with the data is then one line at the party that has them.
        loaded = [] if at_server else [self._parts(folder) for folder in self._folders()]
        sample = test if test is not None else loaded[0][0] if loaded else None
        inputs = None if sample is None else task.task(sample, sample).first_of(sample)
        self.model = built(task.model, inputs, task.dtype, setting.seed)
        # Its test data are nobody's reference: it measures with what it is given, and nothing else.
        self._measured = None if test is None else self._problem(test, test, norm_source="aggregate")
        self._local = cache(lambda folder: self._problem(self._parts(folder)[0], self._parts(folder)[0]))
        self._kept = cache(self._kept_problem)
        self._root = self._root_problem(test) if at_server and (setting.root or self.model.norm_stats.size) else None
        for folder in [] if at_server else self._folders():
            self._local(folder).check_batches()

    def _root_problem(self, test: Samples | None) -> TorchProblem | None:
        """Return the problem on the server's own training data; None where it has none.

        Raises:
            TaskError: the model needs them and it has none; or they are for a rule, and some of them are test data.
        """
        root = None if self._task.root is None else self._task.root(self._setting.data_dir)
        if root is not None and test is not None and self._setting.root:
            check_root(arrays_of(root), arrays_of(test))
        if root is None and (self._task.norm_source != "reference" or not self.model.norm_stats.size):
            return None
        if root is None:
            layer = next(iter(self.model.norm_stats.layers))
            needs = f'norm_stats = "reference": the server computes the running statistics of layer "{layer}"'
            fix = 'give them by root_data(folder), or use "aggregate", "local", GroupNorm or LayerNorm'
            raise TaskError(f"{needs} from training data of its own; {fix}")
        problem = self._problem(root, root)
        problem.check_batches()
        return problem

    def _folders(self) -> list[Path]:
        given = dict.fromkeys(self._setting.folders.values())
        return list(given) or [self._setting.folder_of(0)]

    def _load(self, folder: Path) -> tuple[Samples, Samples | None]:
        """Return what a party trains on, and what it keeps back."""
        samples = self._task.local(folder)
        targets = targets_of(samples)
        labelled = targets is not None and not targets.is_floating_point()
        labels = labels_of(targets) if targets is not None and labelled else np.zeros(count(samples))
        split = kept_back(labels, self._task.test_share, self._setting.seed)
        rows, kept = (torch.from_numpy(part) for part in split)
        return (taken(samples, rows), taken(samples, kept)) if len(kept) else (samples, None)

    def _kept_problem(self, folder: Path) -> TorchProblem:
        """Return the problem that a party measures models on."""
        _, kept = self._parts(folder)
        return self._local(folder) if kept is None else self._problem(kept, kept)

    def _problem(self, train: Samples, test: Samples, norm_source: NormSource = "reference") -> TorchProblem:
        task, targets = replace(self._task.task(train, test), norm_source=norm_source), targets_of(train)
        if not (self._task.flips or targets is None or targets.is_floating_point()):
            task = replace(task, flip=self._flip)
        batch, seed = self._setting.batch, self._setting.seed
        return TorchProblem(task, self.model, [np.arange(count(train))], 1, batch=batch, seed=seed)

    @torch.no_grad()
    def _flip(self, targets: Tensor) -> Tensor:
        """Flip class labels y -> K-1 - y, with K the outputs of the model: a party may lack the last class."""
        task = self._local(self._folders()[0]).task
        inputs = task.first_of(task.train)
        if inputs is None or task.batch_loss is not None:
            raise TaskError("label flipping needs the task's own method flip(targets) where its loss takes the module")
        with self.model.evaluating(self.model.initial, None) as module:
            (sent,) = self.model.place.moved([inputs])
            flipped: Tensor = module(sent).shape[1] - 1 - targets
        return flipped

    @property
    def samples(self) -> int:
        """m of the first party that this process holds; 0 at the server."""
        return 0 if self._setting.party == "server" else count(self._parts(self._folders()[0])[0])

    @property
    def has_test_data(self) -> bool:
        """Whether this is a server with a test set."""
        return self._measured is not None

    @property
    def has_root_data(self) -> bool:
        """Whether this is a server with training data of its own."""
        return self._root is not None

    def root(self) -> TorchOracle:
        """Return the gradients of the server's own training data.

        Raises:
            TaskError: it has none.
        """
        if self._root is None:
            raise TaskError("root_data() gives no training data of the server's")
        return self._root.oracle(0)

    def oracle(self, worker: int, *, flipped: bool = False) -> TorchOracle:
        """Return the gradients of a party's loss.

        Raises:
            TaskError: at the server.
        """
        return self.of_party(worker).oracle(0, flipped=flipped)

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model on the server's test set.

        Raises:
            TaskError: there is none.
        """
        if self._measured is None:
            raise TaskError('test_data() gives no test set; use [evaluation] by = "clients"')
        self._measured.set_norm_stats(self.norm_stats(x))
        return self._measured.evaluate(x)

    def flaw_of_trigger(self, trigger: Trigger) -> str:
        """Return why a trigger does not fit the images that this process has; "" if it does, or has none."""
        held = self._measured
        if self._setting.party != "server":
            held = self._local(self._folders()[0])
        return "" if held is None else held.flaw_of_trigger(trigger)

    def poisoned(self, worker: int, trigger: Trigger) -> TorchOracle:
        """Return the oracle of a party all of whose images have the trigger, and its label."""
        return self.of_party(worker).poisoned(0, trigger)

    def trigger_success(self, x: Vector, trigger: Trigger) -> float | None:
        """Return the share of the server's test images that are taken for the trigger's class; see ``TorchProblem``."""
        return None if self._measured is None else self._measured.trigger_success(x, trigger)

    def count(self, worker: int) -> int:
        """Return m_i, the training samples of a party."""
        return len(self.of_party(worker).parts[0])

    def kept_back(self, worker: int) -> int:
        """Return how many samples a party measures models on."""
        return len(self._kept(self._setting.folder_of(worker)).parts[0])

    def measure(self, worker: int, x: Vector) -> Evaluation:
        """Measure the model on what a party kept back; on its training data where it kept nothing."""
        folder = self._setting.folder_of(worker)
        problem = self._kept(folder)
        problem.set_norm_stats(self._local(folder).norm_stats(x) if self._given is None else self._given)
        try:
            return problem.evaluate(x)
        finally:
            problem.set_norm_stats(None)  # it may be the one on the training data, whose own depend on the model

    @property
    def norm_source(self) -> NormSource | None:
        """Where the model's running statistics come from; None where it has none, or the config leaves it to the
        server and this is a client.
        """
        if not self.model.norm_stats.size:
            return None
        if self._task.norm_source is None and self._setting.party == "server":
            return "aggregate" if self._root is None else "reference"
        return self._task.norm_source

    def norm_stats(self, x: Vector) -> Vector | None:
        """Return the running statistics that the model is measured with at x; None where it has none.

        Before any were set, the server computes them from its own training data if it is their source, and a client
        from its own.
        """
        if self._given is not None or not self.model.norm_stats.size:
            return self._given
        if self._setting.party == "server":
            return None if self._root is None or self.norm_source != "reference" else self._root.norm_stats(x)
        return self._local(self._folders()[0]).norm_stats(x)

    def batch_rows(self, worker: int) -> int:
        """Return how many rows each batch has that a party's statistics are computed from: b, or all if fewer."""
        return self.of_party(worker).batch_rows(0)

    def batch_statistics(self, worker: int, x: Vector, round_: int) -> Vector:
        """Return the batch statistics at x of a party's own rows; see ``TorchProblem``."""
        party, rng = self.of_party(worker), stream(self._setting.seed, Role.NORM_STATS, worker, round_)
        return party.stats_on(party.parts[0], x, rng, STATISTICS_BATCHES)

    def remarks(self) -> Iterator[str]:
        """Yield what deserves a second thought about this model and its batches, one line each."""
        server = self._setting.party == "server"
        parties = [] if server else [self._local(folder) for folder in self._folders()]
        yield from parties[0].remarks_on_samples() if parties else ()
        sizes = [len(party.parts[0]) for party in parties]
        yield from self.remarks_on(self._setting.batch, sizes)

    def own_data(self, worker: int) -> list[list[np.ndarray[Any, np.dtype[Any]]]]:
        """Return inputs and targets of what a party trains on, and of what it keeps back if that is anything."""
        return [arrays_of(part) for part in self._parts(self._setting.folder_of(worker)) if part is not None]

    def of_party(self, worker: int) -> TorchProblem:
        """Return the problem of one party by itself.

        Raises:
            TaskError: at the server.
        """
        if self._setting.party == "server":
            raise TaskError(f'partition = "own": the server {NO_DATA}')
        return self._local(self._setting.folder_of(worker))
