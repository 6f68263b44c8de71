"""Attacks that fit themselves to their surroundings: to the server's rule, to the honest cloud, to the last aggregate.

The letters are the papers': mu and sigma, mean and standard deviation of the honest rows per coordinate; gamma in
min-max and min-sum is the length of a perturbation, not the step size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, radians, sin, sqrt
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.attack import Colluding, Copy
from attacks.moments import against_mean, calm, fit, mean_and_deviation, shift
from attacks.search import REFINEMENTS, most_harmful
from attacks.view import Sight, View
from strategies.method import Rows, Vector
from strategies.vectors import column_blocks, norm, squared_distances

_INSIDE = 1 - 1e-6
"""The share of the way that min-max and min-sum go, so that rounding to float32 keeps them within their bound."""


@dataclass(frozen=True, kw_only=True)
class OptimalALIE(Colluding):
    """A little is enough, with the best z: send mu - z sigma with the z > 0 that moves the server's aggregate furthest.

    The search (``attacks.search``) runs the server's whole pipeline, clipping and pre-aggregators included, 19 times a
    round.

    Source:
        Baruch, Baruch, Goldberg (NeurIPS 2019), for the direction; Shejwalkar, Houmansadr (NDSS 2021) and Allouah et
        al. (AISTATS 2023), for a factor that is fitted to the rule.
    """

    needs_spread: ClassVar[bool] = True
    kind: Literal["optimal-alie"] = "optimal-alie"
    view: Sight = "omniscient"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        rows = view.honest()
        vector = shift(rows)
        return vector(most_harmful(view, rows, vector, refinements=REFINEMENTS))


@dataclass(frozen=True, kw_only=True)
class OptimalIPM(Colluding):
    """Inner product manipulation, with the best factor: send -eps mu with the eps that moves the aggregate furthest.

    Like FOE, but the search goes from 0.05 to 25.6 and is refined; it runs the server's pipeline 19 times a round.

    Source:
        Xie, Koyejo, Gupta: Fall of empires (UAI 2019), for the direction; the factor as in OptimalALIE.
    """

    kind: Literal["optimal-ipm"] = "optimal-ipm"
    view: Sight = "omniscient"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        rows = view.honest()
        eps = most_harmful(view, rows, lambda eps: against_mean(rows, eps), refinements=REFINEMENTS)
        return against_mean(rows, eps)


Direction = Literal["unit", "std", "sign"]


@dataclass(frozen=True, kw_only=True)
class _Bounded(Colluding, ABC):
    """Send mu + gamma p with the largest gamma that keeps this vector as near to the honest rows as they are to others.

    The papers bisect for gamma. It is a root of a quadratic for each row, ||mu - x_i + gamma p||^2 = a_i + 2 gamma b_i
    + gamma^2 c, so it is computed.

    Args:
        direction: of the perturbation p: ``"unit"`` -mu / ||mu||, ``"std"`` -sigma, ``"sign"`` -sign(mu).
    """

    needs_spread: ClassVar[bool] = True
    direction: Direction = "unit"

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        rows, unit = calm(view.honest())
        mu, sigma = mean_and_deviation(rows)
        p = {"unit": -mu, "std": -sigma, "sign": -np.sign(mu)}[self.direction]
        length = norm(p)
        if len(rows) > 1 and 0 < length < np.inf:
            p /= length
            a, b = np.zeros((2, len(rows)))
            for columns in column_blocks(rows):
                off = mu[columns] - rows[:, columns]
                a += np.einsum("ij,ij->i", off, off)
                b += np.sum(off * p[columns], axis=1)
            gamma = self._gamma(squared_distances(rows), a, b)
            mu += (_INSIDE * gamma if np.isfinite(gamma) else 0.0) * p
        return fit(mu * unit, view.own.dtype)

    @abstractmethod
    def _gamma(self, d2: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        """Return the largest gamma within the bound, with c = 1.

        Args:
            d2: the honest rows' squared distances from one another, shape (h, h).
            a: from mu, shape (h,).
            b: <mu - x_i, p>, shape (h,).
        """


@dataclass(frozen=True, kw_only=True)
class MinMax(_Bounded):
    """Min-max: as far from mu as possible while no honest row is further away than the honest rows' diameter.

    Args:
        direction: of the perturbation, ``"unit"``, ``"std"`` or ``"sign"``.

    Source:
        Shejwalkar, Houmansadr: Manipulating the Byzantine (NDSS 2021), Section IV-C, equation (4).
    """

    kind: Literal["min-max"] = "min-max"

    def _gamma(self, d2: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        # Every row allows an interval of gamma around 0, as mu is within the bound; the least upper end counts.
        return float(np.min(np.sqrt(b**2 + np.maximum(d2.max() - a, 0.0)) - b))


@dataclass(frozen=True, kw_only=True)
class MinSum(_Bounded):
    """Min-sum: as far from mu as possible while its squared distances to honest rows sum to at most an honest row's.

    Args:
        direction: of the perturbation, ``"unit"``, ``"std"`` or ``"sign"``.

    Source:
        Shejwalkar, Houmansadr: Manipulating the Byzantine (NDSS 2021), Section IV-C, equation (5).
    """

    kind: Literal["min-sum"] = "min-sum"

    def _gamma(self, d2: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        # The b_i sum up to 0, as mu is the mean.
        return sqrt(max(float(d2.sum(axis=1).max() - a.sum()), 0.0) / len(a))


@dataclass(frozen=True, kw_only=True)
class Mimic(Copy):
    """Mimic: all seats send what one honest client sends, which gives its data too much weight and hides from any rule.

    The client is the one with the largest |<z, x_i>|, where the unit vector z is the direction in which the honest rows
    x_i of this round vary most. (The paper learns z over many rounds, as there the attacker cannot decompose.)

    Args:
        target: always copy this client instead, 0 .. n-1. In a round where the view does not cover it, the choice is as
            above.

    Source:
        Karimireddy, He, Jaggi: Byzantine-robust learning on heterogeneous datasets via bucketing (ICLR 2022), Section
        3.2 and Appendix.
    """

    least: ClassVar[Sight] = "coalition"
    needs_spread: ClassVar[bool] = True
    kind: Literal["mimic"] = "mimic"
    view: Sight = "omniscient"
    target: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.target < 0:
            raise ValueError(f"target = {self.target}: must be 0 or more")

    def validate(self, n: int, f: int) -> str | None:
        """Refuse a client that does not exist."""
        exists = self.target is None or self.target < n
        return None if exists else f"target = {self.target}: must be below clients = {n}"

    @np.errstate(all="ignore")
    def whom(self, view: View) -> int:
        """Return the target, or else the client that varies most."""
        if self.target is not None and view.message(self.target) is not None:
            return self.target
        ids = view.honest_ids()
        rows, _ = calm(view.honest())
        return ids[int(np.argmax(np.abs(_along_top_variance(rows))))]


def _along_top_variance(rows: Rows) -> NDArray[np.float64]:
    """Return <z, x_i> for every row, up to a common factor; z is the top eigenvector of the rows' covariance.

    With X the centred rows and X X^T v = s v for the largest s, z is X^T v. The Gram matrix X X^T comes from squared
    distances, -J D J / 2 with the centring J, and is as small as there are rows.
    """
    n = len(rows)
    d2 = squared_distances(rows)
    if not np.isfinite(d2).all():
        return np.zeros(n)
    gram = -0.5 * (d2 - d2.mean(axis=0) - d2.mean(axis=1)[:, None] + d2.mean())
    v = np.linalg.eigh(gram)[1][:, -1]
    v = v - v.mean()  # so that X^T v needs no centring of the rows
    along = np.zeros(n)
    for columns in column_blocks(rows):
        block = rows[:, columns].astype(np.float64)
        along += np.sum(block * np.sum(v[:, None] * block, axis=0), axis=1)
    return along


@dataclass(frozen=True, kw_only=True)
class ROP(Colluding):
    """Relocated orthogonal perturbation: start from the last aggregate, and push at an angle that clipping misses.

    With the server's previous aggregate g and the reference u = lam g + (1 - lam) mu, send

        location g + (1 - location) mu + z (sin(angle) p + cos(angle) u / ||u||)

    where p is the part of the vector of ones that is orthogonal to u, scaled to length 1. Where g is not known (in the
    first round, after a missed one) or messages cannot be compared with it, mu replaces it.

    Args:
        lam: the weight of g in the reference, in [0, 1].
        z: length of the perturbation, above 0. The paper has 1, the radius that its server clips to.
        angle: between perturbation and reference, in degrees from 0 to 180.
        location: where the perturbation starts, from 0, at mu, to 1, at g.

    Source:
        Ozfatura, Ozfatura, Kupcu, Gunduz: Byzantines can also learn from history, fall of centered clipping in
        federated learning (IEEE TIFS 2023, arXiv 2208.09894), Section IV.
    """

    positive: ClassVar[tuple[str, ...]] = ("z",)
    finite: ClassVar[tuple[str, ...]] = ("lam", "angle", "location")
    kind: Literal["rop"] = "rop"
    lam: float = 0.9
    z: float = 1.0
    angle: float = 90.0
    location: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("lam", 1.0), ("angle", 180.0), ("location", 1.0)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} = {value}: must be from 0 to {most:g}")

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        rows, unit = calm(view.honest())
        mu = mean_and_deviation(rows)[0]
        g = mu if view.g is None else view.g.astype(np.float64) / unit
        u = _unit_vector(self.lam * g + (1 - self.lam) * mu)
        p = _unit_vector(1.0 - float(np.sum(u)) * u)
        push = sin(radians(self.angle)) * p + cos(radians(self.angle)) * u
        start = self.location * g + (1 - self.location) * mu
        return fit(start * unit + self.z * push, view.own.dtype)


def _unit_vector(v: Vector) -> Vector:
    """Return v / ||v||, or 0 where v is too short to have a direction."""
    length = norm(v)
    return v / length if length > 1e-12 else np.zeros_like(v)
