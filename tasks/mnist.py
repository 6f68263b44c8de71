"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28 pixels; a perceptron or a small CNN.

The files are looked for under the data folder as torchvision lays them out (``MNIST/raw/...-ubyte``, packed as ``.gz``
or not) and read here: torchvision takes 5 s to import in every process, reads only unpacked files, and would unpack
into a folder that may be read-only. Only where files are missing is torchvision asked to download them.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.text import first_line
from tasks.contract import Problem, Setting, TaskError, check_l2_and_dtype
from tasks.files import MEND, read
from tasks.partition import check_partition

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MEAN, DEVIATION = 0.1307, 0.3081
"""Of the training pixels, scaled to [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MnistTask:
    """Classification of MNIST; pixels scaled to [0, 1], then normalised by their mean 0.1307 and deviation 0.3081.

    Args:
        model: ``mlp``, one hidden ReLU layer (d = 50,890 with 64 units), or ``cnn``: a 3x3 convolution to 6 channels,
            ReLU, 2x2 max-pool, linear (d = 11,830).
        hidden: units of the hidden layer of ``mlp``.
        l2: weight of the regulariser (l2/2) ||x||^2.
        partition: who holds which training images; see ``tasks/partition.py``.
        dtype: of model and gradients.
        train_limit: use only that many training images, the first ones; None for all.

    Source: the CNN is LightNet of RoSDHB's experiments (arXiv 2508.17129).
    """

    kind: Literal["mnist"] = "mnist"
    model: Literal["mlp", "cnn"] = "mlp"
    hidden: int = 64
    l2: float = 0.0
    partition: str = "iid"
    dtype: Literal["float32", "float64"] = "float32"
    train_limit: int | None = None
    tested: ClassVar[bool] = True
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.model not in ("mlp", "cnn"):
            raise ValueError(f'model = "{self.model}": must be "mlp" or "cnn"')
        if self.hidden < 1:
            raise ValueError(f"hidden = {self.hidden}: must be at least 1")
        check_l2_and_dtype(self.l2, self.dtype)
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit = {self.train_limit}: must be at least 1")
        check_partition(self.partition)

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports."""
        return ("torch", "threadpoolctl")

    def load(self, setting: Setting) -> Problem:
        """Read the images, or have them downloaded.

        Raises:
            TaskError: there are no files and no way to get them; a file is broken; more workers than images; no torch.
        """
        if setting.data_dir is None:
            raise TaskError(f"MNIST: no data folder is known; {MEND}")
        images, labels, test_images, test_labels = read_mnist(setting.data_dir)
        try:
            import torch

            from tasks.torch_model import TorchTask
        except ImportError as error:
            raise TaskError(f"MNIST needs torch ({error}); install it with `make setup` or the extra `torch`") from None

        dtype = getattr(torch, self.dtype)

        def prepare(pixels: "Tensor") -> "Tensor":
            return (pixels.to(dtype) / 255 - MEAN) / DEVIATION

        limit = self.train_limit
        return TorchTask(
            model=self._module,
            # Kept as bytes: as float32 every process would hold 220 MB.
            train=(torch.tensor(images[:limit]).unsqueeze(1), torch.tensor(labels[:limit], dtype=torch.int64)),
            test=(torch.tensor(test_images).unsqueeze(1), torch.tensor(test_labels, dtype=torch.int64)),
            flip=lambda labels: 9 - labels,
            prepare=prepare,
            l2=self.l2,
            dtype=self.dtype,
            partition=self.partition,
        ).load(setting)

    def _module(self) -> "nn.Module":
        from torch import nn

        if self.model == "cnn":
            return nn.Sequential(
                nn.Conv2d(1, 6, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1176, 10)
            )
        return nn.Sequential(nn.Flatten(), nn.Linear(784, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))


def read_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return training images (m, 28, 28) and labels (m,), then those of the test, as bytes.

    Raises:
        TaskError: a file is missing and cannot be downloaded, or is not what its name says.
    """
    raw = folder / "MNIST" / "raw"
    if not all(_present(raw, name) for name in FILES):
        _download(folder)
    train_images, train_labels, test_images, test_labels = (_read_idx(raw, name) for name in FILES)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise TaskError(
                f"MNIST in {raw}: images of shape {images.shape}, labels of shape {labels.shape} up to "
                f"{labels.max(initial=0)}; must be (m, 28, 28), (m,) and up to 9: copy the files again"
            )
    return train_images, train_labels, test_images, test_labels


def _present(raw: Path, name: str) -> Path | None:
    """Return the file of that name, unpacked or not, if there is one."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _read_idx(raw: Path, name: str) -> NDArray[np.uint8]:
    """Return the array of an idx file.

    Its bytes: 0, 0, 8 for uint8, the number of axes, their lengths as big-endian uint32 each, then the data.
    """
    path = _present(raw, name) or raw / name
    content = read(path)
    if len(content) >= 4 and content[:3] == b"\0\0\x08":
        end = 4 + 4 * content[3]
        shape = tuple(np.frombuffer(content[4:end], ">u4").tolist()) if len(content) >= end else ()
        if shape and math.prod(shape) == len(content) - end:
            return np.frombuffer(content, np.uint8, offset=end).reshape(shape)
    raise TaskError(f"data file {path}: not an idx file of bytes, or cut off; copy it again")


def _download(folder: Path) -> None:
    """Have torchvision download MNIST into the data folder.

    Into a folder of its own first: several processes may be at it, and none may see another's half-written files.
    """
    missing = f"MNIST is not in {folder / 'MNIST' / 'raw'}"
    if not os.access(folder, os.W_OK):
        raise TaskError(f"{missing}, and the folder cannot be written to; {MEND}")
    try:
        from torchvision.datasets import MNIST
    except ImportError as error:
        raise TaskError(
            f"{missing}, and torchvision is not there to download it ({error}); install it with `make setup` or the "
            "extra `torch`, or put the files there"
        ) from None
    with tempfile.TemporaryDirectory(dir=folder, prefix="mnist-") as scratch:
        try:
            MNIST(scratch, download=True)
        except (OSError, RuntimeError) as error:
            reason = first_line(error) or type(error).__name__
            raise TaskError(f"{missing}, and its download failed ({reason}); {MEND}") from None
        target = folder / "MNIST" / "raw"
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            os.replace(Path(scratch) / "MNIST" / "raw" / name, target / name)
