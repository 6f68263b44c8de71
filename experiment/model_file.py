"""The model's file, ``model.safetensors``: tensors by name where the task has names for them, else one vector ``x``.

With names, the file is a state dict as ``load_state_dict(load_file(...))`` takes it: the trained parameters, each tied
one under all of its names, and the frozen parameters and buffers beside them. Its only metadata are the names of the
trained parameters in the order in which they lie in x (``parameters``, as JSON), so that x can be put together again.
A table task has these names, its schema and its scaling as JSON under the key ``table`` instead.
Nothing else is in it, no time and no run id: equal models give equal files. One key of metadata is what the library
writes in an order that never changes.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiment import MODEL
from foundation.errors import ConfigError
from foundation.files import replacing
from strategies.method import Vector
from tasks.contract import Problem
from tasks.table_model import TableModel

_PARAMETERS = "parameters"
"""Key of the metadata: the names of the trained parameters, in the order of x."""
_TABLE = "table"
"""Key of the metadata of a table task's model: the same names, and what the model needs to be used."""
_LAYOUT = "layout"
"""Key of the metadata in files of older versions: names and shapes of what their ``x`` holds."""
_X, _FROZEN = "x", "frozen."
"""Name of the vector where the parameters have no names, and prefix of the frozen values beside it."""

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by name."""
NormBuffers = Callable[[Vector, Vector | None], Mapping[str, NDArray[Any] | None]]
"""(x, its running statistics or None) -> these by name."""


@dataclass(frozen=True, eq=False)
class Model:
    """The model of a run.

    Args:
        x: the trained parameters in the task's order, shape (d,); None where the file was written by something else
            and does not give the order.
        tensors: trained and frozen parameters, and buffers, by name and with their shapes; empty for a task that has
            no names for its parameters.
        table: of a table task, what the model needs to be used, as ``TableModel.of`` takes it.
    """

    x: Vector | None
    tensors: Tensors
    table: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class ModelForm:
    """How the models of a task are written.

    Args:
        shapes: of each trained parameter by name, in the order of x; empty for one vector x.
        tied: further names of trained parameters: name -> one of ``shapes``.
        frozen: what belongs to the model and is not trained, by name.
        describe: of a table task, returns what a model needs to be used; called when a model is written.
        norm_buffers: returns those of ``frozen`` that depend on x, given x and, where these are not those that the task
            measures with, its running statistics of batch norm; None for those not known, which the file then lacks.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    frozen: Tensors = field(default_factory=dict)
    describe: Callable[[], Mapping[str, Any]] | None = None
    norm_buffers: NormBuffers = lambda *_: {}

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return the form that a task's ``layout()``, ``tied()`` and ``frozen()`` ask for, where it has them.

        A layout of the user's own that is no list of names and shapes, or does not fit x, gives one vector x.
        """

        def optional(method: str, default: Any) -> Any:
            return getattr(problem, method)() if hasattr(problem, method) else default

        frozen = {str(name): np.array(array) for name, array in optional("frozen", {}).items()}
        tied = {str(name): str(first) for name, first in optional("tied", {}).items()}
        shapes = _shapes(str(optional("layout", "")), problem.dim)
        names = [*shapes, *tied, *frozen]
        if len(set(names)) < len(names) or "__metadata__" in names or not shapes.keys() >= set(tied.values()):
            shapes = {}
        buffers: NormBuffers = getattr(problem, "norm_buffers", lambda *_: {})
        return cls(shapes, tied if shapes else {}, frozen, getattr(problem, "description", None), buffers)

    def arrays(self, x: Vector, stats: Vector | None = None) -> tuple[Tensors, dict[str, str] | None]:
        """Return what the file of this model holds, and its metadata.

        Args:
            x: shape (d,).
            stats: its running statistics; None for those that the task measures with.
        """
        found = {**self.frozen, **self.norm_buffers(x, stats)}
        frozen = {name: array for name, array in found.items() if array is not None}
        if not self.shapes:
            return {_X: x, **{f"{_FROZEN}{name}": array for name, array in frozen.items()}}, None
        trained = _split(x, self.shapes)
        again = {name: trained[first] for name, first in self.tied.items()}
        tensors = {**trained, **again, **frozen}
        if self.describe is not None:
            return tensors, {_TABLE: json.dumps({_PARAMETERS: list(self.shapes), **self.describe()})}
        return tensors, {_PARAMETERS: json.dumps(list(self.shapes))}


def write_model(path: Path, x: Vector, form: ModelForm, stats: Vector | None = None) -> None:
    """Write a model's file in one step.

    Args:
        path: of the file.
        x: shape (d,).
        form: of the task.
        stats: running statistics of this model; None for those that the task measures with.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    arrays, metadata = form.arrays(x, stats)
    with replacing(path) as draft:
        write_arrays(arrays, draft, metadata)


