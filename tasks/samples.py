"""Samples as a torch task holds them: tensors with one row a sample, alone or in tuples, lists and dicts.

Most tasks have a pair (inputs, targets). A task whose loss takes the module and a batch may have any structure: its
batches are the same structure with the rows of the batch. Samples that are not in memory are ``ByIndex``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Samples = Any
"""A tensor, or a tuple, list or dict of samples. All tensors in it have equally many rows. Or samples ``ByIndex``."""
TARGETS = ("targets", "target", "labels", "label", "y")
"""Keys under which a dict may have its targets; the first that it has counts."""

_Samples = TypeVar("_Samples")


class ByIndex(ABC):
    """Samples that are fetched when they are needed, see ``tasks/pipeline.py``."""

    @property
    @abstractmethod
    def targets(self) -> Tensor | None:
        """The targets of all samples, one row a sample; None where they are not known beforehand."""

    @property
    @abstractmethod
    def rows(self) -> NDArray[np.int64]:
        """Which samples of the data set these are."""

    @property
    @abstractmethod
    def shown(self) -> Samples:
        """A batch of a few of them, always the same: for digests and comparisons."""

    @abstractmethod
    def taken(self, rows: NDArray[np.int64]) -> "ByIndex":
        """Return some of them, not yet fetched."""

    @abstractmethod
    def with_targets(self, targets: Tensor) -> "ByIndex":
        """Return the same with other targets."""


def mapped(samples: _Samples, function: Callable[[Tensor], Tensor]) -> _Samples:
    """Return the same structure with each tensor replaced by what a function makes of it."""
    if isinstance(samples, Tensor):
        return cast("_Samples", function(samples))
    if isinstance(samples, dict):
        return cast("_Samples", {key: mapped(part, function) for key, part in samples.items()})
    parts = [mapped(part, function) for part in cast("list[Any]", samples)]
    return cast("_Samples", parts if isinstance(samples, list) else tuple(parts))


def tensors_of(samples: Samples) -> list[Tensor]:
    """Return the tensors, in their order; of samples by index those of a few samples, and one with m rows.

    The latter has the targets where they are known, else zeros.
    """
    if isinstance(samples, ByIndex):
        targets = samples.targets
        return [*tensors_of(samples.shown), torch.zeros(len(samples.rows)) if targets is None else targets]
    found: list[Tensor] = []
    mapped(samples, lambda part: found.append(part) or part)  # type: ignore[func-returns-value]  # append returns None
    return found


def count(samples: Samples) -> int:
    """Return m, the number of rows."""
    if isinstance(samples, ByIndex):
        return len(samples.rows)
    return len(tensors_of(samples)[0])


def taken(samples: _Samples, rows: Tensor) -> _Samples:
    """Return some rows, as a batch; of samples by index, these samples."""
    if isinstance(samples, ByIndex):
        return cast("_Samples", samples.taken(rows.numpy()))
    return mapped(samples, lambda part: part[rows])


def arrays_of(samples: Samples) -> list[NDArray[Any]]:
    """Return the tensors as arrays; bfloat16, which NumPy does not have, as float32."""
    return [as_array(part) for part in tensors_of(samples)]


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array; bfloat16, which NumPy does not have, as float32."""
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array


def targets_of(samples: Samples) -> Tensor | None:
    """Return the targets: the last of a tuple or list, or what a dict has under one of the keys ``TARGETS``."""
    if isinstance(samples, ByIndex):
        return samples.targets
    key = _place_of_targets(samples)
    return None if key is None else samples[key]


def with_targets(samples: _Samples, targets: Tensor) -> _Samples:
    """Return the samples with other targets.

    Raises:
        ValueError: it does not show which of the tensors are the targets.
    """
    if isinstance(samples, ByIndex):
        return cast("_Samples", samples.with_targets(targets))
    key, parts = _place_of_targets(samples), cast(Any, samples)
    if key is None:
        raise ValueError("samples without targets")
    if isinstance(samples, dict):
        return cast("_Samples", {**parts, key: targets})
    return cast("_Samples", type(parts)([*parts[:-1], targets]))


def _place_of_targets(samples: Samples) -> Any:
    """Return the index or key of the targets; None where there is none."""
    if isinstance(samples, tuple | list) and len(samples) > 1:
        return -1 if isinstance(samples[-1], Tensor) else None
    known = [key for key in TARGETS if isinstance(samples, dict) and isinstance(samples.get(key), Tensor)]
    return known[0] if known else None
