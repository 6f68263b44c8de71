"""A custom task whose images stay in files: they are read by index, and mirrored and shifted anew in each round."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

CLASSES = ["cat", "dog"]
"""Fixed: a client may lack a class."""


class Images(Dataset[tuple[Tensor, int]]):
    """The images that ``labels.csv`` in a folder lists, as rows FILE,CLASS without a header."""

    def __init__(self, folder: Path, size: int, *, augment: bool) -> None:
        with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        self.files = [folder / name for name, _ in rows]
        self.targets = [CLASSES.index(name) for _, name in rows]
        self.size, self.augment = size, augment

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image of shape (3, size, size) and its class. Random draws come from torch's global generator."""
        with Image.open(self.files[index]) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").resize((self.size, self.size))))
        image_ = pixels.permute(2, 0, 1) / 255 - 0.5
        if self.augment:
            image_ = image_.flip(2) if torch.rand(()) < 0.5 else image_
            image_ = image_.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), dims=(1, 2))
        return image_, self.targets[index]


class CatsAndDogs:
    """Each client's images are in its own folder, beside ``labels.csv``; needs ``partition = "own"``."""

    workers = 2  # processes that read images while gradients are computed
    test_share = 0.1

    def __init__(self, size: int = 32) -> None:
        self.size = size

    def model(self) -> nn.Module:
        """Return a small CNN."""
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(256, len(CLASSES)))

    def local_data(self, folder: Path) -> Images:
        """Return the client's images; none is read before it is needed."""
        return Images(folder, self.size, augment=True)

    def test_data(self, folder: Path | None) -> Images | None:
        """Return the server's test set, where it has one."""
        return Images(folder, self.size, augment=False) if folder else None
