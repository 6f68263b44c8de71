"""Models for small images: a convolutional network, and the residual networks in their form for CIFAR-10.

Importing it imports torch.

Source: He, Zhang, Ren, Sun 2016 (arXiv 1512.03385): section 4.2 and figure 4 for 8 and 20 layers. ``resnet18`` has the
widths and blocks of their ImageNet network, with a first convolution of 3x3, stride 1, and without max-pooling.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["group", "batch"]
Residual = Literal["resnet8", "resnet20", "resnet18"]

GROUP = 8
"""Channels that ``norm = "group"`` normalises together."""
_FORMS = {
    "resnet8": ((16, 32, 64), 1, False),
    "resnet20": ((16, 32, 64), 3, False),
    "resnet18": ((64, 128, 256, 512), 2, True),
}
"""Channels of each stage; blocks of a stage; whether a shortcut that changes the shape is a convolution."""


def small_cnn(channels: int, classes: int = 10) -> nn.Sequential:
    """Return two 3x3 convolutions to 32 and 64 channels, each with ReLU and 2x2 max-pooling, and a linear layer.

    Args:
        channels: of the images, which are 32 x 32 pixels.
        classes: outputs.
    """
    convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
    first = (convolution(channels, 32), nn.ReLU(), nn.MaxPool2d(2))
    second = (convolution(32, 64), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64 * 8 * 8, classes))


def resnet(model: Residual, channels: int, norm: Norm, classes: int = 10) -> nn.Sequential:
    """Return a residual network for images of any size.

    Args:
        model: which one.
        channels: of the images.
        norm: ``group``, groups of 8 channels; ``batch``, batch norm.
        classes: outputs.
    """
    widths, blocks, projected = _FORMS[model]
    width = widths[0]
    layers: list[nn.Module] = [_convolution(channels, width), _norm(norm, width), nn.ReLU()]
    for stage in widths:
        for block in range(blocks):
            stride = 2 if block == 0 and stage > widths[0] else 1
            layers.append(_Block(width, stage, stride, norm, projected))
            width = stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class _Block(nn.Module):
    """Two 3x3 convolutions, added to a shortcut.

    A shortcut that changes the shape takes every second pixel and fills up channels with zeros (the paper's option A),
    or, ``projected``, is a 1x1 convolution with its norm (option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, projected: bool) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(inputs, outputs, stride), _norm(norm, outputs)
        self.second, self.second_norm = _convolution(outputs, outputs), _norm(norm, outputs)
        self.stride, self.more = stride, outputs - inputs
        self.shortcut: nn.Module = nn.Identity()
        if projected and self.more:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, stride, size=1), _norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.more and isinstance(self.shortcut, nn.Identity):
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(y + self.shortcut(x))


def _convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _norm(norm: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // GROUP, channels)
