"""Calls the user's code of a task on trial, and turns whatever it raises into one line."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.text import kind_and_line
from tasks.contract import Problem, Setting, TaskError, TaskSpec


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
    """Calls the user's code, and turns whatever it raises into one line.

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
        """Within: whatever is raised becomes a TaskError of one line.

        Args:
            what: what is being done.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            fault = getattr(self._spec, "fault", None)
            if fault is not None:
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


@contextmanager
def generators_restored() -> Iterator[None]:
    """Within: the global generators of Python, NumPy and torch may change; their states are restored."""
    python, numpy = random.getstate(), np.random.get_state()  # users' code may draw from it
    torch: Any = sys.modules.get("torch")
    state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # as above
        if torch is not None:
            torch.set_rng_state(state)


def _disturb_generators() -> None:
    """Give the global generators a fresh seed, so that data which depend on them differ between loads."""
    seed = int(np.random.default_rng().integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # what users' code may draw from
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
