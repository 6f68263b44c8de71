"""Images with a trigger: what a backdoor attack trains on, and how often a model falls for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.random import Generator

from strategies.method import Oracle, Vector, full_gradients
from strategies.vectors import norm


@dataclass(frozen=True)
class Trigger:
    """A patch in the last corner of an image, and the label that comes with it.

    Args:
        size: q, its side in pixels.
        target: the label, y_t.
        share: rho, the share of a minibatch that has it.
        anomaly: a, see ``PoisonedOracle``.
        quarter: the part of the patch that is planted, 0 .. 3 row by row; None for all of it.
    """

    size: int
    target: int
    share: float
    anomaly: float = 0.0
    quarter: int | None = None

    def stamp(self, images: Any) -> Any:
        """Return copies of images with the patch, at their largest value.

        Args:
            images: an array or tensor, the last two axes of which are rows and columns.
        """
        stamped = images.clone() if hasattr(images, "clone") else images.copy()
        half = (self.size + 1) // 2
        rows = columns = slice(-self.size, None)
        if self.quarter is not None:
            halves = slice(-self.size, half - self.size), slice(half - self.size, None)
            rows, columns = halves[self.quarter // 2], halves[self.quarter % 2]
        if len(images):
            stamped[..., rows, columns] = images.max()
        return stamped

    def whole(self) -> Self:
        """Return the trigger with all of the patch."""
        return replace(self, quarter=None)


class Backdoored(Protocol):
    """A problem on images that attackers can poison."""

    def flaw_of_trigger(self, trigger: Trigger) -> str:
        """Return why this trigger cannot be planted into the images of this task; "" if it can."""

    def poisoned(self, worker: int, trigger: Trigger) -> Oracle:
        """Return the oracle of a worker all of whose images have the trigger, and its label."""

    def trigger_success(self, x: Vector, trigger: Trigger) -> float | None:
        """Return the share of test images, not of the trigger's class, that are taken for it with the trigger.

        None where there are no such images.
        """


def flaw_of_images(shape: Sequence[int], classes: int, trigger: Trigger) -> str:
    """Return why a trigger does not fit images of this shape, of which the last two axes are rows and columns."""
    if len(shape) < 2 or min(shape[-2:]) < 2:
        return "needs images: inputs of at least two axes, rows and columns, for each sample"
    if trigger.size > min(shape[-2:]):
        return f"q = {trigger.size}: must be at most {min(shape[-2:])}, for images of {shape[-2]} x {shape[-1]} pixels"
    if trigger.target >= classes:
        return f"target = {trigger.target}: must be below {classes}, the number of classes"
    return ""


class PoisonedOracle:
    """The loss of an attacker: of every minibatch a share rho is poisoned.

    With a > 0 it is (1 - a) loss(y) + a (1 - cos(y, x^k)), x^k the server's model.

    Args:
        clean: the worker's own oracle.
        dirty: the same with the trigger on all images.
        trigger: rho and a.
        center: x^k, shape (d,).
    """

    def __init__(self, clean: Oracle, dirty: Oracle, trigger: Trigger, center: Vector) -> None:
        self._clean, self._dirty, self._trigger, self._center = clean, dirty, trigger, center

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self._clean.dim

    def begin(self, rng: Generator) -> None:
        """Give both oracles the stream that the model draws from, where they take one."""
        for oracle in (self._clean, self._dirty):
            if (start := getattr(oracle, "begin", None)) is not None:
                start(rng)

    def full_gradient(self, x: Vector) -> Vector:
        """Return the gradient over all local data, a share rho of the weight on the poisoned."""
        return self.full_gradients([x])[0]

    def full_gradients(self, points: Sequence[Vector]) -> list[Vector]:
        """Return the same at each point, of one random function where the model draws at random."""
        rho = self._trigger.share
        dirty = full_gradients(self._dirty, points)
        clean: Sequence[Vector | None] = [None] * len(points) if rho == 1 else full_gradients(self._clean, points)
        return [self._mixed(x, rho, d, c) for x, d, c in zip(points, dirty, clean, strict=True)]

    def minibatch_gradients(self, points: Sequence[Vector], batch: int, rng: Generator) -> list[Vector]:
        """Draw one minibatch, round(rho b) of it poisoned, at least one; return its mean gradient at each point."""
        poisoned = min(batch, max(1, round(self._trigger.share * batch)))
        dirty = self._dirty.minibatch_gradients(points, poisoned, rng)
        rest: Sequence[Vector | None] = [None] * len(points)
        if batch > poisoned:
            rest = self._clean.minibatch_gradients(points, batch - poisoned, rng)
        share = poisoned / batch
        return [self._mixed(x, share, d, c) for x, d, c in zip(points, dirty, rest, strict=True)]

    @np.errstate(over="ignore", invalid="ignore")
    def _mixed(self, x: Vector, share: float, dirty: Vector, clean: Vector | None) -> Vector:
        """Return the gradient at x of what the attacker minimises."""
        gradient = dirty if clean is None else share * dirty + (1 - share) * clean
        a, length, other = self._trigger.anomaly, norm(x), norm(self._center)
        if a == 0 or not (0 < length < np.inf and 0 < other < np.inf):
            return (1 - a) * gradient if a else gradient
        here, there = x / length, self._center / other
        cosine = float(np.sum(here * there, dtype=np.float64))
        turned: Vector = (1 - a) * gradient - a * (there - cosine * here) / length
        return turned
