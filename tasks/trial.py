"""Calls the user's code of a task on trial, and turns everything that it raises into one line."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.text import kind_and_line
from tasks.contract import Problem, Setting, TaskError, TaskSpec
from tasks.threads import GENERATORS

SEEDED = "every process must get the same: draw and shuffle with fixed seeds, such as np.random.default_rng(0)"


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What an experiment needs of its task.

    Args:
        workers: the workers whose gradients are needed.
        batches: sizes of minibatches; 0 for full local gradients.
        flipped: the workers whose gradients on flipped labels are needed, for attackers.
        evaluates: whether this process measures the model.
    """

    workers: Sequence[int]
    batches: Sequence[int] = (0,)
    flipped: Sequence[int] = ()
    evaluates: bool = True


class Trial:
    """Calls the user's code, and turns everything that it raises into one line.

    Args:
        spec: of the task.
        setting: of the load.
    """

    def __init__(self, spec: TaskSpec, setting: Setting) -> None:
        self._spec, self._setting = spec, setting

    def load(self) -> Problem:
        """Return a fresh instance, loaded with other generators than the one before."""
        _disturb_generators()
        modules = dict(sys.modules)
        try:
            with self.reporting("load()"):
                return self._spec.load(self._setting)
        finally:
            for name, module in modules.items():  # a module of the user's that was run again
                if sys.modules.get(name) is not module:
                    sys.modules[name] = module

    @contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Within: everything that is raised becomes a TaskError of one line.

        Args:
            what: what is being done.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            if (fault := getattr(self._spec, "fault", None)) is not None:
                raise fault(error, self._setting, what) from error
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"{what}: {kind_and_line(error)}") from error

    def refuse(self, message: str) -> None:
        """Refuse the task.

        Raises:
            TaskError: always.
        """
        with self.reporting(""):
            raise TaskError(message)


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most that many, the first and the last among them, the others evenly between."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(np.int64)]


@contextmanager
def generators_restored() -> Iterator[None]:
    """Within: the global generators of Python, NumPy and torch may change; their states are restored."""
    torch: Any = sys.modules.get("torch")
    with GENERATORS, nullcontext() if torch is None else torch.random.fork_rng(devices=[]):
        python, numpy = random.getstate(), np.random.get_state()  # users' code may draw from it
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # as above


def _disturb_generators() -> None:
    """Give the global generators a fresh seed, so that data which depend on them differ between loads."""
    seed = int(np.random.default_rng().integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # what users' code may draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
