"""What share of samples a model predicts rightly, for tasks that do not measure it themselves. Imports torch.

======================================================  ===============================================================
targets, and output of the model                        accuracy
======================================================  ===============================================================
class labels (N,), output (N, K)                        the class with the highest score is the target
one-hot rows (N, K), output (N, K)                      the same
class labels (N, L, ...), output (N, K, L, ...)         the same at each position, negative targets left out
zeros and ones (N,) or (N, 1), output of as many        thresholded: at 0 for logits, at 1/2 for probabilities
zeros and ones (N, K), output (N, K)                    the same, label by label
other numbers, output of as many                        none
======================================================  ===============================================================
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tasks.contract import TaskError

Loss = Callable[[Tensor, Tensor], Tensor]
Rule = Callable[[Tensor, Tensor], Tensor | None]

WRITE = "write correct(output, target), which returns whether each sample is predicted rightly"


class DefaultMeasure:
    """Says of each sample which share of it is predicted rightly; None where that makes no sense.

    Args:
        loss: of the task.
        own_loss: it is the task's own; else cross-entropy.
        targets: all targets there are, of training and test: they show whether they are labels or other numbers.
    """

    def __init__(self, loss: Loss, *, own_loss: bool, targets: tuple[Tensor, ...]) -> None:
        self._loss, self._own_loss, self._targets = loss, own_loss, targets
        self._rule: Rule | None = None

    def __call__(self, output: Tensor, target: Tensor) -> Tensor | None:
        """Return numbers from 0 to 1, shape (N,).

        Raises:
            TaskError: output and targets do not show what is right.
        """
        self._rule = self._rule or self._choose(output, target)
        return self._rule(output, target)

    def _all(self, fits: Callable[[Tensor], bool]) -> bool:
        return all(map(fits, self._targets))

    def _choose(self, output: object, target: Tensor) -> Rule:
        if not isinstance(output, Tensor):
            raise TaskError(f"the model gives {type(output).__name__}, not one tensor; {WRITE}")
        shapes = f"output of shape {tuple(output.shape)} for targets of shape {tuple(target.shape)}"
        if output.ndim == 0 or len(output) != len(target):
            raise TaskError(f"the model gives {shapes}; must be one row a sample")
        if output.is_complex():
            raise TaskError(f"the model gives complex numbers; {WRITE}")
        labels = not target.is_floating_point()
        classes = output.ndim >= 2 and output.shape[1] > 1
        if labels and classes and output.shape[:1] + output.shape[2:] == target.shape:
            return highest_score if target.ndim == 1 else _class_of_positions
        if not labels and classes and target.ndim == 1 and output.ndim == 2 and self._all(_whole):
            return highest_score
        if classes and output.shape == target.shape and (self._all(is_one_hot) if self._own_loss else not labels):
            return _class_of_scores
        if output.numel() == target.numel() and self._own_loss:
            return self._threshold(output, target) if self._all(zeros_and_ones) else _no_accuracy
        raise TaskError(f"the model gives {shapes}, from which no accuracy follows; {WRITE}")

    @torch.no_grad()
    def _threshold(self, output: Tensor, target: Tensor) -> Rule:
        """Ask the loss whether it takes logits or probabilities: what it thinks of outputs far beyond the labels."""

        def at(value: float, label: float) -> float:
            return float(self._loss(torch.full_like(output, value), torch.full_like(target, label)))

        try:
            one, far_above, zero, far_below = at(1, 1), at(20, 1), at(0, 0), at(-20, 0)
        except (RuntimeError, ValueError, AssertionError):  # probabilities lie in [0, 1]
            boundary = 0.5
        else:
            logits, probabilities = far_above <= one and far_below <= zero, one <= far_above and zero <= far_below
            if not logits and not probabilities:
                raise TaskError(f"loss() does not show from which output on a label counts as 1; {WRITE}")
            boundary = 0.0 if logits else 0.5

        def right(output: Tensor, target: Tensor) -> Tensor:
            hits = (output.reshape(len(target), -1) > boundary) == (target.reshape(len(target), -1) > 0.5)
            return hits.double().mean(dim=1)

        return right


def zeros_and_ones(targets: Tensor) -> bool:
    """Return whether there are no other numbers."""
    return bool(((targets == 0) | (targets == 1)).all())


def _whole(targets: Tensor) -> bool:
    return torch.equal(targets, targets.round())


def is_one_hot(targets: Tensor) -> bool:
    """Return whether every row is a class as a 1 among zeros, shape (N, K)."""
    if targets.ndim != 2 or targets.shape[1] < 2 or targets.is_complex():
        return False
    return zeros_and_ones(targets) and bool((targets.sum(dim=1) == 1).all())


def share_right(right: object, target: Tensor) -> float:
    """Return how many of some samples ``correct`` counts as predicted rightly; not a whole number where it says shares.

    Raises:
        TaskError: it gave something else than one number from 0 to 1, or a boolean, for each sample or target.
    """
    right = right.cpu() if isinstance(right, Tensor) else torch.as_tensor(right)
    samples = len(target)
    if right.shape not in ((samples,), (samples, 1), target.shape) or right.is_complex():
        form = f"({samples},), a boolean for each"
        raise TaskError(f"correct() gave shape {tuple(right.shape)} for {samples} samples; must be {form}")
    if right.dtype != torch.bool and not bool(((right >= 0) & (right <= 1)).all()):
        raise TaskError(f"correct() gave numbers up to {float(right.max()):g}; must be booleans, or from 0 to 1")
    total = float(right.sum(dtype=torch.float64))
    return total if right.numel() == samples else total * samples / right.numel()


def highest_score(output: Tensor, target: Tensor) -> Tensor:
    """Return of each sample whether its target class has the highest score."""
    return output.argmax(dim=1) == target


def _class_of_scores(output: Tensor, target: Tensor) -> Tensor:
    hits = output.argmax(dim=1) == target.argmax(dim=1)
    return hits if hits.ndim == 1 else hits.reshape(len(hits), -1).double().mean(dim=1)


def _class_of_positions(output: Tensor, target: Tensor) -> Tensor:
    hits = (output.argmax(dim=1) == target).reshape(len(target), -1)
    known = (target >= 0).reshape(len(target), -1)
    return (hits & known).sum(dim=1).double() / known.sum(dim=1)


def _no_accuracy(output: Tensor, target: Tensor) -> None:
    return None
