"""What the image tasks share: their data become a torch problem, and torchvision downloads missing files."""

import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from foundation.text import first_line
from tasks.contract import Problem, Setting, TaskError
from tasks.files import FIX

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.norm_stats import NormSource

Bytes = NDArray[np.uint8]


class ImageSpec(Protocol):
    """The fields of an image task that ``load_images`` reads."""

    @property
    def l2(self) -> float: ...
    @property
    def dtype(self) -> str: ...
    @property
    def partition(self) -> str: ...
    @property
    def train_limit(self) -> int | None: ...
    @property
    def norm_stats(self) -> "NormSource | None": ...

    def module(self) -> "nn.Module":
        """Build the model."""


def load_images(
    title: str,
    spec: ImageSpec,
    setting: Setting,
    arrays: Sequence[Bytes],
    normalise: "Callable[[Tensor], Tensor]",
    augment: "Callable[[Tensor, np.random.Generator], Tensor] | None" = None,
) -> Problem:
    """Return the problem of an image task.

    Args:
        title: of the data set, for messages.
        spec: the task.
        setting: of the federation.
        arrays: training images (m, channels, height, width) and labels (m,), then those of the test, as bytes.
        normalise: applied to pixels scaled to [0, 1].
        augment: see ``TorchTask``; its inputs are bytes.

    Raises:
        TaskError: more workers than images; batches too small for batch norm; no torch.
    """
    try:
        import torch

        from tasks.torch_model import TorchTask
    except ImportError as error:
        raise TaskError(f"{title} needs torch ({error}); install it with `make setup` or the extra `torch`") from None

    dtype = getattr(torch, spec.dtype)

    def prepare(pixels: "Tensor") -> "Tensor":
        return normalise(pixels.to(dtype) / 255)

    def pair(images: Bytes, labels: Bytes) -> "tuple[Tensor, Tensor]":
        # Pixels are kept as bytes: as float32 every process would hold 220 MB of MNIST, 740 MB of CIFAR-10.
        return torch.tensor(images), torch.tensor(labels, dtype=torch.int64)

    train, test = pair(*(part[: spec.train_limit] for part in arrays[:2])), pair(*arrays[2:])
    return TorchTask(
        model=spec.module,
        train=train,
        test=test,
        prepare=prepare,
        augment=augment,
        flip=lambda labels: 9 - labels,
        l2=spec.l2,
        dtype=spec.dtype,
        partition=spec.partition,
        norm_source=spec.norm_stats or "reference",
    ).load(setting)


def download(folder: Path, title: str, dataset: str, place: str, files: Sequence[str]) -> None:
    """Have torchvision download a data set into the data folder.

    First into a temporary folder: several processes may download at once, and none may see half-written files.

    Args:
        folder: the data folder.
        title: of the data set, for messages.
        dataset: torchvision's class.
        place: where that class puts the files, relative to its root.
        files: their names.

    Raises:
        TaskError: the folder cannot be written to; no torchvision; no internet.
    """
    target = folder / place
    missing = f"{title} is not in {target}"
    if not os.access(folder, os.W_OK):
        raise TaskError(f"{missing}, and the folder cannot be written to; {FIX}")
    try:
        fetch = getattr(import_module("torchvision.datasets"), dataset)
    except ImportError as error:
        fix = "install it with `make setup` or the extra `torch`, or put the files there"
        raise TaskError(f"{missing}, and torchvision is missing to download it ({error}); {fix}") from None
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{dataset.lower()}-") as scratch:
        try:
            fetch(scratch, download=True)
        except (OSError, RuntimeError) as error:
            reason = first_line(error) or type(error).__name__
            raise TaskError(f"{missing}, and its download failed ({reason}); {FIX}") from None
        target.mkdir(parents=True, exist_ok=True)
        for name in files:
            os.replace(Path(scratch) / place / name, target / name)
