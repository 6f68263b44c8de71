"""Reads what a user's ``train_data`` and ``test_data`` return: arrays or tensors, checked and converted, or a Dataset.

Every refusal is one line that names the method, the place in the data and what to change. Imports torch.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from foundation.text import first_line
from tasks.contract import TaskError
from tasks.samples import Samples, tensors_of

WIDER = {torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64}
"""Integer types that torch's losses do not take as class labels; they become int64."""


def read_pair(pair: object, method: str, dtype: str, *, own_loss: bool) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as tensors on the CPU; floating ones with the task's dtype.

    Without a loss of the task's own, targets of one whole number a sample are class labels, whatever their type.

    Args:
        pair: what the method returned.
        method: ``"train_data"`` or ``"test_data"``, for messages.
        dtype: of the task.
        own_loss: the task has a method ``loss``; else cross-entropy is used.

    Raises:
        TaskError: it is no pair of arrays with one row a sample, or holds what no model can learn from.
    """
    if not (isinstance(pair, tuple) and len(pair) == 2):
        raise TaskError(f"{method}() gave {type(pair).__name__}; must be (inputs, targets), or a Dataset of such pairs")
    inputs, targets = _tensor(pair[0], f"{method}() gave inputs"), _tensor(pair[1], f"{method}() gave targets")
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        shapes = f"inputs of shape {tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
        raise TaskError(f"{method}() gave {shapes}; must have one row a sample, equally many")
    inputs = _converted(inputs, f"{method}() gave inputs", dtype)
    return inputs, _labels(_converted(targets, f"{method}() gave targets", dtype), method, own_loss=own_loss)


def read_samples(data: object, method: str, dtype: str) -> Samples:
    """Return samples of any structure as tensors on the CPU; floating ones with the task's dtype.

    For a task whose loss takes the module and a batch.

    Args:
        data: what the method returned.
        method: ``"train_data"`` or ``"test_data"``, for messages.
        dtype: of the task.

    Raises:
        TaskError: it holds no tensors, or not equally many rows in each, or what no model can learn from.
    """
    samples = _read(data, f"{method}() gave samples", dtype)
    shapes = [tuple(part.shape) for part in tensors_of(samples)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes) or shapes[0][0] == 0:
        raise TaskError(f"{method}() gave tensors of shapes {shapes}; must have one row a sample, equally many")
    return samples


def _read(data: object, what: str, dtype: str) -> Samples:
    """Return a part of the samples."""
    if isinstance(data, dict):
        return {key: _read(part, f"{what}[{key!r}]", dtype) for key, part in data.items()}
    if isinstance(data, tuple | list):
        parts = [_read(part, f"{what}[{number}]", dtype) for number, part in enumerate(data)]
        return parts if isinstance(data, list) else tuple(parts)
    return _converted(_tensor(data, what), what, dtype)


def stacked(samples: Sequence[Any], method: str) -> tuple[Tensor, Tensor]:
    """Return samples of a Dataset as a pair (inputs, targets).

    Args:
        samples: pairs.
        method: that gave the Dataset, for messages.

    Raises:
        TaskError: they are no pairs, or of different shapes.
    """
    if any(not isinstance(sample, tuple | list) or len(sample) != 2 for sample in samples):
        raise TaskError(f"{method}() gave a Dataset whose samples are no pairs; its samples must be (input, target)")
    parts = []
    for name, values in zip(("inputs", "targets"), zip(*samples, strict=True), strict=True):
        tensors = [_tensor(value, f"{method}() gave {name}") for value in values]
        if len({tensor.shape for tensor in tensors}) > 1:
            fix = "must be the same for each sample, or made so by a method collate(samples)"
            raise TaskError(f"{method}() gave {name} of different shapes; {fix}")
        parts.append(torch.stack(tensors))
    return parts[0], parts[1]


def collated(samples: list[Any], method: str) -> Any:
    """Return samples of a Dataset as a batch, as PyTorch's DataLoader would.

    Raises:
        TaskError: they make none.
    """
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError, KeyError) as error:
        raise TaskError(f"{method}() gave a Dataset whose samples make no batch: {first_line(error)}") from None


def in_memory(dataset: object) -> bool:
    """Return whether a Dataset is nothing but tensors, one row a sample, which need not be fetched."""
    return type(dataset) is TensorDataset


def _tensor(part: object, what: str) -> Tensor:
    """Return an array as a tensor on the CPU, in this machine's byte order."""
    if isinstance(part, Tensor):
        if part.device.type != "cpu" or part.layout != torch.strided:
            kind = f'on device "{part.device}"' if part.device.type != "cpu" else "as a sparse tensor"
            raise TaskError(f"{what} {kind}; must be an ordinary tensor on the CPU (.cpu(), .to_dense())")
        return part.detach()
    if hasattr(part, "toarray"):
        raise TaskError(f"{what} as a sparse matrix ({type(part).__name__}); must be an array: .toarray()")
    if isinstance(part, np.ma.MaskedArray) and np.ma.getmaskarray(part).any():
        raise TaskError(f"{what} with masked entries; fill them in, or leave their rows out")
    if isinstance(part, np.ndarray) or hasattr(part, "__array__"):
        return _from_numpy(np.asarray(part), what)
    with suppress(TypeError, ValueError, RuntimeError):
        return torch.as_tensor(part)
    try:
        return _from_numpy(np.asarray(part), what)
    except ValueError:
        raise TaskError(f"{what} in rows of different lengths; must be one array of numbers") from None


