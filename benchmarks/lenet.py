"""A convolutional network of 431,080 parameters on images of 28 x 28 numbers, as a custom task for ``simulation.py``.

It is the network that ByzFL calls ``cnn_mnist``. The images are drawn at random: how long a gradient takes does not
depend on what they show, and no data folder is needed.
"""

import torch
from torch import Tensor, nn

SAMPLES = 4000


def images() -> tuple[Tensor, Tensor]:
    """Return images, shape (SAMPLES, 1, 28, 28), and classes, 0 to 9."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(SAMPLES, 1, 28, 28, generator=generator)
    return pixels, torch.randint(0, 10, (SAMPLES,), generator=generator)


class LeNet:
    """The task."""

    def model(self) -> nn.Module:
        """Return the network."""
        features = (nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2))
        return nn.Sequential(*features, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Return all images."""
        return images()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """Return a few of them."""
        pixels, classes = images()
        return pixels[:100], classes[:100]
