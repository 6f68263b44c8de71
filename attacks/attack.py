"""What all attacks share: how one is called, and how what it wants the server to aggregate becomes a packet.

Called with a ``View``, an attack returns the vector that it wants the server to aggregate for this seat, or None to
stay silent. There are four families, by how that vector becomes a packet:

* a ``Repack`` changes the packet that this seat would have sent honestly;
* a ``Copy`` sends the packet that somebody else sends;
* a ``WireFault`` (``attacks.faults``) sends its honest packet, and lets it go wrong on the way;
* any other attack aims at a vector that no honest packet need carry, and the compressor ``forge``s one.

``client.coalition`` does all of it. Collusion is agreement without talk: what a coalition knows is the same for all its
seats, and so is the generator that they draw and forge with. Where seats must differ (``Individual``), each also has a
generator that the others can reproduce.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, ClassVar, Literal, overload

import numpy as np

from attacks.moments import calm, fit, mean_and_deviation
from attacks.view import SIGHTS, Sight, View, alone
from strategies.arrays import ArrayT, Random, generator, read_rows, whole
from strategies.method import Aggregator, Compressor, Packet, Vector
from strategies.randomness import Role, stream

Membership = Literal["fixed", "per-cohort", "mobile"]
"""Which clients are Byzantine in a round; see ``Attack``."""


def mobile_attackers(clients: int, byzantine: int, seed: int, round_: int) -> frozenset[int]:
    """Return who is Byzantine in a round where membership is mobile: f of n workers, uniformly, anew in every round.

    Args:
        clients: n.
        byzantine: f.
        seed: the run's, which all clients know.
        round_: k, from 1.
    """
    return frozenset(stream(seed, Role.MEMBERSHIP, round_=round_).permutation(clients)[:byzantine].tolist())


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """What all attacks share.

    Args:
        kind: the attack's name in configs.
        view: how much the attacker knows; at least ``least``.
        membership: which clients are Byzantine. ``"fixed"``: as many as the server happens to sample.
            ``"per-cohort"``: always their share of it, rounded, as in many published experiments: the server samples
            the last f clients and the others separately. No cohort then has a Byzantine majority. ``"mobile"``: in
            every round f clients drawn anew, see ``mobile_attackers``; in the others they are honest.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    least: ClassVar[Sight] = "own"
    """The least sight that the attack makes sense with."""
    counts_cohort: ClassVar[bool] = False
    """Whether the attack asks how many Byzantine clients were sampled."""
    looks_at_own: ClassVar[bool] = True
    """Whether it ever looks at what its seat, or anybody, would send if honest; else no gradient is computed for it."""
    looks_at_peers: ClassVar[bool] = False
    """Whether it looks at the messages of others. Where they keep state, those must then be followed from round 1."""
    unites: ClassVar[bool] = True
    """Whether seats that know the same send the same; else each sends a vector from data of its own."""
    needs_spread: ClassVar[bool] = False
    """Whether it has no effect where all messages in view are equal, as with a single one."""
    positive: ClassVar[tuple[str, ...]] = ()
    """The parameters that must be above 0 and finite, where they are given."""
    finite: ClassVar[tuple[str, ...]] = ()
    """Those that must be finite."""

    kind: str
    view: Sight = "own"
    membership: Membership = "fixed"

    def __post_init__(self) -> None:
        if SIGHTS.index(self.view) < SIGHTS.index(self.least):
            raise ValueError(f'view = "{self.view}": {self.kind} needs at least "{self.least}"')
        for names, above, bound in ((self.positive, 0.0, "above 0 and finite"), (self.finite, -inf, "finite")):
            for name in names:
                value = getattr(self, name)
                if value is not None and not above < value < inf:
                    raise ValueError(f"{name} = {value}: must be {bound}")

    @property
    def label(self) -> str:
        """The attack's name in titles, which marks results of an unusual membership."""
        return self.kind if self.membership == "fixed" else f"{self.kind}, {self.membership}"

    @property
    def needs_cohort(self) -> bool:
        """Whether the attacker must know who was sampled: to count them, or to work out what they will send."""
        return self.counts_cohort or self.view == "omniscient"

    @property
    def sees_honest(self) -> bool:
        """Whether the attacker looks at what honest clients send."""
        return self.looks_at_peers and self.view == "omniscient"

    def validate(self, n: int, f: int) -> str | None:
        """Return why this attack cannot run with f Byzantine ones of n clients; None if it can."""
        return None

    def remark(self, n: int, f: int) -> str | None:
        """Return a warning about this attack with f Byzantine ones of n clients; None for none."""
        if self.needs_spread and self.view == "coalition" and f == 1:
            problem = "knows a single message, which has no spread: it sends that one and harms nobody"
            return f'{self.kind} with view "coalition" and one Byzantine client {problem}; use view = "omniscient"'
        return None

    def __call__(self, view: View, rng: np.random.Generator) -> Vector | None:
        """Choose what the server is to aggregate.

        It neither warns nor raises, whatever numbers the messages in view hold: the server notices a model that
        diverges.

        Args:
            view: what this seat knows.
            rng: for attacks that draw at random; the same for all seats of a coalition in one round.

        Returns:
            Shape (d,), dtype ``view.dtype``; None to send nothing.
        """
        with np.errstate(all="ignore"):
            return self._target(view, rng)

    @overload
    def vectors(
        self,
        honest: ArrayT,
        f: int,
        *,
        own: ArrayT | Sequence[ArrayT] | None = None,
        flipped: ArrayT | Sequence[ArrayT] | None = None,
        rule: Aggregator | None = None,
        x: ArrayT | None = None,
        x0: ArrayT | None = None,
        g: ArrayT | None = None,
        gamma: float | None = None,
        rng: Random = None,
    ) -> ArrayT: ...
    @overload
    def vectors(
        self,
        honest: Sequence[ArrayT],
        f: int,
        *,
        own: ArrayT | Sequence[ArrayT] | None = None,
        flipped: ArrayT | Sequence[ArrayT] | None = None,
        rule: Aggregator | None = None,
        x: ArrayT | None = None,
        x0: ArrayT | None = None,
        g: ArrayT | None = None,
        gamma: float | None = None,
        rng: Random = None,
    ) -> ArrayT: ...
    def vectors(
        self,
        honest: Any,
        f: int,
        *,
        own: Any = None,
        flipped: Any = None,
        rule: Aggregator | None = None,
        x: Any = None,
        x0: Any = None,
        g: Any = None,
        gamma: float | None = None,
        rng: Random = None,
    ) -> Any:
        """Return what f attackers send, given the honest vectors: the attack alone, without a federation.

        Most attacks need ``honest`` and ``f`` only; one that needs more says so. The attackers see the rows of
        ``honest``, whatever ``view`` is; to model a coalition that knows its own data only, pass its rows there.

        Args:
            honest: the vectors of the n - f honest clients: a matrix, shape (n - f, d), or a list of arrays of one
                shape; NumPy arrays or torch tensors.
            f: how many attackers there are, at least 1.
            own: what these would send if they were honest, f rows; default: the mean of the honest rows.
            flipped: the same on flipped labels, f rows; for ``LabelFlip``.
            rule: the server's aggregation rule; for attacks that try out what harms it most.
            x: the model, one vector; for ``ShiftBack``.
            x0: the model that the run started from; the same.
            g: the server's previous aggregate; for ``ROP``, which does without it.
            gamma: the server's step size; for ``ShiftBack``.
            rng: for attacks that draw, and rules with random pre-aggregators; a generator or a seed.

        Returns:
            Shape (f, d), or (f, *shape) for a list, as the honest vectors are: type and device. No rows from an
            attacker that stays silent.

        Raises:
            ValueError: rows that are no matrix, an f that the attack cannot use, or something is missing; one line.
        """
        rows, form = read_rows(honest)
        f = whole(f)
        if f < 1:
            raise ValueError(f"f = {f}: must be at least 1")
        if (flaw := self.validate(len(rows) + f, f)) is not None:
            raise ValueError(flaw)
        seats: dict[str, Any] = {}
        for name, given in (("own", own), ("flipped", flipped)):
            if given is not None:
                seats[name] = read_rows(given)[0].astype(rows.dtype, copy=False)
                if seats[name].shape != (f, rows.shape[1]):
                    raise ValueError(f"{name} of shape {seats[name].shape}: must be {(f, rows.shape[1])}, f rows")
        vectors = {"x": x, "x0": x0, "g": g}
        known = {name: form.vector(given, name) for name, given in vectors.items() if given is not None}
        rng = generator(rng, self.kind)
        views = alone(self, rows, f, seats, rule, known, gamma, rng)
        sent = [vector for vector in self._of_all(views, rng) if vector is not None]
        return form.back(np.stack(sent) if sent else rows[:0], many=True)

    def _of_all(self, views: Sequence[View], rng: np.random.Generator) -> list[Vector | None]:
        """Return what each seat of a coalition sends."""
        return [self(view, rng) for view in views]

    @abstractmethod
    def _target(self, view: View, rng: np.random.Generator) -> Vector | None:
        """Choose; see ``__call__``."""


