"""A user's own task: a class in a Python file that lies beside the config. How to write one: ``docs/tasks.md``.

This runs the file's code, so the path may come from the user's own config alone, never from one that came over the
network: without the folder of a config file (``setting.config_dir``) nothing is loaded.
"""

import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.contract import Problem, Setting, TaskError
from tasks.own_problem import OwnProblem, check_l2
from tasks.partition import check_partition

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.torch_model import TorchTask


@dataclass(frozen=True, kw_only=True)
class CustomTask:
    """A task from the user's own file.

    Args:
        path: ``file.py:Class``, relative to the folder of the config.
        options: keyword arguments of the class.
        partition: who holds which training samples; see ``tasks/partition.py``.
    """

    kind: Literal["custom"] = "custom"
    path: str
    options: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    partition: str = "iid"
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not re.fullmatch(r".+\.py:[^\W\d]\w*", self.path):
            raise ValueError(f'path = "{self.path}": must be "file.py:Class", for example "my_task.py:MyTask"')
        check_partition(self.partition)

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` most likely imports; a task without torch can do without."""
        return ("torch", "threadpoolctl")

    def load(self, setting: Setting) -> Problem:
        """Run the file and make the class; ``tasks.tryout`` tries what comes of it, on an instance of its own.

        Raises:
            TaskError: the file or the class is missing, the class has not the form of ``docs/tasks.md``, or its code
                raised (with type and line).
        """
        name, _, class_name = self.path.rpartition(":")
        if setting.config_dir is None:
            raise TaskError(f'path = "{self.path}": own tasks run only from a config file on this machine')
        file = setting.config_dir / name
        if not file.is_file():
            raise TaskError(f'path = "{self.path}": there is no file {file}; the path is relative to the config file')
        try:
            made = getattr(_run(file), class_name, None)
            if not isinstance(made, type):
                raise TaskError(f'path = "{self.path}": there is no class "{class_name}" in {file}')
            user = made(**self.options)
            if hasattr(user, "load"):
                return OwnProblem(user.load(setting))
            return self._torch_task(user).load(setting)
        except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is told with its line
            raise self.fault(error, setting) from error

    def fault(self, error: BaseException, setting: Setting, what: str = "") -> TaskError:
        """Return what went wrong in the user's code as one line, with its place in the file.

        Args:
            error: what was raised.
            setting: of the load.
            what: was being done, such as "loss() of the samples of worker 3".
        """
        if isinstance(error, TaskError):
            told = str(error)
            return error if told.startswith("path = ") else TaskError(f'path = "{self.path}": {told}')
        file = (setting.config_dir or Path()) / self.path.rpartition(":")[0]
        return TaskError(f'path = "{self.path}": {_where(error, file)}{f" ({what})" if what else ""}')

    def _torch_task(self, user: Any) -> "TorchTask":
        """Read a class that gives a module and data."""
        absent = [name for name in ("model", "train_data") if not callable(getattr(user, name, None))]
        if absent:
            raise TaskError(
                f'path = "{self.path}": {type(user).__name__} has no method {" and no ".join(absent)}; it must have '
                "model() and train_data(), or load(setting)"
            )
        try:
            from tasks.given import read_pair
            from tasks.torch_model import TorchTask
        except ImportError as error:
            raise TaskError(
                f'path = "{self.path}": model() needs torch ({error}); install it by `make setup` or the extra `torch`'
            ) from None
        from torch.nn.functional import cross_entropy

        from tasks.measures import DefaultMeasure

        dtype = str(getattr(user, "dtype", "float32"))
        if dtype not in ("float32", "float64"):
            raise TaskError(f'path = "{self.path}": dtype = "{dtype}": must be "float32" or "float64"')
        l2, own_loss = check_l2(getattr(user, "l2", 0.0)), hasattr(user, "loss")
        train = read_pair(user.train_data(), "train_data", dtype, own_loss=own_loss)
        test = train
        if hasattr(user, "test_data"):
            test = read_pair(user.test_data(), "test_data", dtype, own_loss=own_loss)
        loss = user.loss if own_loss else cross_entropy
        measure = DefaultMeasure(loss, own_loss=own_loss, targets=(train[1], test[1]))
        return TorchTask(
            model=user.model,
            train=train,
            test=test,
            loss=loss,
            correct=getattr(user, "correct", measure),
            flip=getattr(user, "flip", _flip),
            l2=l2,
            dtype=dtype,
            partition=self.partition,
        )


def _flip(targets: "Tensor") -> "Tensor":
    """Flip class labels 0 .. K-1 as y -> K-1 - y, one-hot rows too; zeros and ones as y -> 1 - y."""
    from tasks.measures import is_one_hot

    if is_one_hot(targets):
        return targets.flip(1)
    if targets.is_floating_point():
        if bool(((targets == 0) | (targets == 1)).all()):
            return 1 - targets
        raise TaskError("label flipping of targets that are no class labels needs the task's own method flip(targets)")
    return (targets.max() - targets).where(targets >= 0, targets)


def _run(file: Path) -> ModuleType:
    """Run a Python file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"custom_task_{file.stem}", file)
    assert spec is not None  # noqa: S101  # the name ends in .py, which Python has a loader for
    assert spec.loader is not None  # noqa: S101  # as above
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses in it look themselves up
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException, file: Path) -> str:
    """Say in one line what went wrong, and in which line of the user's file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == file.resolve()
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    message = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    place = f"{file.name}, line {line}" if line else file.name
    return f"{place}: {type(error).__name__}" + (f": {message[0]}" if message else "")
