"""The contract of a task: a spec (what the config says) that loads into a problem (data in memory, gradients on call).

The spec is a small frozen dataclass and costs nothing to import; loading brings in NumPy data, or torch, only then.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from strategies.method import Evaluation, Oracle, Vector


@dataclass(frozen=True)
class Setting:
    """What a spec needs to know about the federation in order to load.

    Args:
        clients: n, the number of workers, numbered 0 .. n-1.
        byzantine: f; workers n-f .. n-1 are the Byzantine ones where the experiment simulates them. Their data are
            no part of the objective.
        seed: the run's seed; fixes the partition and x^0.
        data_dir: folder that data files are looked up under; None if the user named none.
        config_dir: folder of the config file, that a custom task's path is relative to; None if there is no file.
        party: who loads a task whose parties each have their own data (``partition = "own"``): the server, which has no
            training data and may have a test set in ``data_dir``, or a client, whose data are in ``data_dir``. None
            where all processes have the same data.
        root: how many training samples no worker has, as the server keeps them for a rule that needs its own row; 0 for
            none. The problem then has a method ``root()`` that returns their ``Oracle``. Where parties have their own
            data, any number: the server has data of its own.
        folders: of a process that holds several clients with data of their own: the data folder of each worker.
        batch: b, the size of the workers' minibatches; 0 where they compute full gradients alone, or it is not known.
    """

    clients: int
    byzantine: int = 0
    seed: int = 0
    data_dir: Path | None = None
    config_dir: Path | None = None
    party: Literal["server", "client"] | None = None
    folders: Mapping[int, Path] = field(default_factory=dict, hash=False)
    root: int = 0
    batch: int = 0

    def folder_of(self, worker: int) -> Path:
        """Return the data folder of a worker that has data of its own.

        Raises:
            TaskError: none is named.
        """
        folder = self.folders.get(worker, self.data_dir)
        if folder is None:
            raise TaskError('partition = "own": no data folder is named; name the folder of your own data with --data')
        return folder

    @property
    def honest(self) -> int:
        """The number of honest workers, |G| = n - f."""
        return self.clients - self.byzantine


class Problem(Protocol):
    """A loaded task. Loading the same spec with the same setting gives the same problem, bit for bit, everywhere."""

    @property
    def dim(self) -> int:
        """The number of parameters, d."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the model, the gradients and what travels."""

    @property
    def smoothness(self) -> float | None:
        """L, the Lipschitz constant of grad f, where the task knows it."""

    @property
    def optimum(self) -> float | None:
        """f*, the least value of the objective, where the task knows it."""

    @property
    def samples(self) -> int:
        """m, the number of samples of an honest worker; their mean where workers have different numbers. 0 where it is
        not known, as at a server whose clients have their own data.
        """

    def initial(self) -> Vector:
        """Return x^0, shape (d,)."""

    def oracle(self, worker: int, *, flipped: bool = False) -> Oracle:
        """Return the gradients of one worker's loss; with ``flipped``, on flipped labels (for an attacker)."""

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model: full training objective over the honest workers' data, accuracy."""


class MeasuredByClients(Problem, Protocol):
    """A problem whose model clients can measure, see ``[evaluation] by``."""

    def measure(self, worker: int, x: Vector) -> Evaluation:
        """Measure the model on what a worker has kept back; on its training data where it has kept nothing back."""

    def kept_back(self, worker: int) -> int:
        """Return how many samples ``measure`` uses."""


class TaskSpec(Protocol):
    """One ``[task]`` section of a config."""

    @property
    def kind(self) -> str:
        """Name of the task in configs."""

    def load(self, setting: Setting) -> Problem:
        """Read the data and build the problem.

        Raises:
            TaskError: the data cannot be found or read; the message says what, where it was looked for, and the fix.
        """

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports; a launcher imports them once for many processes."""


class TaskError(Exception):
    """A task that cannot be loaded. The message is one line a user can act on."""


def mean_samples(parts: Sequence[Sized], honest: int) -> int:
    """Return m for the parts of all workers, of which the first ``honest`` count."""
    return max(1, round(sum(len(part) for part in parts[:honest]) / honest))