def write_arrays(arrays: Tensors, path: Path, metadata: dict[str, str] | None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, metadata)
    except SafetensorError as error:  # its name for an error of the system
        raise OSError(None, str(error)) from error


def read_model(folder: Path) -> Model:
    """Return the model of a run folder, of this version or an older one.

    Raises:
        ConfigError: there is none, or it cannot be read; one line.
    """
    if not (folder / MODEL).exists():
        raise ConfigError(f"{folder}: no model is there ({MODEL} is missing)")
    return read_model_file(folder / MODEL)


def load_model(path: str | os.PathLike[str]) -> TableModel:
    """Load the model of a table task, to predict with it.

    Args:
        path: of a file that a server or client wrote (``model.safetensors``), or of a run folder.

    Raises:
        ConfigError: there is no model, it cannot be read, or it is of another kind of task; one line.
    """
    path = Path(path)
    if path.is_dir():
        model, path = read_model(path), path / MODEL
    else:
        model = read_model_file(path)
    if model.table is None:
        fix = "load the model of another task with breakwater.Run or safetensors"
        raise ConfigError(f'{path}: is no model of a table task (kind = "table"), and only these can predict; {fix}')
    try:
        return TableModel.of(model.tensors, model.table)
    except ValueError as error:
        raise ConfigError(f"{path}: is no model of a table task: {error}") from None


def read_model_file(path: Path) -> Model:
    """Return the model in a file; see ``read_model``."""
    if not path.is_file():
        raise ConfigError(f"{path}: is no file" if path.exists() else f"{path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
        if _TABLE in metadata:
            about = dict(json.loads(metadata[_TABLE]))
            return Model(_joined(arrays, about.pop(_PARAMETERS)), arrays, about)
        if _PARAMETERS in metadata:
            return Model(_joined(arrays, json.loads(metadata[_PARAMETERS])), arrays)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(f"{path}: is not the model of a run: {error}") from None
    if _X not in arrays or arrays[_X].ndim != 1:
        return Model(None, arrays)
    x = arrays.pop(_X)
    shapes = _shapes(metadata.get(_LAYOUT, ""), len(x))
    frozen = {name.removeprefix(_FROZEN): array for name, array in arrays.items() if name.startswith(_FROZEN)}
    return Model(x, {**_split(x, shapes), **frozen} if shapes else {})


def _shapes(layout: str, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name that a layout gives for a vector of this length; none where it gives none."""
    try:
        shapes = {str(name): tuple(map(int, shape)) for name, shape in json.loads(layout)}
    except (ValueError, TypeError, RecursionError):
        return {}
    whole = all(size >= 0 for shape in shapes.values() for size in shape)
    return shapes if whole and sum(map(math.prod, shapes.values())) == dim else {}


def _split(x: Vector, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return the parts of x by name, as views."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(x, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _joined(arrays: Tensors, names: list[str]) -> Vector:
    """Return the vector that consists of these arrays."""
    if len(set(names)) < len(names):
        raise ValueError("it names a parameter twice")
    x: Vector = np.concatenate([arrays[name].reshape(-1) for name in names])
    return x
