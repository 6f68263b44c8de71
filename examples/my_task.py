"""Example of a custom task: a small network that separates two interleaved moons.

Use it in a config that lies in the same folder::

    [task]
    kind = "custom"
    path = "my_task.py:TwoMoons"
    options = { samples = 2000, noise = 0.1 }
    partition = "dirichlet(1.0)"
"""

import torch
from torch import Tensor, nn


class TwoMoons:
    """Two classes of points in the plane. The options of the config are the arguments of the constructor."""

    def __init__(self, samples: int = 2000, noise: float = 0.1, hidden: int = 16) -> None:
        self.samples, self.noise, self.hidden = samples, noise, hidden

    def model(self) -> nn.Module:
        """Return the module; its parameters become the vector x that the federation trains."""
        return nn.Sequential(nn.Linear(2, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 2))

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets), one sample per row; every process must get the same."""
        return self.moons(seed=0)

    def test_data(self) -> tuple[Tensor, Tensor]:
        """Return the samples that accuracy is measured on. Without this method: the training data."""
        return self.moons(seed=1)

    def moons(self, seed: int) -> tuple[Tensor, Tensor]:
        """Draw the points with a separate generator, so that nothing depends on what ran before."""
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(self.samples) % 2
        angle = torch.pi * (torch.rand(self.samples, generator=generator) + targets)
        centre = torch.stack([targets * 1.0, targets * 0.5], dim=1)
        noise = self.noise * torch.randn(self.samples, 2, generator=generator)
        return torch.stack([angle.cos(), angle.sin()], dim=1) + centre + noise, targets
