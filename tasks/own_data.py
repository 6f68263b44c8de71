"""A torch task whose parties each have data of their own: one module, and the data of those that this process holds.

A client loads its own folder and nothing else; the server loads no training data, and a test set where it has one. What
a party's data give is the same as under a partition of shared data with the same rows, bit for bit. Imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.method import Evaluation, Vector
from tasks.backdoor import Trigger
from tasks.contract import Setting, TaskError
from tasks.partition import check_root, kept_back
from tasks.torch_model import OnModule, TorchOracle, TorchProblem, TorchTask, built, labels_of

Pair = tuple[Tensor, Tensor]
"""Inputs and targets, one sample a row."""
NO_DATA = "has no training data: each client has its own"


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnDataTask:
    """What makes a torch problem whose parties have their own data.

    Args:
        model: builds the module; called once, under a seed of the run.
        local: returns the data of a party, given its folder; called at clients only.
        test: returns the server's test set, given its folder or None; called at the server only. None for no test set,
            here or as what it returns.
        root: returns the server's own training data, given its folder or None; called at the server only. None for
            none.
        task: makes the rest of the task from training data and test data.
        flips: the task has its own way to flip targets.
        test_share: the part of a party's rows that it keeps back to measure models.
        dtype: of the model.
    """

    model: Callable[[], nn.Module]
    local: Callable[[Path], Pair]
    test: Callable[[Path | None], Pair | None] | None
    task: Callable[[Pair, Pair], TorchTask]
    root: Callable[[Path | None], Pair | None] | None = None
    flips: bool = False
    test_share: float = 0.0
    dtype: str = "float32"

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
        self.model = built(task.model, None if sample is None else sample[0][:1], task.dtype, setting.seed)
        self._measured = None if test is None else self._problem(test, test)
        self._root = self._root_problem(test) if at_server and setting.root else None
        self._local = cache(lambda folder: self._problem(self._parts(folder)[0], self._parts(folder)[0]))
        self._kept = cache(self._kept_problem)

    def _root_problem(self, test: Pair | None) -> TorchProblem | None:
        """Return the problem on the server's own training data; None where it has none.

        Raises:
            TaskError: some of them are test data.
        """
        root = None if self._task.root is None else self._task.root(self._setting.data_dir)
        if root is not None and test is not None:
            check_root([part.numpy() for part in root], [part.numpy() for part in test])
        return None if root is None else self._problem(root, root)

    def _folders(self) -> list[Path]:
        given = dict.fromkeys(self._setting.folders.values())
        return list(given) or [self._setting.folder_of(0)]

    def _load(self, folder: Path) -> tuple[Pair, Pair | None]:
        """Return what a party trains on, and what it keeps back."""
        inputs, targets = self._task.local(folder)
        labels = np.zeros(len(targets)) if targets.is_floating_point() else labels_of(targets)
        split = kept_back(labels, self._task.test_share, self._setting.seed)
        rows, kept = (torch.from_numpy(part) for part in split)
        if not len(kept):
            return (inputs, targets), None
        return (inputs[rows], targets[rows]), (inputs[kept], targets[kept])

    def _kept_problem(self, folder: Path) -> TorchProblem:
        """Return the problem that a party measures models on."""
        _, kept = self._parts(folder)
        return self._local(folder) if kept is None else self._problem(kept, kept)

    def _problem(self, train: Pair, test: Pair) -> TorchProblem:
        task = self._task.task(train, test)
        if not (self._task.flips or train[1].is_floating_point()):
            task = replace(task, flip=self._flip)
        return TorchProblem(task, self.model, [np.arange(len(train[1]))], 1)

    @torch.no_grad()
    def _flip(self, targets: Tensor) -> Tensor:
        """Flip class labels y -> K-1 - y, with K the outputs of the model: a party may lack the last class."""
        inputs = self._parts(self._folders()[0])[0][0]
        outputs = self.model.module(inputs[:1])
        flipped: Tensor = outputs.shape[1] - 1 - targets
        return flipped

    @property
    def samples(self) -> int:
        """m of the first party that this process holds; 0 at the server."""
        return 0 if self._setting.party == "server" else len(self._parts(self._folders()[0])[0][1])

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
        return self._kept(self._setting.folder_of(worker)).evaluate(x)

    def own_data(self, worker: int) -> list[list[np.ndarray[Any, np.dtype[Any]]]]:
        """Return inputs and targets of what a party trains on, and of what it keeps back if that is anything."""
        return [[array.numpy() for array in part] for part in self._parts(self._setting.folder_of(worker)) if part]

    def of_party(self, worker: int) -> TorchProblem:
        """Return the problem of one party by itself.

        Raises:
            TaskError: at the server.
        """
        if self._setting.party == "server":
            raise TaskError(f'partition = "own": the server {NO_DATA}')
        return self._local(self._setting.folder_of(worker))
