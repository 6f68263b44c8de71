"""CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32 x 32 pixels in colour; CNN and residual networks.

Under the data folder the files are those that torchvision's ``CIFAR10`` downloads, ``cifar-10-batches-py/data_batch_1``
and so on, or one archive of NumPy's with fewer images, ``cifar10_subset.npz``. The batches are Python pickles, which
may run any code when they are read as usual. Here they are read without: names of Python objects in them are never
looked up. Only where neither is found is torchvision asked to download the batches.
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from foundation.text import first_line
from tasks.built_in import BuiltIn
from tasks.contract import Problem, Setting, TaskError
from tasks.files import FIX, read
from tasks.images import Bytes, download, load_images

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCHES = "cifar-10-batches-py"
TRAIN, TEST = tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch"
SUBSET = "cifar10_subset.npz"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of red, green and blue in the training pixels, scaled to [0, 1]."""
MARGIN = 4
"""Pixels by which a crop may be off the middle, in each direction."""

_IMAGE = (3, 32, 32)
_Part = tuple[Bytes, Bytes]
_AGAIN = "copy it again"


@dataclass(frozen=True, kw_only=True)
class Cifar10Task(BuiltIn):
    """Classification of CIFAR-10; pixels scaled to [0, 1], then each colour normalised by its mean and deviation.

    Args:
        model: ``cnn``, two 3x3 convolutions and a linear layer (d = 60,362), or a residual network in its form for
            CIFAR-10: ``resnet8`` (d = 75,290), ``resnet20`` (d = 269,722) or ``resnet18`` (d = 11,173,962).
        norm: of the residual networks, ``group`` (8 channels each) or ``batch``.
        augment: whether each training image is shifted by up to 4 pixels and mirrored at random, drawn anew each round.
        l2: weight of the regulariser (l2/2) ||x||^2.
        partition: who holds which training images; see ``tasks/partition.py``.
        dtype: of model and gradients.
        train_limit: use only that many training images, the first ones; None for all.
        norm_stats: with batch norm, where its running statistics come from, for evaluation and in the final model:
            "reference", which is the default, from training data; "aggregate": the medians of what clients answer;
            "local": each client has those of its own data, and the server none.

    Source: see ``tasks/vision.py`` for the models; crops and mirror images as in its paper.
    """

    has_images: ClassVar[bool] = True

    kind: Literal["cifar10"] = "cifar10"
    model: Literal["cnn", "resnet8", "resnet20", "resnet18"] = "resnet20"
    norm: Literal["group", "batch"] = "group"
    augment: bool = True
    l2: float = 0.0
    partition: str = "iid"
    dtype: Literal["float32", "float64"] = "float32"
    train_limit: int | None = None
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
            raise TaskError(f"CIFAR-10: no data folder is known; {FIX}")
        arrays = read_cifar10(setting.data_dir)
        return load_images("CIFAR-10", self, setting, arrays, normalised, augmented if self.augment else None)

    def module(self) -> "nn.Module":
        """Build the model."""
        from tasks.vision import resnet, small_cnn

        return small_cnn(3) if self.model == "cnn" else resnet(self.model, 3, self.norm)


