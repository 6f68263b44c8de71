"""Running statistics of a module's norm layers: kept out of training, computed for evaluation.

In training, batch norm uses the statistics of its batch. Its running means and variances get no gradient, so they are
no part of x: here they are as ``model()`` made them, and each use of the module leaves them so. In evaluation they are
a vector that is computed at x from batches of training data: of the server ("reference"), of all clients, whose
answers the server combines ("aggregate"), or of each worker for itself ("local"); see ``docs/tasks.md``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from strategies.method import Vector
from tasks.samples import as_array

NormSource = Literal["reference", "aggregate", "local"]
"""Whose training data running statistics are computed from."""


class NormStats:
    """The running statistics of those layers that use their batch's in training.

    A layer that ``model()`` puts into evaluation mode computes with its running statistics in training too: it is
    frozen, and none of these.

    Args:
        module: whose layers.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = nn.modules.batchnorm._NormBase
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, norms) and layer.training}
        self.layers = {name: layer for name, layer in layers.items() if layer.running_mean is not None}
        self.by_batch = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers.values())
        """Whether the output for a sample depends on the batch that it is in."""
        self._module = module

    def _tensors(self) -> list[Tensor]:
        """Return means and variances in the order of the vector."""
        return [getattr(layer, key) for layer in self.layers.values() for key in ("running_mean", "running_var")]

    @property
    def size(self) -> int:
        """The length of the vector: two numbers a channel; 0 where the module has no such layers."""
        return sum(tensor.numel() for tensor in self._tensors())

    @property
    def variances(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which numbers of the vector are variances, shape (``size``,); the others are means."""
        kinds = [np.full(tensor.numel(), bool(place % 2)) for place, tensor in enumerate(self._tensors())]
        return np.concatenate(kinds) if kinds else np.zeros(0, bool)

    def _parts(self, vector: Vector) -> list[Vector]:
        """Return the parts of a vector, with the types that the layers have."""
        tensors = self._tensors()
        parts = np.split(vector, np.cumsum([tensor.numel() for tensor in tensors])[:-1])
        with np.errstate(over="ignore"):  # an attack may have destroyed the model
            return [part.astype(as_array(tensor).dtype) for part, tensor in zip(parts, tensors, strict=True)]

    def by_name(self, vector: Vector) -> dict[str, Vector]:
        """Return the parts of a vector by their names in a state dict, which has a layer under all of its names."""
        places = {tensor.data_ptr(): part for tensor, part in zip(self._tensors(), self._parts(vector), strict=True)}
        state = self._module.state_dict()
        return {name: places[tensor.data_ptr()] for name, tensor in state.items() if tensor.data_ptr() in places}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within: the layers may change their statistics; afterwards these are as before."""
        buffers = [buffer for layer in self.layers.values() for buffer in layer.buffers(recurse=False)]
        saved = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(buffers, saved, strict=True):
                    buffer.copy_(before)

    def write(self, vector: Vector) -> None:
        """Give the layers these statistics; call it within ``kept``."""
        for tensor, part in zip(self._tensors(), self._parts(vector), strict=True):
            tensor.copy_(torch.from_numpy(part))

    @torch.no_grad()
    def measured(self, steps: Iterator[Callable[[], object]]) -> Vector:
        """Return the mean of the statistics of some batches, float64, shape (``size``,).

        Args:
            steps: each pushes one batch through the module, in training mode.
        """
        total, batches = np.zeros(self.size), 0
        with self.kept():
            momenta = [layer.momentum for layer in self.layers.values()]
            try:
                for step in steps:
                    for layer in self.layers.values():
                        layer.reset_running_stats()
                        layer.momentum = 1.0  # of this batch alone
                    step()
                    total += np.concatenate([as_array(part).astype(np.float64) for part in self._tensors()])
                    batches += 1
            finally:
                for layer, momentum in zip(self.layers.values(), momenta, strict=True):
                    layer.momentum = momentum
        return total / batches
