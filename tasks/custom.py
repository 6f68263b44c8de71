"""A user's own task: a class in a Python file that lies beside the config. How to write one: ``docs/tasks.md``.

This runs the file's code, so the path may come from the user's own config alone, never from one that came over the
network: without the folder of a config file (``setting.config_dir``) nothing is loaded.
"""

import inspect
import math
import re
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import tomli_w

from tasks import siblings
from tasks.contract import Problem, Setting, TaskError
from tasks.identity import remember_files
from tasks.partition import check_partition

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.torch_model import TorchTask

PROBLEM = ("dim", "dtype", "smoothness", "optimum", "samples", "initial", "oracle", "evaluate")
"""What ``tasks.contract.Problem`` asks for."""


@dataclass(frozen=True, kw_only=True)
class CustomTask:
    """A task from the user's own file.

    Args:
        path: ``file.py:Class``, relative to the folder of the config.
        options: keyword arguments of the class: numbers, strings, booleans, and lists and tables of them.
        partition: who holds which training samples; see ``tasks/partition.py``.
    """

    kind: Literal["custom"] = "custom"
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    partition: str = "iid"
    __pydantic_config__: ClassVar = {"extra": "forbid", "ser_json_inf_nan": "constants"}

    def __post_init__(self) -> None:
        if not re.fullmatch(r".+\.py:[^\W\d]\w*", self.path):
            raise ValueError(f'path = "{self.path}": must be "file.py:Class", for example "my_task.py:MyTask"')
        check_partition(self.partition)
        for place, value in _leaves("options", self.options):
            if not isinstance(value, str | bool | int | float):
                raise ValueError(
                    f"{place} = {value}: must be a number, a string, true or false, or a list or table of them; write "
                    "dates as strings"
                )

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` most likely imports; a task without torch can do without."""
        return ("torch", "threadpoolctl")

    def load(self, setting: Setting) -> Problem:
        """Run the file, make the class, and try one gradient, so that mistakes show before the federation starts.

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
        files: dict[str, str] = {}
        try:
            module = siblings.run(file, files)
            made = getattr(module, class_name, None)
            if not isinstance(made, type):
                raise TaskError(f'path = "{self.path}": there is no class "{class_name}" in {file}')
            user = made(**_as_wanted(made, self.options))
            problem: Problem = user.load(setting) if hasattr(user, "load") else self._torch_task(user).load(setting)
            remember_files(problem, dict(files))
            _try(problem, f'path = "{self.path}"')
        except TaskError:
            raise
        except Exception as error:  # the user's own code: whatever it raises is told with its line
            raise TaskError(f'path = "{self.path}": {_where(error, file, files)}') from error
        return problem

    def _torch_task(self, user: Any) -> "TorchTask":
        """Read a class that gives a module and data."""
        absent = [name for name in ("model", "train_data") if not callable(getattr(user, name, None))]
        if absent:
            raise TaskError(
                f'path = "{self.path}": {type(user).__name__} has no method {" and no ".join(absent)}; it must have '
                "model() and train_data(), or load(setting)"
            )
        try:
            from tasks.torch_model import TorchTask, correct_class
        except ImportError as error:
            raise TaskError(
                f'path = "{self.path}": model() needs torch ({error}); install it by `make setup` or the extra `torch`'
            ) from None
        from torch.nn.functional import cross_entropy

        dtype = str(getattr(user, "dtype", "float32"))
        if dtype not in ("float32", "float64"):
            raise TaskError(f'path = "{self.path}": dtype = "{dtype}": must be "float32" or "float64"')
        train = self._data(user, "train_data", dtype)
        return TorchTask(
            model=user.model,
            train=train,
            test=self._data(user, "test_data", dtype) if hasattr(user, "test_data") else train,
            loss=getattr(user, "loss", cross_entropy),
            correct=getattr(user, "correct", correct_class),
            flip=getattr(user, "flip", _flip),
            l2=float(getattr(user, "l2", 0.0)),
            dtype=dtype,
            partition=self.partition,
        )

    def _data(self, user: Any, method: str, dtype: str) -> "tuple[Tensor, Tensor]":
        """Return inputs and targets as tensors; floating ones with the task's dtype."""
        import torch

        pair = getattr(user, method)()
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TaskError(f'path = "{self.path}": {method}() gave {type(pair).__name__}; must be (inputs, targets)')
        inputs, targets = (torch.as_tensor(part) for part in pair)
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
            raise TaskError(
                f'path = "{self.path}": {method}() gave inputs of shape {tuple(inputs.shape)} and targets of shape '
                f"{tuple(targets.shape)}; must have one row a sample, equally many"
            )
        inputs, targets = (
            part.to(getattr(torch, dtype)) if part.is_floating_point() else part for part in (inputs, targets)
        )
        return inputs, targets


def _flip(targets: "Tensor") -> "Tensor":
    """Flip class labels 0 .. K-1 as y -> K-1 - y."""
    if targets.is_floating_point():
        raise TaskError("label flipping of targets that are no class labels needs the task's own method flip(targets)")
    return targets.max() - targets


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in lists and tables, with its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{place}.{key}", inner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _leaves(f"{place}[{number}]", inner)
    else:
        yield place, value


def _as_wanted(made: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the class may keep them: copies, in the order in which the resolved config has them, so
    that a run of that is the same; and the words nan and inf where it wants strings.

    TOML reads these words as numbers, so ``--set task.options.how=nan`` would give a number to a class that says
    ``how: str`` or ``how="mean"``.
    """
    wanted: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # a class without a signature
        wanted = inspect.signature(made).parameters
    return {
        name: str(value)
        if isinstance(value, float) and not math.isfinite(value) and name in wanted and _is_text(wanted[name])
        else value
        for name, value in tomllib.loads(tomli_w.dumps(options)).items()
    }


def _is_text(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (str, "str") or isinstance(parameter.default, str)


def _try(problem: Any, what: str) -> None:
    """Check that it has the form of a problem, and that a gradient has the form of the model."""
    absent = [name for name in PROBLEM if not hasattr(problem, name)]
    if absent:
        raise TaskError(f"{what}: what load() gave has no {', '.join(absent)}; must be a tasks.contract.Problem")
    x = problem.initial()
    (gradient,) = problem.oracle(0).minibatch_gradients([x], 2, np.random.default_rng(0))
    for name, vector in (("initial()", x), ("a gradient", gradient)):
        if vector.shape != (problem.dim,) or vector.dtype != problem.dtype:
            raise TaskError(
                f"{what}: {name} has shape {vector.shape} and dtype {vector.dtype}; must have ({problem.dim},) and "
                f"{problem.dtype}"
            )


def _where(error: Exception, file: Path, files: Mapping[str, str]) -> str:
    """Say in one line what went wrong, and in which line of the user's files."""
    own = {file.resolve().parent / name for name in files}
    places = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() in own
    ]
    path, line = places[-1] if places else (file, None)
    if isinstance(error, SyntaxError) and error.filename:
        path, line = Path(error.filename), error.lineno
    message = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    place = f"{path.name}, line {line}" if line else path.name
    return f"{place}: {type(error).__name__}" + (f": {message[0]}" if message else "")
