"""A training loop in PyTorch, without Flower or processes, whose only part of Breakwater is a robust rule.

    python examples/torch_loop.py

Ten workers hold parts of one data set and send gradients. Three of them are Byzantine: they send the opposite of the
honest mean, five times as long. The loop runs with the mean, then with a robust rule.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from breakwater.aggregators import CoordinateMedian, Mean, NearestNeighbourMixing
from breakwater.attacks import FOE

WORKERS, BYZANTINE = 10, 3


def moons(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points on two interleaved half circles, shape (samples, 2), and on which of them each is, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    angle = torch.pi * (torch.rand(samples, generator=generator) + labels)
    centre = torch.stack([labels * 1.0, labels * 0.5], dim=1)
    noise = 0.1 * torch.randn(samples, 2, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], dim=1) + centre + noise, labels


def gradient(net: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of one worker as one vector, shape (d,)."""
    grads = torch.autograd.grad(cross_entropy(net(points), labels), list(net.parameters()))
    return torch.cat([part.flatten() for part in grads])


def train(rule: Callable[..., Tensor], steps: int = 200, lr: float = 2.0) -> float:
    """Train under attack, and return the accuracy on points that nobody has seen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    parts = list(zip(*(tensor.chunk(WORKERS) for tensor in moons(1000, seed=1)), strict=True))
    for _ in range(steps):
        honest = [gradient(net, points, labels) for points, labels in parts[: WORKERS - BYZANTINE]]
        rows = [*honest, *FOE(eps=5.0).vectors(honest, BYZANTINE)]
        step = rule(rows, f=BYZANTINE)  # was: torch.stack(rows).mean(dim=0)
        vector_to_parameters(parameters_to_vector(net.parameters()).detach() - lr * step, net.parameters())
    unseen, truth = moons(1000, seed=2)
    return float((net(unseen).argmax(dim=1) == truth).double().mean())


if __name__ == "__main__":
    print(f"mean               {train(Mean()):.1%}")
    print(f"median after mixing {train(CoordinateMedian(pre=(NearestNeighbourMixing(),))):.1%}")
