"""The former form of the clipping heuristic, a wrapper; it is now the field ``alpha`` of ``strategies.descent``."""

from dataclasses import replace
from warnings import warn

from strategies.descent import Descent
from strategies.radius import Alpha


def Clipped(*, method: Descent, alpha: Alpha) -> Descent:  # noqa: N802  # it was a class
    """Return the method with this clipping multiplier."""
    hint = "Clipped(method=m, alpha=a) is now dataclasses.replace(m, alpha=a)"
    warn(f"{hint}; the old name goes with the next release", FutureWarning, stacklevel=2)
    return replace(method, alpha=alpha)