@dataclass(frozen=True, kw_only=True)
class Individual(Attack):
    """An attack whose seats may send different vectors; what they have in common is computed once a round."""

    @np.errstate(all="ignore")
    def plan(self, view: View, rng: np.random.Generator) -> Callable[[int], Vector]:
        """Return a function from a Byzantine seat to the vector that it sends, shape (d,), dtype ``view.dtype``.

        The function is the same whichever seat's view it comes from, if those views cover the same honest messages. It
        may be called any number of times, and neither warns nor raises, as ``__call__``.
        """
        return np.errstate(all="ignore")(self._plan(view, rng))

    def _target(self, view: View, rng: np.random.Generator) -> Vector:
        return self._plan(view, rng)(view.worker)

    def _of_all(self, views: Sequence[View], rng: np.random.Generator) -> list[Vector | None]:
        sent = self.plan(views[0], rng)
        return [sent(view.worker) for view in views]

    @abstractmethod
    def _plan(self, view: View, rng: np.random.Generator) -> Callable[[int], Vector]:
        """Choose; see ``plan``."""


@dataclass(frozen=True, kw_only=True)
class Jittered(Individual):
    """An attack whose seats send one vector T or, with ``jitter``, vectors around it that look like honest ones.

    Seat i of b sends T + jitter sigma (xi_i - mean_j xi_j) sqrt(b / (b - 1)) with sigma the standard deviation of the
    honest rows in view, per coordinate, and xi_i standard normal, independent by seat and coordinate. The mean over the
    seats stays T, and with jitter = 1 they differ from each other as much as honest rows do. A single seat sends T.

    b is the number of Byzantine clients that were sampled, or of all seats of the coalition where the server does not
    reveal the cohort.
    """

    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter < inf:
            raise ValueError(f"jitter = {self.jitter}: must be at least 0 and finite")
        if self.jitter and self.view == "own":
            problem = 'a single message has no spread; use view = "coalition" or "omniscient"'
            raise ValueError(f'jitter = {self.jitter} with view = "own": {problem}')

    def remark(self, n: int, f: int) -> str | None:
        """Warn when the attack, or its jitter, has no effect."""
        remark = super().remark(n, f)
        if remark is None and self.jitter and f == 1:
            return f"{self.kind} has jitter = {self.jitter:g}, which has no effect with one Byzantine client"
        return remark

    def _plan(self, view: View, rng: np.random.Generator) -> Callable[[int], Vector]:
        middle, seats = self._middle(view, rng), view.seats
        if not self.jitter or len(seats) < 2:
            return lambda seat: middle
        dim, dtype = len(middle), middle.dtype
        rows, unit = calm(view.honest())
        scale = mean_and_deviation(rows)[1] * (self.jitter * sqrt(len(seats) / (len(seats) - 1)))
        mean = np.zeros(dim)
        for seat in seats:
            mean += view.draw(seat).standard_normal(dim)
        mean /= len(seats)

        def around(seat: int) -> Vector:
            noise = view.draw(seat).standard_normal(dim) - mean
            return fit(middle + noise * scale * unit, dtype)

        return around

    @abstractmethod
    def _middle(self, view: View, rng: np.random.Generator) -> Vector:
        """Return T, shape (d,)."""


@dataclass(frozen=True, kw_only=True)
class Colluding(Attack):
    """An attack that starts from the honest messages in view."""

    least: ClassVar[Sight] = "coalition"
    looks_at_peers: ClassVar[bool] = True
    view: Sight = "coalition"


@dataclass(frozen=True, kw_only=True)
class Repack(Attack):
    """An attack that sends a changed copy of this seat's honest packet.

    What the server reads from it is exactly what the attack, called with a view, returns.
    """

    flips_labels: ClassVar[bool] = False
    """Whether the honest packet to change is the one computed on flipped labels."""

    @abstractmethod
    def repack(self, honest: Packet, form: Compressor) -> Packet:
        """Return the packet to send in place of ``honest``, which is not modified; ``form`` is its compressor."""


@dataclass(frozen=True, kw_only=True)
class Copy(Attack):
    """An attack that sends what another worker sends: the very packet, where the server would read the same from it."""

    looks_at_peers: ClassVar[bool] = True

    @abstractmethod
    def whom(self, view: View) -> int:
        """Return the worker to copy, one that ``view.message`` knows; warn as little as ``__call__``."""

    def _target(self, view: View, rng: np.random.Generator) -> Vector | None:
        return view.message(self.whom(view))