def normalised(pixels: "Tensor") -> "Tensor":
    """Return pixels with mean 0 and deviation 1 in each colour, from such in [0, 1]; shape (b, 3, height, width)."""
    mean, deviation = (pixels.new_tensor(each).reshape(3, 1, 1) for each in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def augmented(images: "Tensor", rng: np.random.Generator) -> "Tensor":
    """Return the images, each shifted by up to ``MARGIN`` pixels with a black border, and mirrored half of the time.

    Args:
        images: shape (b, channels, height, width).
        rng: three numbers are drawn for each image.
    """
    from torch import from_numpy
    from torch.nn.functional import pad

    count, _, height, width = images.shape
    down, right = rng.integers(2 * MARGIN + 1, size=(2, count, 1))
    mirrored = rng.integers(2, size=(count, 1)) == 1
    columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + right
    rows = np.arange(height) + down
    # NumPy's rule for indices on both sides of a slice puts the channels last.
    of = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    image, row, column = (from_numpy(index) for index in of)
    return pad(images, (MARGIN,) * 4)[image, :, row, column].permute(0, 3, 1, 2).contiguous()


def read_cifar10(folder: Path) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Return training images (m, 3, 32, 32) and labels (m,), then those of the test, as bytes.

    Raises:
        TaskError: files are missing and cannot be downloaded, or one is not what its name says.
    """
    batches = [folder / BATCHES / name for name in (*TRAIN, TEST)]
    whole = all(path.is_file() for path in batches)
    if not whole and (folder / SUBSET).is_file():
        return _read_subset(folder / SUBSET)
    if not whole:
        download(folder, "CIFAR-10", "CIFAR10", BATCHES, (*TRAIN, TEST, "batches.meta"))
    *train, test = [read_batch(path) for path in batches]
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return images, labels, *test


def read_batch(path: Path) -> _Part:
    """Return images (m, 3, 32, 32) and labels (m,) of a pickled batch, without running anything that it names.

    Raises:
        TaskError: it is missing, or not such a batch.
    """
    content = read(path)
    try:
        batch = _Inert.load(content)
        (_, shape, kind, _, pixels), labels = batch[b"data"].state, batch[b"labels"]
        if kind.arguments[0] not in (b"u1", "u1"):
            raise ValueError("no bytes")
        return _checked(path, np.frombuffer(pixels, np.uint8).reshape(shape[0], *_IMAGE), np.array(labels))
    except TaskError:
        raise
    except Exception as error:  # bytes from anywhere, read as a pickle: anything may be raised
        raise TaskError(
            f"data file {path}: not a batch of CIFAR-10, or cut off ({first_line(error)}); {_AGAIN}"
        ) from None


class _Inert:
    """Takes the place of every Python object that a pickled batch names: it keeps what it is given, and runs nothing.

    A batch names NumPy's array and dtype, and how an array is put together. What counts are the arguments of the dtype,
    and the state of the array: version, shape, dtype, order, bytes.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @classmethod
    def load(cls, content: bytes) -> Any:
        class Reader(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) not in _NAMED:
                    raise pickle.UnpicklingError(f"it names {module}.{name}")
                return cls

        return Reader(io.BytesIO(content), encoding="bytes").load()


_NAMED = {
    *((f"{core}.multiarray", "_reconstruct") for core in ("numpy.core", "numpy._core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def _read_subset(path: Path) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Return the same as ``read_cifar10`` from an archive with images of shape (m, 32, 32, 3)."""
    names = "x_train", "y_train", "x_test", "y_test"
    try:
        with np.load(io.BytesIO(read(path)), allow_pickle=False) as archive:
            train, train_labels, test, test_labels = (archive[name] for name in names)
    except TaskError:
        raise
    except Exception as error:  # bytes from anywhere, read as a zip file: anything may be raised
        says = f"not an archive of {', '.join(names)} ({first_line(error)})"
        raise TaskError(f"data file {path}: {says}; {_AGAIN}") from None
    channels_first = [np.moveaxis(images, -1, 1) if images.ndim == 4 else images for images in (train, test)]
    return *_checked(path, channels_first[0], train_labels), *_checked(path, channels_first[1], test_labels)


def _checked(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> _Part:
    """Return images and labels as bytes.

    Raises:
        TaskError: they are no images of CIFAR-10 with their labels.
    """
    fits = images.dtype == np.uint8 and images.shape[1:] == _IMAGE and labels.shape == images.shape[:1] and len(labels)
    if not fits or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        found = f"images of shape {images.shape} ({images.dtype}), labels of shape {labels.shape} ({labels.dtype})"
        raise TaskError(
            f"data file {path}: {found}; must be m images of 32 x 32 bytes in 3 colours, labels 0 to 9: {_AGAIN}"
        )
    return np.ascontiguousarray(images), labels.astype(np.uint8)
