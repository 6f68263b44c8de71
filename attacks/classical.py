"""The classical attacks. Each is a frozen dataclass; ``attack`` has the interface.

Those that use only what any client has come first, then those that start from the honest messages in view. The letters
are the papers': mu and sigma, mean and standard deviation of the honest rows per coordinate; x, x^0, gamma. Attacks
that fit themselves to the rule or to the honest cloud are in ``adaptive``.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np

from attacks.attack import Attack, Colluding, Jittered, Repack
from attacks.moments import against_mean, fit, shift
from attacks.search import most_harmful
from attacks.view import Sight, View
from strategies.method import Compressor, Packet, Vector
from strategies.vectors import mean_of_rows


@dataclass(frozen=True, kw_only=True)
class BitFlip(Repack):
    """Send -v in place of the honest message v."""

    kind: Literal["bf"] = "bf"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return -view.own

    def repack(self, honest: Packet, form: Compressor) -> Packet:
        """Return the packet that reads as the opposite, on the same coordinates."""
        return form.opposite(honest)


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Repack):
    """Send the honest message computed on flipped labels."""

    flips_labels: ClassVar[bool] = True
    kind: Literal["lf"] = "lf"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return view.flipped()

    def repack(self, honest: Packet, form: Compressor) -> Packet:
        """Return the packet as it is: the labels were the attack."""
        return honest


@dataclass(frozen=True, kw_only=True)
class NaN(Attack):
    """Send NaN for every value: a test of the screening, as one NaN would spoil any sum."""

    looks_at_own: ClassVar[bool] = False
    kind: Literal["nan"] = "nan"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return np.full(view.dim, np.nan, view.dtype)


@dataclass(frozen=True, kw_only=True)
class Infinity(Attack):
    """Send infinity for every value: the other test of the screening, which must look before it computes."""

    looks_at_own: ClassVar[bool] = False
    kind: Literal["inf"] = "inf"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return np.full(view.dim, np.inf, view.dtype)


@dataclass(frozen=True, kw_only=True)
class Silence(Attack):
    """Send nothing: the server must wait for its deadline."""

    looks_at_own: ClassVar[bool] = False
    kind: Literal["silence"] = "silence"

    def _target(self, view: View, rng: np.random.Generator) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Zero(Attack):
    """Send the zero vector: the weakest attack, which only slows the others down."""

    looks_at_own: ClassVar[bool] = False
    kind: Literal["zero"] = "zero"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return np.zeros(view.dim, view.dtype)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Send noise: every coordinate from N(0, sigma^2), the same for all seats of a coalition.

    Args:
        sigma: standard deviation of a coordinate, above 0.
    """

    looks_at_own: ClassVar[bool] = False
    positive: ClassVar[tuple[str, ...]] = ("sigma",)
    kind: Literal["gaussian"] = "gaussian"
    sigma: float = 1.0

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return fit(self.sigma * rng.standard_normal(view.dim), view.dtype)


@dataclass(frozen=True, kw_only=True)
class Big(Attack):
    """Send one large number in every coordinate: what the mean does not survive.

    Args:
        value: the number, finite.
    """

    looks_at_own: ClassVar[bool] = False
    finite: ClassVar[tuple[str, ...]] = ("value",)
    kind: Literal["big"] = "big"
    value: float = -1e3

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return fit(np.full(view.dim, self.value), view.dtype)


