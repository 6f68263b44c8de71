"""What clients claim about a model that they measured on data of their own, and what may be concluded from it.

Nobody can check a claim. Of m answers of which at most f may be lies, the median lies within what honest clients
answered where m > 2f, and both quartiles do where m > 4f; with fewer answers there is no such figure. Claims are shown
and recorded. They never weigh a gradient or sample a client, and end a run or take it back only where its config asks
for that: see ``strategies.safeguard``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from strategies.method import DECLINED, Evaluation

NO_EVALUATION = f"{DECLINED}: evaluation"
"""The answer of a client whose owner does not allow it to measure models."""
MOST_SAMPLES = 2**53
"""The largest number of samples that a claim may name; what is above is refused."""

MeasuredBy = Literal["server", "clients", "none"]
"""Whose the measures of a model are; "none" where there are none."""


@dataclass(frozen=True)
class Claim:
    """What one client answers, screened.

    Args:
        loss: mean loss over the samples, finite and at least 0.
        accuracy: share of correct predictions, in [0, 1]; None where the task has none.
        samples: how many samples were measured; None where the client does not declare it.
    """

    loss: float
    accuracy: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Figure:
    """One measure over clients.

    Args:
        median: of the answers, within what honest clients answered.
        low: their lower quartile; None where it could be a lie.
        high: their upper quartile; None where it could be a lie.
    """

    median: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], byzantine: int) -> Self | None:
        """Return the figure of m finite values of which at most f may be lies; None for m <= 2f.

        Args:
            values: in any order.
            byzantine: f.
        """
        ordered, m = sorted(values), len(values)
        if m <= 2 * byzantine:
            return None
        if m <= 4 * byzantine:
            return cls(_quantile(ordered, 2))
        return cls(_quantile(ordered, 2), _quantile(ordered, 1), _quantile(ordered, 3))


def _quantile(ordered: Sequence[float], quarters: int) -> float:
    """Return the value at 1/4, 2/4 or 3/4 of the way through values in order, between two neighbours where it must.

    With m > 4f (the median: m > 2f) both neighbours have at least f values on either side, so lies cannot move it
    beyond what is honest.
    """
    place, rest = divmod(quarters * (len(ordered) - 1), 4)
    if not rest:
        return ordered[place]
    below, above = ordered[place], ordered[place + 1]
    return min(below + (above - below) * (rest / 4), above)


@dataclass(frozen=True)
class Claims:
    """What came back when all connected clients were asked to measure one model.

    Args:
        answers: m, how many usable answers there are.
        byzantine: f, how many of these may be lies.
        loss: over clients; None where m <= 2f.
        accuracy: the same of those that have one.
        clients: the answers by the client's name.
        missing: why other clients have none, as ``kind: detail``, by name.
        bytes_up: bytes that came from clients for it.
        bytes_down: bytes that went to clients for it.
    """

    answers: int
    byzantine: int
    loss: Figure | None = None
    accuracy: Figure | None = None
    clients: Mapping[str, Claim] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    @classmethod
    def of(
        cls,
        clients: Mapping[str, Claim],
        missing: Mapping[str, str],
        byzantine: int,
        *,
        bytes_up: int = 0,
        bytes_down: int = 0,
    ) -> Self:
        """Return the claims of these clients with the figures that follow from them."""
        losses = [claim.loss for claim in clients.values()]
        accuracies = [claim.accuracy for claim in clients.values() if claim.accuracy is not None]
        loss, accuracy = Figure.of(losses, byzantine), Figure.of(accuracies, byzantine)
        return cls(len(clients), byzantine, loss, accuracy, clients, missing, bytes_up, bytes_down)

    @property
    def evaluation(self) -> Evaluation | None:
        """The medians as one evaluation; None where there is no figure."""
        if self.loss is None:
            return None
        return Evaluation(self.loss.median, None if self.accuracy is None else self.accuracy.median)

    @property
    def shortage(self) -> str:
        """Why there is no figure, in words; "" if there is one."""
        if self.loss is not None:
            return ""
        answers = f"{self.answers} usable answer{'' if self.answers == 1 else 's'}"
        lies = f", and up to {self.byzantine} may be lies" if self.byzantine else ""
        return f"no figure: {answers}{lies}; at least {2 * self.byzantine + 1} are needed (2 byzantine + 1)"


Measures = tuple[Evaluation | None, Claims | None]
"""What is known of one model: the server's evaluation, and what clients claim; None where they do not measure it."""


def flaw_of(loss: object, accuracy: object, samples: object) -> str:
    """Return why these values are no claim; "" if they are one.

    Args:
        loss: what the client sent as its loss.
        accuracy: the same; None if it sent none.
        samples: the same; None if it sent none.
    """
    for name, value in (("loss", loss), ("accuracy", accuracy)):
        if name == "accuracy" and value is None:
            continue
        if not isinstance(value, float):
            return f"wrong type: {name} is of type {type(value).__name__}, expected float"
        if not math.isfinite(value):
            return f"not finite: {name} is {value}"
    if isinstance(loss, float) and loss < 0:
        return f"out of bounds: loss = {loss:.6g}, must be at least 0"
    if isinstance(accuracy, float) and not 0 <= accuracy <= 1:
        return f"out of bounds: accuracy = {accuracy:.6g}, must be from 0 to 1"
    if samples is None:
        return ""
    if not isinstance(samples, int) or isinstance(samples, bool):
        return f"wrong type: samples is of type {type(samples).__name__}, expected int"
    if not 1 <= samples <= MOST_SAMPLES:
        return f"out of bounds: samples = {str(samples)[:30]}, must be from 1 to 2^53"
    return ""


def headline(evaluation: Evaluation | None, claims: Claims | None) -> Evaluation | None:
    """Return the measures of a model that are shown first: the server's, else the medians of claims, else None."""
    return evaluation if evaluation is not None or claims is None else claims.evaluation


def measured_by(evaluation: Evaluation | None, claims: Claims | None) -> MeasuredBy:
    """Return whose the measures of ``headline`` are."""
    if evaluation is not None:
        return "server"
    return "none" if headline(evaluation, claims) is None else "clients"
