"""A user's own task: a class in a Python file that lies beside the config. How to write one: ``docs/tasks.md``.

This runs the file's code, so the path may come from the user's own config alone, never from one that came over the
network: without the folder of a config file (``setting.config_dir``) nothing is loaded.
"""

import inspect
import math
import re
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tomli_w

from foundation.text import first_line
from tasks import siblings
from tasks.contract import Problem, Setting, TaskError
from tasks.identity import remember_files
from tasks.own_problem import OwnProblem, check_l2
from tasks.partition import OWN, check_partition

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.own_data import OwnDataTask
    from tasks.samples import Samples
    from tasks.torch_model import TorchTask

_DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class CustomTask:
    """A task from the user's own file.

    Args:
        path: ``file.py:Class``, relative to the folder of the config.
        options: keyword arguments of the class: numbers, strings, booleans, and lists and tables of them.
        partition: who holds which training samples; see ``tasks/partition.py``.
        norm_stats: where the running statistics of batch norm come from, for evaluation and in the final model:
            "reference": from training data of the server; "aggregate": the medians of what clients answer; "local":
            each client has those of its own data, and the server none. By default "reference" where the server has
            training data, else "aggregate".
    """

    kind: Literal["custom"] = "custom"
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    partition: str = "iid"
    norm_stats: Literal["reference", "aggregate", "local"] | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid", "ser_json_inf_nan": "constants"}

    def __post_init__(self) -> None:
        if not re.fullmatch(r".+\.py:[^\W\d]\w*", self.path):
            raise ValueError(f'path = "{self.path}": must be "file.py:Class", for example "my_task.py:MyTask"')
        check_partition(self.partition)
        for place, value in _leaves("options", self.options):
            if not isinstance(value, str | bool | int | float):
                allowed = "a number, a string, true or false, or a list or table of them; write dates as strings"
                raise ValueError(f"{place} = {value}: must be {allowed}")

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` most likely imports; a task without torch can do without."""
        return ("torch", "threadpoolctl")

    def load(self, setting: Setting) -> Problem:
        """Run the file and make the class; ``tasks.tryout`` tests a second instance.

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
            made = getattr(siblings.run(file, files), class_name, None)
            if not isinstance(made, type):
                raise TaskError(f'there is no class "{class_name}" in {file}')
            user = made(**_as_wanted(made, self.options))
            problem: Problem
            if hasattr(user, "load"):
                problem = OwnProblem(user.load(setting), own_data=self.partition == OWN)
            elif self.partition == OWN:
                problem = self._own_data_task(user).load(setting)
            else:
                problem = self._torch_task(user, setting.data_dir).load(setting)
            remember_files(problem, dict(files))
        except (Exception, SystemExit) as error:  # the user's own code: anything it raises is reported with its line
            raise self.fault(error, setting) from error
        return problem

    def fault(self, error: BaseException, setting: Setting, what: str = "") -> TaskError:
        """Return what went wrong in the user's code as one line, with its place in the file.

        Args:
            error: what was raised.
            setting: of the load.
            what: was being done, such as "loss() of the samples of worker 3".
        """
        place = f'path = "{self.path}": '
        if isinstance(error, TaskError):
            return error if str(error).startswith("path = ") else TaskError(f"{place}{error}")
        file = (setting.config_dir or Path()) / self.path.rpartition(":")[0]
        return TaskError(f"{place}{_where(error, file)}{f' ({what})' if what else ''}")

    def _torch_task(self, user: Any, folder: Path | None) -> "TorchTask":
        """Read a class that gives a module and data."""
        made = _Made(user, "train_data")
        train = made.read(user.train_data(), "train_data")
        test = made.read(_with_folder(user.test_data, folder), "test_data") if hasattr(user, "test_data") else train
        return made.task(train, test, partition=self.partition, norm_source=self.norm_stats or "reference")

    def _own_data_task(self, user: Any) -> "OwnDataTask":
        """Read a class that gives a module, and the data of one party."""
        made = _Made(user, "local_data")
        from tasks.own_data import OwnDataTask

        share = getattr(user, "test_share", 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise TaskError(f"test_share = {share!r}: must be from 0 up to, but not including, 1")

        def local(folder: Path) -> "Samples":
            return made.read(user.local_data(folder), "local_data")

        def at_server(method: str) -> "Callable[[Path | None], Samples | None] | None":
            def read(folder: Path | None) -> "Samples | None":
                given = _with_folder(getattr(user, method), folder)
                return None if given is None else made.read(given, method)

            return read if hasattr(user, method) else None

        return OwnDataTask(
            model=user.model,
            local=local,
            test=at_server("test_data"),
            root=at_server("root_data"),
            task=made.task,
            flips=hasattr(user, "flip"),
            test_share=float(share),
            dtype=made.dtype,
            norm_source=self.norm_stats,
        )


def _with_folder(method: Callable[..., Any], folder: Path | None) -> Any:
    """Return the data of a method that may want the folder of data files or not."""
    return method(folder) if inspect.signature(method).parameters else method()


def _takes_module(function: object) -> bool:
    """Return whether a loss or measure is one of (module, batch), in place of (output, target)."""
    with suppress(TypeError, ValueError):  # it has no signature
        return callable(function) and next(iter(inspect.signature(function).parameters), "") == "module"
    return False


def _whole_number(user: object, name: str, default: int, least: int) -> int:
    """Return an attribute of the class.

    Raises:
        TaskError: it is no whole number, or too small.
    """
    value = getattr(user, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise TaskError(f"{name} = {value!r}: must be a whole number from {least} up")
    return value


class _Made:
    """What a class gives whose model is a torch module, whatever data it has.

    Args:
        user: an instance of the class.
        data: the method that must give the data.

    Raises:
        TaskError: a method is missing, a value is out of bounds, or torch is not installed.
    """

    def __init__(self, user: Any, data: str) -> None:
        absent = [name for name in ("model", data) if not callable(getattr(user, name, None))]
        if absent:
            arguments = "folder" if data == "local_data" else ""
            form = f"it must have model() and {data}({arguments}), or load(setting)"
            raise TaskError(f"{type(user).__name__} has no method {' and no '.join(absent)}; {form}")
        try:
            from torch.nn.functional import cross_entropy
        except ImportError as error:
            fix = "install it by `make setup` or the extra `torch`"
            raise TaskError(f"model() needs torch ({error}); {fix}") from None
        self.dtype = str(getattr(user, "dtype", "float32"))
        if self.dtype not in _DTYPES:
            allowed = " or ".join(f'"{name}"' for name in _DTYPES)
            raise TaskError(f'dtype = "{self.dtype}": must be {allowed}')
        self._user, self._l2, self._own_loss = user, check_l2(getattr(user, "l2", 0.0)), hasattr(user, "loss")
        self._loss = getattr(user, "loss", cross_entropy)
        self._by_batch = _takes_module(self._loss)

    def read(self, data: object, method: str) -> "Samples":
        """Return what a method of the class gave, as tensors; of a Dataset samples that are fetched by index."""
        from torch.utils.data import Dataset

        from tasks import given

        if not isinstance(data, Dataset):
            return self._tensors(data, method)
        collate = getattr(self._user, "collate", None)
        if given.in_memory(data) and collate is None:
            return self._tensors(data.tensors, method)  # type: ignore[attr-defined]  # a TensorDataset
        from tasks.pipeline import Fetched, Source

        def tensors(batch: object) -> "Samples":
            pair = isinstance(batch, list) and not self._by_batch  # as default_collate gives it
            return self._tensors(tuple(batch) if pair else batch, method)  # type: ignore[arg-type]  # a list

        default = given.collated if self._by_batch else given.stacked
        source = Source(
            data,
            method,
            partial(default, method=method) if collate is None else collate,
            tensors,
            workers=_whole_number(self._user, "workers", 0, 0),
            prefetch=_whole_number(self._user, "prefetch", 2, 1),
        )
        samples = Fetched(source)
        _ = samples.shown  # what is wrong with the first samples is reported now
        return samples

    def _tensors(self, data: object, method: str) -> "Samples":
        from tasks.given import read_pair, read_samples

        if self._by_batch:
            return read_samples(data, method, self.dtype)
        return read_pair(data, method, self.dtype, own_loss=self._own_loss)

    def task(self, train: "Samples", test: "Samples", **options: Any) -> "TorchTask":
        """Return the task on these data."""
        from tasks.measures import DefaultMeasure
        from tasks.samples import tensors_of
        from tasks.torch_model import TorchTask

        user, own = self._user, dict[str, Any]()
        own["batch_loss" if self._by_batch else "loss"] = self._loss
        if _takes_module(given := getattr(user, "correct", None)):
            own["batch_correct"] = given
        elif hasattr(user, "correct") or self._by_batch:
            own["correct"] = given
        else:
            targets = (tensors_of(train)[1], tensors_of(test)[1])  # of samples by index, those of a few
            own["correct"] = DefaultMeasure(self._loss, own_loss=self._own_loss, targets=targets)
        fixed: dict[str, Any] = {"model": user.model, "l2": self._l2, "dtype": self.dtype}
        return TorchTask(train=train, test=test, flip=getattr(user, "flip", _flip), **fixed, **own, **options)


def _flip(targets: "Tensor") -> "Tensor":
    """Flip class labels 0 .. K-1 as y -> K-1 - y, one-hot rows too; zeros and ones as y -> 1 - y."""
    from tasks.measures import is_one_hot, zeros_and_ones

    if is_one_hot(targets):
        return targets.flip(1)
    if not targets.is_floating_point():
        return (targets.max() - targets).where(targets >= 0, targets)
    if zeros_and_ones(targets):
        return 1 - targets
    raise TaskError("label flipping of targets that are no class labels needs the task's own method flip(targets)")


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
    texts = {name for name, it in wanted.items() if it.annotation in (str, "str") or isinstance(it.default, str)}
    kept = tomllib.loads(tomli_w.dumps(options))
    words = {name for name in texts & kept.keys() if isinstance(kept[name], float) and not math.isfinite(kept[name])}
    return kept | {name: str(kept[name]) for name in words}


def _where(error: BaseException, file: Path) -> str:
    """Say in one line what went wrong, and in which line of the user's files."""
    folder = file.resolve().parent
    path, line = file, None
    for frame in traceback.extract_tb(error.__traceback__):
        if folder in Path(frame.filename).resolve().parents and "site-packages" not in frame.filename:
            path, line = Path(frame.filename), frame.lineno
    if isinstance(error, SyntaxError) and error.filename:
        path, line = Path(error.filename), error.lineno
    message = first_line(error.msg if isinstance(error, SyntaxError) else error)
    return f"{path.name}{f', line {line}' if line else ''}: {type(error).__name__}{message and f': {message}'}"