@dataclass(frozen=True, kw_only=True)
class ALIE(Colluding, Jittered):
    """A little is enough: send mu - z sigma per coordinate, just inside the spread of the honest messages.

    mu and sigma are mean and standard deviation (over count - 1; 0 for a single row) of the honest rows in view.

    Args:
        z: how many standard deviations to shift; None takes ``default_z(n, f)``.
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``.

    Source:
        Baruch, Baruch, Goldberg: A little is enough (NeurIPS 2019), Algorithm 3.
    """

    needs_spread: ClassVar[bool] = True
    finite: ClassVar[tuple[str, ...]] = ("z",)
    kind: Literal["alie"] = "alie"
    z: float | None = None

    def validate(self, n: int, f: int) -> str | None:
        """Refuse n and f for which there is no default z."""
        if self.z is None:
            try:
                default_z(n, f)
            except ValueError as error:
                return str(error)
        return None

    def remark(self, n: int, f: int) -> str | None:
        """Warn when the attack has no effect."""
        if self.z == 0 or (self.z is None and self.validate(n, f) is None and default_z(n, f) == 0):
            return f"alie has z = 0 for n = {n}, f = {f}: it sends the plain mean and harms nobody; give another z"
        return super().remark(n, f)

    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
        return shift(view.honest())(default_z(view.n, view.f) if self.z is None else self.z)


def default_z(n: int, f: int) -> float:
    """Return z = Phi^{-1}((n - f - s) / (n - f)) with s = floor(n/2 + 1) - f, the shift that ALIE's authors derive.

    s is how many honest clients the attackers must win over for a majority. For n = 5, f = 1 it comes out as 0: the
    attack then sends the plain mean and harms nobody.

    Args:
        n: number of clients.
        f: number of Byzantine clients.

    Raises:
        ValueError: the formula has no value there: too few honest clients, or a Byzantine majority.
    """
    honest, supporters = n - f, n // 2 + 1 - f
    if not 0 < supporters < honest:
        raise ValueError(f"alie has no default z for f = {f} of n = {n} clients: give z")
    return NormalDist().inv_cdf((honest - supporters) / honest)


@dataclass(frozen=True, kw_only=True)
class IPM(Colluding, Jittered):
    """Inner product manipulation: send -eps mu, a small step against the mean mu of the honest messages.

    Args:
        eps: the factor, above 0.
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``.

    Source:
        Xie, Koyejo, Gupta: Fall of empires (UAI 2019).
    """

    positive: ClassVar[tuple[str, ...]] = ("eps",)
    kind: Literal["ipm"] = "ipm"
    eps: float = 0.1

    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
        return against_mean(view.honest(), self.eps)


@dataclass(frozen=True, kw_only=True)
class FOE(Colluding, Jittered):
    """Fall of empires: send -eps mu with the eps that moves the server's aggregate furthest.

    The search (``attacks.search``) runs the server's rule a dozen times.

    Args:
        eps: the factor, above 0; None searches ``GRID``.
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``. The search is
            made without it.

    Source:
        Xie, Koyejo, Gupta: Fall of empires (UAI 2019); the search as in Gupta et al., arXiv 2508.17129.
    """

    GRID: ClassVar[tuple[float, ...]] = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)

    positive: ClassVar[tuple[str, ...]] = ("eps",)
    kind: Literal["foe"] = "foe"
    eps: float | None = None

    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
        rows = view.honest()
        eps = self.eps or most_harmful(view, rows, lambda eps: against_mean(rows, eps), self.GRID)
        return against_mean(rows, eps)


@dataclass(frozen=True, kw_only=True)
class ShiftBack(Jittered):
    """Shift-back: a Byzantine majority of the cohort pulls the model back to its start; a minority stays unnoticed.

    With a strict majority of Byzantine clients every one of them sends (s / gamma) (x - x^0): the server's step of
    length gamma then undoes the share s of all progress. Otherwise they send the mean of the honest messages in view.

    Args:
        s: how much of the way to go back, above 0; None is s = gamma, which sends x - x^0 itself.
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``.

    Source:
        Malinovsky, Richtarik, Horvath, Gorbunov: Byzantine robustness and partial participation can be achieved at once
        (NeurIPS 2024), the experiments.
    """

    counts_cohort: ClassVar[bool] = True
    looks_at_peers: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("s",)
    kind: Literal["shb"] = "shb"
    view: Sight = "omniscient"
    s: float | None = None

    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
        if 2 * view.sampled_byzantine <= view.sampled:
            return mean_of_rows(view.honest())
        factor = 1.0 if self.s is None else self.s / view.gamma
        return fit(factor * (view.x.astype(np.float64) - view.x0), view.dtype)
