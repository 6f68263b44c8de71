"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28 pixels; a perceptron, a small CNN or
a residual network.

The files are looked for under the data folder as torchvision lays them out (``MNIST/raw/...-ubyte``, packed as ``.gz``
or not) and read here: torchvision takes 5 s to import in every process, reads only unpacked files, and would unpack
into a folder that may be read-only. Only where files are missing is torchvision asked to download them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from tasks.built_in import BuiltIn
from tasks.contract import Problem, Setting, TaskError
from tasks.files import FIX, read
from tasks.images import Bytes, download, load_images

if TYPE_CHECKING:
    from torch import nn

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MEAN, DEVIATION = 0.1307, 0.3081
"""Of the training pixels, scaled to [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MnistTask(BuiltIn):
    """Classification of MNIST; pixels scaled to [0, 1], then normalised by their mean 0.1307 and deviation 0.3081.

    Args:
        model: ``mlp``, one hidden ReLU layer (d = 50,890 with 64 units), or ``cnn``: a 3x3 convolution to 6 channels,
            ReLU, 2x2 max-pool, linear (d = 11,830); or a residual network of ``tasks/vision.py``.
        hidden: units of the hidden layer of ``mlp``.
        l2: weight of the regulariser (l2/2) ||x||^2.
        partition: who holds which training images; see ``tasks/partition.py``.
        dtype: of model and gradients.
        train_limit: use only that many training images, the first ones; None for all.
        norm: of the residual networks, ``group`` (8 channels each) or ``batch``.
        norm_stats: with batch norm, where its running statistics come from, for evaluation and in the final model:
            "reference", which is the default, from training data; "aggregate": the medians of what clients answer;
            "local": each client has those of its own data, and the server none.

    Source: the CNN is LightNet of RoSDHB's experiments (arXiv 2508.17129).
    """

    has_images: ClassVar[bool] = True

    kind: Literal["mnist"] = "mnist"
    model: Literal["mlp", "cnn", "resnet8", "resnet20", "resnet18"] = "mlp"
    hidden: int = 64
    l2: float = 0.0
    partition: str = "iid"
    dtype: Literal["float32", "float64"] = "float32"
    train_limit: int | None = None
    norm: Literal["group", "batch"] = "group"
    norm_stats: Literal["reference", "aggregate", "local"] | None = None

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports."""
        return ("torch", "threadpoolctl")

    def load(self, setting: Setting) -> Problem:
        """Read the images, or have them downloaded.

        Raises:
            TaskError: there are no files and no way to get them; a file is broken; more workers than images; no torch.
        """
        if setting.data_dir is None:
            raise TaskError(f"MNIST: no data folder is known; {FIX}")
        images, labels, test_images, test_labels = read_mnist(setting.data_dir)
        arrays = images[:, None], labels, test_images[:, None], test_labels
        return load_images("MNIST", self, setting, arrays, lambda pixels: (pixels - MEAN) / DEVIATION)

    def module(self) -> "nn.Module":
        """Build the model."""
        from torch import nn

        if self.model == "mlp":
            return nn.Sequential(nn.Flatten(), nn.Linear(784, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10))
        if self.model == "cnn":
            convolution = nn.Conv2d(1, 6, kernel_size=3, padding=1)
            return nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1176, 10))
        from tasks.vision import resnet

        return resnet(self.model, 1, self.norm)


def read_mnist(folder: Path) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Return training images (m, 28, 28) and labels (m,), then those of the test, as bytes.

    Raises:
        TaskError: a file is missing and cannot be downloaded, or is not what its name says.
    """
    raw = folder / "MNIST" / "raw"
    if not all(_present(raw, name) for name in FILES):
        download(folder, "MNIST", "MNIST", "MNIST/raw", FILES)
    train_images, train_labels, test_images, test_labels = (_read_idx(raw, name) for name in FILES)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            found = f"images of shape {images.shape}, labels of shape {labels.shape} up to {labels.max(initial=0)}"
            raise TaskError(f"MNIST in {raw}: {found}; must be (m, 28, 28), (m,) and up to 9: copy the files again")
    return train_images, train_labels, test_images, test_labels


def _present(raw: Path, name: str) -> Path | None:
    """Return the file of that name, unpacked or not, if there is one."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _read_idx(raw: Path, name: str) -> Bytes:
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
