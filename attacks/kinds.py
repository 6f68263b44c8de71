"""The attacks: what a Byzantine client sends. Every one is a frozen dataclass; ``attack`` says how they are called.

Those that use only what any client has come first, then those that start from the honest messages in view. The letters
are the papers': mu and sigma, mean and standard deviation of the honest rows per coordinate; x, x^0, gamma.
"""

from dataclasses import dataclass, replace
from math import isfinite
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np

from attacks.attack import Attack, Repack
from attacks.view import Sight, View
from strategies.algorithm import Packet, Rows, Vector
from strategies.vectors import mean_of_rows, norm


@dataclass(frozen=True, kw_only=True)
class BitFlip(Repack):
    """Send -v in place of v: the opposite of its own honest message."""

    kind: Literal["bf"] = "bf"

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return the negated own message."""
        return -view.own

    def repack(self, honest: Packet) -> Packet:
        """Return the packet with every value negated, on the same coordinates."""
        return replace(honest, values=-honest.values)


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Repack):
    """Send the honest message computed on flipped labels."""

    flips_labels: ClassVar[bool] = True
    kind: Literal["lf"] = "lf"

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return the message on flipped labels."""
        return view.flipped()

    def repack(self, honest: Packet) -> Packet:
        """Return the packet as it is: the labels were the attack."""
        return honest


@dataclass(frozen=True, kw_only=True)
class NaN(Repack):
    """Send NaN for every value: a test of the screening, as one NaN would spoil any sum."""

    kind: Literal["nan"] = "nan"

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return a vector of NaN."""
        return np.full_like(view.own, np.nan)

    def repack(self, honest: Packet) -> Packet:
        """Return the packet with every value NaN."""
        return replace(honest, values=np.full_like(honest.values, np.nan))


@dataclass(frozen=True, kw_only=True)
class Silence(Attack):
    """Send nothing: the server must wait for its deadline."""

    kind: Literal["silence"] = "silence"

    def __call__(self, view: View, rng: np.random.Generator) -> None:
        """Return None."""
        return


@dataclass(frozen=True, kw_only=True)
class Zero(Attack):
    """Send the zero vector: the weakest attack, which only slows the others down."""

    kind: Literal["zero"] = "zero"

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return 0."""
        return np.zeros_like(view.own)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Send noise: every coordinate from N(0, sigma^2), the same for all seats of a coalition.

    Args:
        sigma: standard deviation of a coordinate, above 0.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("sigma", self.sigma)

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return the noise."""
        return _fit(self.sigma * rng.standard_normal(len(view.own)), view.own.dtype)


@dataclass(frozen=True, kw_only=True)
class Big(Attack):
    """Send one large number in every coordinate: what the mean does not survive.

    Args:
        value: the number, finite.
    """

    kind: Literal["big"] = "big"
    value: float = -1e3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isfinite(self.value):
            raise ValueError(f"value = {self.value}: must be finite")

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return the vector of that number."""
        return _fit(np.full(len(view.own), self.value), view.own.dtype)


@dataclass(frozen=True, kw_only=True)
class ALIE(Attack):
    """A little is enough: send mu - z sigma per coordinate, just inside the spread of the honest messages.

    mu and sigma are mean and standard deviation (over count - 1; 0 for a single row) of the honest rows in view.

    Args:
        z: how many standard deviations to shift; None takes ``default_z(n, f)``.

    Source:
        Baruch, Baruch, Goldberg: A little is enough (NeurIPS 2019), Algorithm 3.
    """

    least: ClassVar[Sight] = "coalition"
    kind: Literal["alie"] = "alie"
    view: Sight = "coalition"
    z: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is not None and not isfinite(self.z):
            raise ValueError(f"z = {self.z}: must be finite")

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return mu - z sigma."""
        rows = view.honest()
        z = default_z(view.n, view.f) if self.z is None else self.z
        peak = float(np.max(np.abs(rows))) or 1.0
        unit = rows.astype(np.float64) / peak  # so that no square overflows
        sigma = unit.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
        with np.errstate(over="ignore"):
            return _fit((unit.mean(axis=0) - z * sigma) * peak, view.own.dtype)


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
class IPM(Attack):
    """Inner product manipulation: send -eps mu, a small step against the mean mu of the honest messages.

    Args:
        eps: the factor, above 0.

    Source:
        Xie, Koyejo, Gupta: Fall of empires (UAI 2019).
    """

    least: ClassVar[Sight] = "coalition"
    kind: Literal["ipm"] = "ipm"
    view: Sight = "coalition"
    eps: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("eps", self.eps)

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return -eps mu."""
        return _against_mean(view.honest(), self.eps)


