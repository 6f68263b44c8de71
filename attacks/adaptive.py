"""Attacks that fit themselves to their surroundings: to the server's rule, to the honest cloud, to the last aggregate.

The letters are the papers': mu and sigma, mean and standard deviation of the honest rows per coordinate; gamma in
min-max and min-sum is the length of a perturbation, not the step size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin, sqrt
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attacks.attack import Colluding, Copy, Individual, Jittered
from attacks.moments import against_mean, calm, fit, mean_and_deviation, shift
from attacks.search import REFINEMENTS, most_harmful
from attacks.view import Sight, View
from strategies.aggregators.distance_rules import krum_scores
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
class _Bounded(Colluding, Jittered, ABC):
    """Send mu + gamma p with the largest gamma that keeps this vector as near to the honest rows as they are to others.

    The papers bisect for gamma. It is a root of a quadratic for each row, ||mu - x_i + gamma p||^2 = a_i + 2 gamma b_i
    + gamma^2 c, so it is computed.

    Args:
        direction: of the perturbation p: ``"unit"`` -mu / ||mu||, ``"std"`` -sigma, ``"sign"`` -sign(mu).
    """

    needs_spread: ClassVar[bool] = True
    direction: Direction = "unit"

    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
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
        return fit(mu * unit, view.dtype)

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
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``. The bound is
            then that of the seats' mean.

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
        jitter: size of the noise that tells the seats apart, in standard deviations; see ``Jittered``. The bound is
            then that of the seats' mean.

    Source:
        Shejwalkar, Houmansadr: Manipulating the Byzantine (NDSS 2021), Section IV-C, equation (5).
    """

    kind: Literal["min-sum"] = "min-sum"

    def _gamma(self, d2: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        # The b_i sum up to 0, as mu is the mean.
        return sqrt(max(float(d2.sum(axis=1).max() - a.sum()), 0.0) / len(a))


@dataclass(frozen=True, kw_only=True)
class Fang(Colluding, Individual):
    """Fang's model poisoning: in every coordinate, push the aggregate against the sign s of the honest mean mu.

    Against rules that choose by distances (krum, multi-krum, bulyan) all seats send -lam s with a lam that Krum
    chooses, found by halving. Against other rules each seat draws its own vector, uniform per coordinate from

    * b min to min where min < 0, min / b to min where min >= 0, if s = 1;
    * max to b max where max > 0, max to max / b where max <= 0, if s = -1,

    with min and max over the honest rows. With view "coalition" it is from mu - 4 sigma to mu - 3 sigma if s = 1, and
    from mu + 3 sigma to mu + 4 sigma if s = -1. Where s = 0 all send mu.

    lam starts at sqrt(min_i D_i / ((h - c - 1) d)) + max_i ||x_i|| / sqrt(d), where D_i is the sum of the squared
    distances of honest row i to its h - 2 nearest, h the number of honest rows in view and c that of seats. It is
    halved until Krum, with h - 2 neighbours, prefers the c copies; below 1e-5 of the start it is sent all the same.

    Args:
        b: how far beyond the honest values to draw, above 1.
        against: the form of the attack, ``"krum"`` or ``"coordinates"``; ``"auto"`` goes by the server's rule.

    Source:
        Fang, Cao, Jia, Gong: Local model poisoning attacks to Byzantine-robust federated learning (USENIX Security
        2020), sections 4.2 (Krum) and 4.3 (trimmed mean, median).
    """

    positive: ClassVar[tuple[str, ...]] = ("b",)
    kind: Literal["fang"] = "fang"
    b: float = 2.0
    against: Literal["auto", "coordinates", "krum"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.b <= 1:
            raise ValueError(f"b = {self.b}: must be above 1")

    def remark(self, n: int, f: int) -> str | None:
        """Warn where the attack may have no effect."""
        if self.view == "coalition" and f == 1 and self.against != "krum":
            problem = (
                "knows a single message, which has no spread: against most rules it sends that one and harms nobody"
            )
            return f'fang with view "coalition" and one Byzantine client {problem}; use view = "omniscient"'
        return super().remark(n, f)

    def _plan(self, view: View, rng: np.random.Generator) -> Callable[[int], Vector]:
        rows, unit = calm(view.honest())
        mu, sigma = mean_and_deviation(rows)
        s, dtype = np.sign(mu), view.dtype
        if self.against == "krum" or (self.against == "auto" and view.rule in _DISTANCE_RULES):
            lam = _largest_for_krum(rows, s, max(1, view.sampled_byzantine))
            vector = fit(-lam * s * unit, dtype)
            return lambda seat: vector
        low, high = self._bounds(rows, mu) if self.view == "omniscient" else (mu - 4 * s * sigma, mu - 3 * s * sigma)

        def drawn(seat: int) -> Vector:
            u = view.draw(seat).random(len(mu))
            return fit(((1 - u) * low + u * high) * unit, dtype)

        return drawn

    def _bounds(self, rows: Rows, mu: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the outer and the inner end of every coordinate's interval."""
        inner = np.where(mu > 0, rows.min(axis=0), np.where(mu < 0, rows.max(axis=0), mu)).astype(np.float64)
        outwards = np.sign(inner) == -np.sign(mu)  # further from 0 is further against the mean
        return np.where(mu == 0, mu, np.where(outwards, self.b * inner, inner / self.b)), inner


_DISTANCE_RULES = ("krum", "multi-krum", "bulyan")
"""Rules that fang's search for Krum is for."""
_HALVINGS = 17
"""After so many, lam is below 1e-5 of its start."""


def _largest_for_krum(rows: Rows, s: NDArray[np.float64], copies: int) -> float:
    """Return fang's lam: see ``Fang``.

    The squared distance of a copy to row i is ||x_i||^2 + 2 lam <x_i, s> + lam^2 <s, s>, so that trying a lam costs no
    pass over the rows.

    Args:
        rows: the honest rows, shape (h, d); must be ``calm``.
        s: signs of their mean, shape (d,).
        copies: c, at least 1.
    """
    h, d = rows.shape
    neighbours = max(1, h - 2)
    d2 = np.zeros((h + copies, h + copies))
    d2[:h, :h] = squared_distances(rows)
    squares, along = np.zeros((2, h))
    for columns in column_blocks(rows):
        block = rows[:, columns].astype(np.float64)
        squares += np.einsum("ij,ij->i", block, block)
        along += np.sum(block * s[columns], axis=1)
    length2 = float(np.sum(s * s))
    nearest = float(np.min(krum_scores(d2[:h, :h], neighbours)))
    lam = sqrt(max(nearest, 0.0) / (max(1, h - copies - 1) * d)) + sqrt(float(np.max(squares)) / d)
    for _ in range(_HALVINGS):
        d2[:h, h:] = np.maximum(squares + 2 * lam * along + lam**2 * length2, 0.0)[:, None]
        d2[h:, :h] = d2[:h, h:].T
        if int(np.argmin(krum_scores(d2, neighbours))) >= h:
            break
        lam /= 2
    return lam


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
        return fit(start * unit + self.z * push, view.dtype)


def _unit_vector(v: Vector) -> Vector:
    """Return v / ||v||, or 0 where v is too short to have a direction."""
    length = norm(v)
    return v / length if length > 1e-12 else np.zeros_like(v)
