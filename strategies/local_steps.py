"""Local steps: what the methods share whose workers take a few SGD steps before they report.

    u = 0,  y^0 = x^k
    for h = 0 .. H-1   u = mu u + g_i(y^h),  y^{h+1} = y^h - eta_k u
    v_i = (x^k - y^H) / (eta_k H), the mean of the H directions u

mu is ``local_momentum``. It starts afresh in every round, as workers keep nothing. ``local_schedule`` changes eta over
the rounds of the run, like a schedule of gamma; within a round eta is constant, so that v_i is the mean direction and
has the size of a gradient whatever eta is. So a local schedule alone changes how far the workers drift apart, and not
how far the model moves: that is gamma's, which may have a schedule too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from strategies.hyperparameters import Key
from strategies.method import Method
from strategies.schedules import Schedule, ScheduleOf


@dataclass(frozen=True, kw_only=True)
class LocalSteps(Method):
    """Local steps with momentum and a schedule; a method adds ``local_steps`` and ``local_gamma``.

    Args:
        local_momentum: mu: momentum of the local steps, u = mu u + gradient, from u = 0 in every round.
        local_schedule: How eta changes over the rounds: a schedule without ``start``, which is ``local_gamma``.
            Default: constant. The step of the model is that of gamma.
    """

    local_steps: int
    local_gamma: Any
    local_momentum: Annotated[float, Key(ge=0, lt=1)] = 0.0
    local_schedule: Annotated[Schedule | None, ScheduleOf(of="local_gamma")] = None

    def local_size(self, round_: int) -> float:
        """Return eta_k, the size of local steps in a round, counted from 1."""
        eta: float = self.local_gamma
        return eta if self.local_schedule is None else replace(self.local_schedule, start=eta).at(round_ - 1)

    def warnings(self, smoothness: float | None) -> Iterator[str]:
        """Warn of what has no effect."""
        yield from super().warnings(smoothness)
        if self.local_steps == 1:
            for key in ("local_momentum", "local_schedule"):
                if getattr(self, key):
                    yield f"strategy.{key}: has no effect with local_steps = 1"

    def meanings(self, rounds: int) -> Iterator[tuple[str, str]]:
        """Say what a local momentum does to the size of what is sent."""
        yield from super().meanings(rounds)
        mu, steps = self.local_momentum, self.local_steps
        if mu and steps > 1:
            longer = sum(1 - mu**h for h in range(1, steps + 1)) / (1 - mu) / steps
            sent = f"where gradients change little, what workers send is {longer:.3g} times as long as a gradient"
            yield "local", f"momentum {mu:g}, from 0 in every round: {sent}, and the model's step with it"