def _from_numpy(array: "np.ndarray[Any, np.dtype[Any]]", what: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        words = {"U": "strings", "S": "strings", "O": "Python objects", "M": "dates", "m": "times"}
        fix = ", classes from 0 up: np.unique(names, return_inverse=True)[1]" if "targets" in what else ""
        raise TaskError(f"{what} of {words.get(array.dtype.kind, 'records')} ({array.dtype}); must be numbers{fix}")
    long = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = array.astype(np.float64 if long else array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.as_tensor(array)


def _converted(part: Tensor, what: str, dtype: str) -> Tensor:
    """Return a part with the task's dtype, if it is floating; every number must be finite before and after."""
    if not part.is_floating_point():
        if part.is_complex() and not torch.isfinite(part).all():
            raise TaskError(f"{what} that are not all finite; leave those rows out, or fill them in")
        return part
    if wrong := _not_finite(part):
        raise TaskError(f"{what} with {wrong[0]} {wrong[1]}; must be finite numbers: drop such rows, or fill them in")
    converted = part.to(getattr(torch, dtype))
    if wrong := _not_finite(converted):
        fix = ', or set dtype = "float64" in the class' if dtype == "float32" else ""
        raise TaskError(f"{what} beyond the range of {dtype} {wrong[1]}; scale the data{fix}")
    return converted


def _not_finite(part: Tensor) -> tuple[float, str] | None:
    """Return the first number that is not finite, and its place, of one row a sample; None where all are finite."""
    if torch.isfinite(part.sum(dtype=torch.float64)):  # one pass; NaN and infinity survive sums
        return None
    wrong = ~torch.isfinite(part.reshape(len(part), -1))
    if not wrong.any():
        return None
    row, column = (int(at) for at in wrong.nonzero()[0])
    place = f"in row {row}"
    if part.ndim == 2:
        place += f", column {column}"
    elif part.ndim > 2:
        place += f", at {[int(i) for i in np.unravel_index(column, part.shape[1:])]}"
    count = int(wrong.any(dim=1).sum())
    others = f" (and in {count - 1} more rows)" if count > 1 else ""
    return part.reshape(len(part), -1)[row, column].item(), f"{place}{others}"


def _labels(targets: Tensor, method: str, *, own_loss: bool) -> Tensor:
    """Return targets as the loss takes them: class labels as int64."""
    if targets.dtype in WIDER or (targets.dtype == torch.bool and not own_loss):
        targets = targets.to(torch.int64)
    if own_loss:
        return targets
    if targets.is_floating_point() and targets.ndim == 1:
        broken = targets != targets.round()
        if broken.any():
            problem = f"targets that are no class labels (such as {targets[broken][0]:g}), as cross-entropy needs"
            fix = "without a method loss(output, target); write one, for example torch.nn.functional.mse_loss"
            raise TaskError(f"{method}() gave {problem} {fix}")
        targets = targets.to(torch.int64)
    if not targets.is_floating_point() and not targets.is_complex():
        flat = targets.reshape(len(targets), -1)
        ignored = (flat < 0).all(dim=1)
        if ignored.any():
            row = int(ignored.nonzero()[0])
            where = f"targets are {int(flat[row, 0])} in row {row} ({int(ignored.sum())} such rows)"
            fix = "a minibatch of such rows has no loss, so leave them out; classes count from 0"
            raise TaskError(f"{method}() gave a row without a class: {where}; {fix}")
    return targets