@dataclass(frozen=True, kw_only=True)
class FOE(Attack):
    """Fall of empires: send -eps mu with the eps that moves the server's aggregate furthest.

    The distance is from what the server makes of the honest vectors alone; with several best eps the least is taken.
    The search runs the server's rule a dozen times. Where the view has fewer honest rows than were sampled, they are
    repeated to that number.

    Args:
        eps: the factor, above 0; None searches ``GRID``.

    Source:
        Xie, Koyejo, Gupta: Fall of empires (UAI 2019); the search as in Gupta et al., arXiv 2508.17129.
    """

    GRID: ClassVar[tuple[float, ...]] = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)

    least: ClassVar[Sight] = "coalition"
    kind: Literal["foe"] = "foe"
    view: Sight = "coalition"
    eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps is not None:
            _check_positive("eps", self.eps)

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return -eps mu."""
        rows = view.honest()
        return _against_mean(rows, self._search(view, rows) if self.eps is None else self.eps)

    def _search(self, view: View, rows: Rows) -> float:
        honest = rows[np.arange(max(1, view.sampled - view.sampled_byzantine)) % len(rows)]
        undisturbed = view.aggregate(honest)

        def harm(eps: float) -> float:
            attack = np.repeat(_against_mean(rows, eps)[None, :], view.sampled_byzantine, axis=0)
            with np.errstate(over="ignore"):
                return norm(view.aggregate(np.concatenate([honest, attack])).astype(np.float64) - undisturbed)

        return max(self.GRID, key=harm)


@dataclass(frozen=True, kw_only=True)
class ShiftBack(Attack):
    """Shift-back: a Byzantine majority of the cohort pulls the model back to its start; a minority stays unnoticed.

    With a strict majority of Byzantine clients every one of them sends (s / gamma) (x - x^0): the server's step of
    length gamma then undoes the share s of all progress. Otherwise they send the mean of the honest messages in view.

    Args:
        s: how much of the way to go back, above 0; None is s = gamma, which sends x - x^0 itself.

    Source:
        Malinovsky, Richtarik, Horvath, Gorbunov: Byzantine robustness and partial participation can be achieved at once
        (NeurIPS 2024), the experiments.
    """

    counts_cohort: ClassVar[bool] = True
    kind: Literal["shb"] = "shb"
    view: Sight = "omniscient"
    s: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s is not None:
            _check_positive("s", self.s)

    def __call__(self, view: View, rng: np.random.Generator) -> Vector:
        """Return the step back, or the mean of the honest messages."""
        if 2 * view.sampled_byzantine <= view.sampled:
            return mean_of_rows(view.honest())
        factor = 1.0 if self.s is None else self.s / view.gamma
        with np.errstate(over="ignore"):
            return _fit(factor * (view.x.astype(np.float64) - view.x0), view.own.dtype)


def _against_mean(rows: Rows, eps: float) -> Vector:
    """Return -eps mu, dtype of ``rows``."""
    with np.errstate(over="ignore"):
        return _fit(-eps * mean_of_rows(rows).astype(np.float64), rows.dtype)


def _fit(v: Vector, dtype: np.dtype[Any]) -> Vector:
    """Cast a float64 vector to ``dtype``; what is out of its range becomes its largest number, as inf is screened."""
    largest = np.finfo(dtype).max
    return np.clip(v, -largest, largest).astype(dtype, copy=False)


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and isfinite(value)):
        raise ValueError(f"{name} = {value}: must be above 0 and finite")
