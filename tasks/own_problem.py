"""A problem of the user's own, as the rest of the code expects one: plain numbers, whatever types its class gives."""

import math
import numbers
from typing import Any

import numpy as np

from strategies.method import Evaluation, Oracle, Vector
from tasks.contract import Problem, TaskError

PROBLEM = ("dim", "dtype", "smoothness", "optimum", "samples", "initial", "oracle", "evaluate")
"""What ``tasks.contract.Problem`` asks for."""


_PARTIES = {"count", "kept_back", "measure", "own_data", "has_test_data"}
_ATTACKED = {"flaw_of_trigger", "poisoned", "trigger_success"}
OPTIONAL = frozenset(
    {"root", "has_root_data", *_ATTACKED, "training_data", "layout", "tied", "frozen", "fingerprint", *_PARTIES}
)
"""What it may have beside that, see ``tasks.identity``, ``experiment.model_file`` and ``docs/tasks.md``."""


class OwnProblem:
    """What a class with ``load(setting)`` gave, its numbers converted; all else is passed on as it is.

    Args:
        problem: what it gave.
        own_data: each client has its own, so that a server may not know how many samples there are.

    Raises:
        TaskError: it has not the form of a problem.
    """

    def __init__(self, problem: Any, *, own_data: bool = False) -> None:
        absent = [name for name in PROBLEM if not hasattr(problem, name)]
        if absent:
            raise TaskError(f"what load() gave has no {', '.join(absent)}; must be a breakwater.tasks.Problem")
        self.inner: Problem = problem
        self.dim = _count("dim", problem.dim)
        self.samples = 0 if own_data and problem.samples in (0, None) else _count("samples", problem.samples)
        try:
            self.dtype = np.dtype(problem.dtype)
        except TypeError:
            raise TaskError(f"dtype = {problem.dtype!r}: must be float32 or float64") from None
        if self.dtype not in (np.float32, np.float64):
            raise TaskError(f"dtype = {self.dtype}: must be float32 or float64")

    def __getattr__(self, name: str) -> Any:
        """Return what a problem may have beside the contract, if this one has it."""
        if name not in OPTIONAL:
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def smoothness(self) -> float | None:
        """L, where the task knows it."""
        value = self.inner.smoothness
        return None if value is None else _number("smoothness", value, above_zero=True)

    @property
    def optimum(self) -> float | None:
        """f*, where the task knows it."""
        value = self.inner.optimum
        return None if value is None else _number("optimum", value)

    def initial(self) -> Vector:
        """Return x^0."""
        return self.inner.initial()

    def oracle(self, worker: int, *, flipped: bool = False) -> Oracle:
        """Return the gradients of one worker's loss."""
        return self.inner.oracle(worker, flipped=flipped)

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model. An accuracy that is none, NaN or beyond [0, 1], is None."""
        measured = self.inner.evaluate(x)
        accuracy = _maybe(measured.accuracy)
        accuracy = accuracy if accuracy is not None and 0 <= accuracy <= 1 else None
        return Evaluation(loss=float(measured.loss), accuracy=accuracy, gap=_maybe(measured.gap))


def _count(name: str, value: Any) -> int:
    """Return a positive whole number."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not float(value).is_integer() or value < 1:
        raise TaskError(f"{name} = {value!r}: must be a whole number from 1 up")
    return int(value)


def _number(name: str, value: object, *, above_zero: bool = False) -> float:
    """Return a finite number."""
    found = _maybe(value) if isinstance(value, numbers.Real | np.ndarray) else math.nan
    if found is None or not math.isfinite(found) or (above_zero and found <= 0):
        raise TaskError(f"{name} = {value!r}: must be a finite number{' above 0' if above_zero else ''}, or None")
    return found


def _maybe(value: object) -> float | None:
    """Return a number, or None for None and NaN."""
    if value is None:
        return None
    found = float(value)  # type: ignore[arg-type]  # what it raises for no number is the user's
    return None if math.isnan(found) else found


def check_l2(l2: object) -> float:
    """Return the weight of a regulariser.

    Raises:
        TaskError: it is no finite number from 0 up.
    """
    number = isinstance(l2, numbers.Real) and not isinstance(l2, bool)
    if not number or not math.isfinite(float(l2)) or float(l2) < 0:  # type: ignore[arg-type]  # a real number
        raise TaskError(f"l2 = {l2!r}: must be a finite number from 0 up")
    return float(l2)  # type: ignore[arg-type]  # as above
