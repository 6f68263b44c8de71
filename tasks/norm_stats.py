"""Running statistics of a module's norm layers: kept out of training, computed for evaluation.

In training, batch norm uses the statistics of its batch. Its running means and variances get no gradient, so they are
no part of x: here they are as ``model()`` made them, and each use of the module leaves them so. In evaluation they are
a vector that is computed at x from batches of training data, see ``docs/tasks.md``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from strategies.method import Vector
from tasks.samples import as_array


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

    def _tensors(self) -> dict[str, Tensor]:
        """Return means and variances by their names in a state dict, in the order of the vector."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            for key in ("running_mean", "running_var"):
                found[f"{name}.{key}" if name else key] = getattr(layer, key)
        return found

    @property
    def size(self) -> int:
        """The length of the vector: two numbers a channel; 0 where the module has no such layers."""
        return sum(tensor.numel() for tensor in self._tensors().values())

    def by_name(self, vector: Vector) -> dict[str, Vector]:
        """Return the parts of a vector by their names in a state dict."""
        tensors = self._tensors()
        ends = np.cumsum([tensor.numel() for tensor in tensors.values()])
        parts = np.split(vector, ends[:-1])
        with np.errstate(over="ignore"):  # an attack may have destroyed the model
            return {name: part.astype(as_array(tensors[name]).dtype) for name, part in zip(tensors, parts, strict=True)}

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
        for name, part in self.by_name(vector).items():
            self._tensors()[name].copy_(torch.from_numpy(part))

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
                    total += np.concatenate([as_array(part).astype(np.float64) for part in self._tensors().values()])
                    batches += 1
            finally:
                for layer, momentum in zip(self.layers.values(), momenta, strict=True):
                    layer.momentum = momentum
        return total / batches
