"""Network, data, training and test, as in any app with PyTorch; nothing here is specific to Byzantine clients."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

TEST = 300
"""The first so many images measure the accuracy at the server; nobody trains on them."""


class Net(nn.Module):
    """A small convolutional network for images of 8 x 8 pixels in ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes, shape (N, 10), of images of shape (N, 1, 8, 8)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        scores: Tensor = self.fc(x.flatten(1))
        return scores


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return all images, shape (1797, 1, 8, 8), and their digits, in an order that is the same everywhere."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return pixels[order], torch.tensor(labels)[order]


def load_data(partition: int, partitions: int, batch_size: int) -> tuple[DataLoader[Tensor], DataLoader[Tensor]]:
    """Return the images of one client, four fifths to train on and one fifth to validate."""
    images, labels = (part[TEST + partition :: partitions] for part in digits())
    held = len(labels) // 5
    order = torch.Generator().manual_seed(partition)
    train = DataLoader(TensorDataset(images[held:], labels[held:]), batch_size, shuffle=True, generator=order)
    return train, DataLoader(TensorDataset(images[:held], labels[:held]), batch_size)


def load_test_data() -> DataLoader[Tensor]:
    """Return the images of the server."""
    images, labels = digits()
    return DataLoader(TensorDataset(images[:TEST], labels[:TEST]), batch_size=TEST)


def train(net: nn.Module, data: DataLoader[Tensor], epochs: int, lr: float) -> float:
    """Train the network, and return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses: list[float] = []
    for _ in range(epochs):
        losses.clear()
        for images, labels in data:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: nn.Module, data: DataLoader[Tensor]) -> tuple[float, float]:
    """Return the mean loss and the accuracy of the network."""
    net.eval()
    loss, correct, total = 0.0, 0, 0
    for images, labels in data:
        scores = net(images)
        loss += functional.cross_entropy(scores, labels, reduction="sum").item()
        correct += int((scores.argmax(dim=1) == labels).sum())
        total += len(labels)
    return loss / total, correct / total
