"""The keys ``clip`` and ``alpha`` of the sections whose method clips, and what they come to."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from experiment.sections.base import TIMES_L, Facts, MethodSection, Scaled, number, scaled
from foundation.errors import ConfigError
from strategies.radius import AUTO, Alpha

BOUNDED = "D_Q L"
"""The multiplier with which no honest difference is ever clipped."""


def _known(value: Any) -> Any:
    if not isinstance(value, bool) and value != AUTO:
        raise ValueError(f'must be true, false or "{AUTO}", not {value!r}')
    return value


Clip = Annotated[bool | Literal["auto"], BeforeValidator(_known)]
"""The type of ``clip``, refused with one line."""


class ClippingSection(MethodSection):
    """A section with the two keys; a method says with its default of ``clip`` whether it clips if nobody asks."""

    clip: Clip
    """Whether differences are clipped to lam = alpha ||x^k - x^{k-1}||; "auto" learns alpha from the replies."""
    alpha: Scaled | None = None
    """Clipping multiplier: a number, or "cL" or "D_Q L" where the task knows its L. Used with clip = true; default "2L"
    (Theorem 4.1 of Malinovsky et al.)."""

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        if isinstance(self.alpha, str):
            if self.alpha != BOUNDED:
                number("alpha", self.alpha, TIMES_L, "cL")
        elif self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha = {self.alpha}: must be a positive number; clip = false switches clipping off")
        return self

    def clipping(self, facts: Facts) -> float | None:
        """Return alpha as a number; None where ``clip`` has no use for it.

        Raises:
            ConfigError: it needs an L that the task does not know.
        """
        if self.clip is not True:
            return None
        alpha = "2L" if self.alpha is None else self.alpha
        if isinstance(alpha, str) and facts.smoothness() is None:
            given = "is missing" if self.alpha is None else f'= "{alpha}"'
            raise ConfigError(
                f'[strategy] alpha {given}: this task does not know its L; give a number, or learn it: clip = "{AUTO}"'
            )
        if alpha == BOUNDED:
            return facts.compressor.norm_bound(facts.dim) * (facts.smoothness() or math.nan)
        return scaled(alpha, TIMES_L, "cL", facts, "alpha")

    @property
    def multiplier(self) -> Alpha:
        """The alpha of the method; of a resolved section."""
        if self.clip == AUTO:
            return AUTO
        return float(self.alpha) if self.clip and self.alpha is not None else math.inf
