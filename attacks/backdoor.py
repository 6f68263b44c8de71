"""The boosted backdoor: attackers train on images with a trigger, and enlarge what they send. The model then takes any
image with the trigger for the attackers' class, while its accuracy on other images hardly shows it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from attacks.attack import Attack
from attacks.moments import fit
from attacks.view import Sight, View
from strategies.method import Vector
from strategies.vectors import norm


@dataclass(frozen=True, kw_only=True)
class Replace(Attack):
    """Model replacement: the honest message on a poisoned minibatch, times a factor.

    A share ``rho`` of every minibatch gets the trigger, a patch of q x q pixels of the largest value in the last corner
    of the image, and the label ``target``. The worker half of the method is honest. What it gives is multiplied by
    ``boost``:

    * ``"replace"``: n' s / (gamma b), with n' rows in the round, b of them of attackers, and s the length of the
      worker's own way in units of its message: gamma, or H eta with H local steps of size eta. Under the mean, where
      the honest clients have nothing left to learn, the new model is then that of the attackers.
    * ``"median"``: to the median length of the messages in view. Against robust rules nothing longer gets through.
    * a number.

    It is for tasks on images. How many test images with the trigger are taken for ``target`` is measured beside the
    accuracy, of those that are not of that class.

    Args:
        q: side of the trigger in pixels, at least 1.
        target: the class that the trigger is to give, from 0.
        rho: share of a minibatch that is poisoned, in (0, 1].
        boost: ``"median"``, ``"replace"`` or a number above 0.
        anomaly: a in [0, 1): attackers minimise (1 - a) loss + a (1 - cos(model, x^k)), to stay in the direction of the
            server's model; 0 for the loss alone.
        triggers: 4 cuts the patch into quarters, and seat i plants quarter i mod 4 alone (DBA); the whole patch is what
            is measured. 1 for the whole.

    Source:
        Bagdasaryan, Veit, Hua, Estrin, Shmatikov: How to backdoor federated learning (AISTATS 2020), equation (3) and
        Algorithm 1; Xie, Huang, Chen, Li: DBA (ICLR 2020) for ``triggers = 4``.
    """

    least: ClassVar[Sight] = "own"
    looks_at_peers: ClassVar[bool] = True
    unites: ClassVar[bool] = False
    kind: Literal["replace"] = "replace"
    view: Sight = "coalition"
    q: int = 4
    target: int = 0
    rho: float = 0.3
    boost: Literal["median", "replace"] | float = "median"
    anomaly: float = 0.0
    triggers: Literal[1, 4] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q < 1 or (self.triggers == 4 and self.q < 2):
            raise ValueError(f"q = {self.q}: must be at least {2 if self.triggers == 4 else 1}")
        if self.target < 0:
            raise ValueError(f"target = {self.target}: must be 0 or more")
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho = {self.rho}: must be above 0 and at most 1")
        if not 0 <= self.anomaly < 1:
            raise ValueError(f"anomaly = {self.anomaly}: must be from 0 up to, but not including, 1")
        if not isinstance(self.boost, str) and not 0 < self.boost < np.inf:
            raise ValueError(f'boost = {self.boost}: must be above 0 and finite, "median" or "replace"')

    @property
    def needs_cohort(self) -> bool:
        """Whether it must know who was sampled: to count the rows, or to see those of honest clients."""
        return self.boost == "replace" or super().needs_cohort

    def remark(self, n: int, f: int) -> str | None:
        """Say what a factor means for rules that bound lengths."""
        if self.boost == "median":
            return super().remark(n, f)
        return f'replace with boost = "{self.boost}" is for the plain mean: robust rules drop or cut what is that long'

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        poisoned = view.flipped()
        if self.boost == "median":
            length = norm(poisoned)
            factor = float(np.median([norm(row) for row in view.honest()])) / length if length > 0 else 0.0
        elif self.boost == "replace":
            rows, attackers = sum(view.counts), max(1, view.counts[1])
            factor = rows / attackers * view.reach / view.gamma
        else:
            factor = float(self.boost)
        return fit(factor * poisoned.astype(np.float64), poisoned.dtype)
