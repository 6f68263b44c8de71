"""Samples per second of a worker's gradients beside the same loop in plain PyTorch, on the CPU or a GPU.

Both sides draw a minibatch of images that are kept as bytes, normalise it, and compute the gradient of the mean
cross-entropy, with one module each and one CPU thread. Ours also takes the model from a NumPy vector and returns the
gradient as one. Both points of a difference count: a minibatch of b at two points is 2 b samples. A turn measures one
side after the other; the median turn of each counts. Images are random numbers, so no data set is needed.

    python -m benchmarks.training [--device DEVICE] [--precision TYPE] [--json FILE] [--quick]
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bench import Result, arguments, publish
from strategies.method import begin
from tasks.cifar10 import Cifar10Task, normalised
from tasks.compute import Compute, computing, parse_device, parse_precision
from tasks.contract import Setting
from tasks.images import load_images
from tasks.mnist import MnistTask
from tasks.placement import Placement
from tasks.torch_model import TorchProblem

IMAGES = 2_000
Step = Callable[[], object]


def pictures(channels: int, pixels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return random images (m, channels, pixels, pixels) and labels (m,), as bytes."""
    rng = np.random.default_rng(0)
    size = (IMAGES, channels, pixels, pixels)
    return rng.integers(256, size=size, dtype=np.uint8), rng.integers(10, size=IMAGES, dtype=np.uint8)


def scaled(pixels: Tensor) -> Tensor:
    """Return grey pixels from [0, 1] with mean 0 and deviation 1, as the task mnist does."""
    return (pixels - 0.1307) / 0.3081


def ours(problem: TorchProblem, batch: int, points: int) -> Step:
    """Return what computes a worker's minibatch gradients at some points."""
    oracle, rng = problem.oracle(0), np.random.default_rng(1)
    at = [problem.initial() for _ in range(points)]
    begin(oracle, lambda: np.random.default_rng(2))
    return lambda: oracle.minibatch_gradients(at, batch, rng)


def plain(module: nn.Module, form: "Form", place: Placement, batch: int, points: int) -> Step:
    """Return what computes the same in plain PyTorch, and waits for the device."""
    images, labels = (torch.tensor(part) for part in pictures(form.channels, form.pixels))
    rng, targets = np.random.default_rng(1), labels.long()

    def step() -> None:
        rows = torch.from_numpy(rng.choice(IMAGES, batch, replace=False))
        inputs, wanted = form.prepare(images[rows].float() / 255).to(place.device), targets[rows].to(place.device)
        for _ in range(points):
            module.zero_grad()
            with place.autocast():
                loss = nn.functional.cross_entropy(module(inputs), wanted)
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)

    return step


@dataclass(frozen=True)
class Form:
    """One model with its images.

    Args:
        name: for the table.
        spec: the task that builds the model.
        channels: of an image.
        pixels: on each side of it.
        prepare: what the task does to pixels in [0, 1].
    """

    name: str
    spec: MnistTask | Cifar10Task
    channels: int
    pixels: int
    prepare: Callable[[Tensor], Tensor]


FORMS = (
    Form("cnn of mnist", MnistTask(model="cnn"), 1, 28, scaled),
    Form("resnet18, GroupNorm", Cifar10Task(model="resnet18", augment=False), 3, 32, normalised),
)


def measured(form: Form, compute: Compute, batch: int, points: int, turns: int) -> Result:
    """Return samples per second of ours and of plain PyTorch."""
    data = pictures(form.channels, form.pixels)
    with computing(compute):
        problem: Any = load_images(form.name, form.spec, Setting(clients=1, batch=batch), (*data, *data), form.prepare)
    place = problem.model.place
    module = form.spec.module().to(place.device)
    steps = {"ours": ours(problem, batch, points), "plain": plain(module, form, place, batch, points)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: batch * points / statistics.median(times) for name, times in seconds.items()}
    at = "one point" if points == 1 else f"{points} points"
    return Result(
        name=f"{form.name}, b = {batch}, {at}, {place}",
        value=rates["ours"],
        unit="samples/s",
        peer="plain PyTorch",
        peer_value=rates["plain"],
        ratio=rates["ours"] / rates["plain"],
    )


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--device", type=parse_device, default="cpu", help="device (default: %(default)s)")
    parser.add_argument("--precision", type=parse_precision, default="float32", help="precision (default: %(default)s)")
    options = parser.parse_args()
    compute = Compute(options.device, options.precision)
    on_cpu = compute.torch_device().type == "cpu"
    turns = {"cnn of mnist": 15 if options.quick else 200, "resnet18, GroupNorm": 3 if options.quick else 15}
    results = []
    for form in FORMS:
        batch = 16 if on_cpu and form.channels == 3 else 128
        for points in (1, 2):
            results.append(measured(form, compute, batch, points, turns[form.name] * (1 if on_cpu else 5)))
    publish(results, options.json)


if __name__ == "__main__":
    main()
