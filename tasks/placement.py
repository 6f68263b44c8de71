"""A module's place: the device it computes on, and what moves between it and the vectors of the CPU. Imports torch."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from foundation.errors import ConfigError
from strategies.method import Vector
from tasks.compute import Compute
from tasks.samples import Samples, mapped

_CUBLAS = ":4096:8"
"""With this much workspace the matrix products of cuBLAS are deterministic."""


class Placement:
    """Where a module computes.

    Args:
        compute: device and precision.
        dtype: of the parameters.

    Raises:
        ConfigError: this machine does not have the device, or the precision is none of this type; one line.
    """

    def __init__(self, compute: Compute, dtype: str) -> None:
        self.device = compute.torch_device()
        self.on_cpu = self.device.type == "cpu"
        self._pinned = self.device.type == "cuda"
        self._bf16 = compute.precision == "bf16"
        if self._bf16 and dtype != "float32":
            fix = 'use dtype = "float32", or the precision float32'
            raise ConfigError(f"precision bf16: the model's parameters are {dtype}; {fix}")
        if self.device.type == "mps" and dtype == "float64":
            raise ConfigError("device mps: has no float64, which is the model's type; use float32 or the device cpu")
        if self._pinned:
            _settle_cuda(self.device, compute.memory)

    def __str__(self) -> str:
        """Return device and precision, for logs."""
        name = f" ({torch.cuda.get_device_name(self.device)})" if self._pinned else ""
        return f"{self.device}{name}{', bf16' if self._bf16 else ''}"

    def autocast(self) -> AbstractContextManager[object]:
        """Within: forward passes compute with the precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def generators(self) -> list[torch.Generator]:
        """Return the device's generators, beside those of the CPU and of CUDA."""
        return [torch.mps._get_default_mps_generator()] if self.device.type == "mps" else []

    def moved(self, batches: Iterable[Samples]) -> Iterable[Samples]:
        """Return the batches on the device.

        There, kernels run while the CPU goes on: the next batch is made, pinned and on its way while this one computes.
        """
        return batches if self.on_cpu else self._moved(batches)

    def _moved(self, batches: Iterable[Samples]) -> Iterator[Samples]:
        for batch in batches:
            yield mapped(batch, self._sent)

    def _sent(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._pinned else tensor).to(self.device, non_blocking=True)

    def host(self, like: Tensor) -> Tensor:
        """Return an uninitialised tensor on the CPU, pinned for CUDA, of the shape and type of another."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pinned)

    def fetched(self, tensor: Tensor) -> Vector:
        """Return a tensor as a fresh array. One copy: an array of a device's tensor is in the pinned memory itself."""
        if self.on_cpu:
            copy: Vector = tensor.numpy().copy()
            return copy
        array: Vector = self.host(tensor).copy_(tensor).numpy()
        return array


def _settle_cuda(device: torch.device, memory: float | None) -> None:
    """Let CUDA compute by deterministic kernels where torch has them, in some share of the device's memory."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)  # read at the first matrix product
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch does not type it
    if memory is not None:
        torch.cuda.set_per_process_memory_fraction(memory, device)
