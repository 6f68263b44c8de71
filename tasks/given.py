"""Reads what a user's ``train_data`` and ``test_data`` return: arrays or tensors, checked and converted. Imports torch.

Every refusal is one line that names the method, the place in the data and what to change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.contract import TaskError

WIDER = {torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64}
"""Integer types that torch's losses do not take as class labels; they become int64."""


def read_pair(pair: object, method: str, dtype: str, *, own_loss: bool) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as tensors on the CPU; floating ones with the task's dtype.

    Without a loss of the task's own, targets of one whole number a sample are class labels, whatever their type.

    Args:
        pair: what the method returned.
        method: ``"train_data"`` or ``"test_data"``, for messages.
        dtype: ``"float32"`` or ``"float64"``.
        own_loss: the task has a method ``loss``; else cross-entropy is used.

    Raises:
        TaskError: it is no pair of arrays with one row a sample, or holds what no model can learn from.
    """
    if not (isinstance(pair, tuple) and len(pair) == 2):
        raise TaskError(f"{method}() gave {type(pair).__name__}; must be (inputs, targets)")
    inputs, targets = (_tensor(part, f"{method}() gave {name}") for part, name in zip(pair, _NAMES, strict=True))
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or len(inputs) == 0:
        raise TaskError(
            f"{method}() gave inputs of shape {tuple(inputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}; must have one row a sample, equally many"
        )
    inputs, targets = (
        _converted(part, f"{method}() gave {name}", dtype) for part, name in zip((inputs, targets), _NAMES, strict=True)
    )
    return inputs, _labels(targets, method, own_loss=own_loss)


_NAMES = ("inputs", "targets")


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
    try:
        return torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError):
        pass
    try:
        array = np.asarray(part)
    except ValueError:
        raise TaskError(f"{what} in rows of different lengths; must be one array of numbers") from None
    return _from_numpy(array, what)


def _from_numpy(array: "np.ndarray[Any, np.dtype[Any]]", what: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        words = {"U": "strings", "S": "strings", "O": "Python objects", "M": "dates", "m": "times"}
        raise TaskError(
            f"{what} of {words.get(array.dtype.kind, str(array.dtype))} ({array.dtype}); must be numbers"
            + (", classes from 0 up: np.unique(names, return_inverse=True)[1]" if "targets" in what else "")
        )
    wanted = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        wanted = np.dtype(np.float64)
    array = array.astype(wanted, copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.as_tensor(array)


def _converted(part: Tensor, what: str, dtype: str) -> Tensor:
    """Return a part with the task's dtype, if it is floating; every number must be finite before and after."""
    if not part.is_floating_point():
        if part.is_complex() and not torch.isfinite(part).all():
            raise TaskError(f"{what} that are not all finite; leave those rows out, or fill them in")
        return part
    _check_finite(part, lambda value, place: f"{what} with {value} {place}; must be finite numbers: leave such rows "
                  "out, or fill them in")  # fmt: skip
    converted = part.to(getattr(torch, dtype))
    _check_finite(
        converted,
        lambda value, place: (
            f"{what} beyond the range of {dtype} {place}; scale the data"
            + (', or set dtype = "float64" in the class' if dtype == "float32" else "")
        ),
    )
    return converted


def _check_finite(part: Tensor, message: Callable[[float, str], str]) -> None:
    """Raise where a number is not finite.

    Args:
        part: floating numbers, one row a sample.
        message: makes the message from the first such number and its place.
    """
    if torch.isfinite(part.sum(dtype=torch.float64)):  # one pass; NaN and infinity survive sums
        return
    wrong = ~torch.isfinite(part.reshape(len(part), -1))
    rows = wrong.any(dim=1)
    if not rows.any():
        return
    row = int(rows.nonzero()[0])
    column = int(wrong[row].nonzero()[0])
    value = part.reshape(len(part), -1)[row, column].item()
    place = f"in row {row}"
    if part.ndim == 2:
        place += f", column {column}"
    elif part.ndim > 2:
        place += f", at {[int(i) for i in np.unravel_index(column, part.shape[1:])]}"
    count = int(rows.sum())
    if count > 1:
        place += f" (and in {count - 1} more rows)"
    raise TaskError(message(value, place))


def _labels(targets: Tensor, method: str, *, own_loss: bool) -> Tensor:
    """Return targets as the loss takes them: class labels as int64."""
    if targets.dtype in WIDER:
        targets = targets.to(torch.int64)
    if own_loss:
        return targets
    if targets.dtype == torch.bool:
        targets = targets.to(torch.int64)
    if targets.is_floating_point() and targets.ndim == 1:
        if not torch.equal(targets, targets.round()):
            raise TaskError(
                f"{method}() gave targets that are no class labels (such as {targets[targets != targets.round()][0]:g})"
                ", and without a method loss(output, target) the loss is cross-entropy; write one, for example "
                "torch.nn.functional.mse_loss"
            )
        targets = targets.to(torch.int64)
    if not targets.is_floating_point() and not targets.is_complex():
        ignored = (targets.reshape(len(targets), -1) < 0).all(dim=1)
        if ignored.any():
            row = int(ignored.nonzero()[0])
            value = int(targets.reshape(len(targets), -1)[row, 0])
            raise TaskError(
                f"{method}() gave a row without a class: targets are {value} in row {row} ({int(ignored.sum())} such "
                "rows); a minibatch of such rows has no loss, so leave them out; classes count from 0"
            )
    return targets
