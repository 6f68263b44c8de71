"""The ``[strategy]`` sections of the MARINA methods: hyper-parameters as a user writes them, and the method they give.

``experiment.sections.descents`` and ``experiment.sections.compressed`` have the others.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from experiment.sections.base import OVER_L, Facts, Federation, MethodSection, RoundKind, scaled
from experiment.sections.clipping import Clip, ClippingSection
from strategies.byz_vr_marina import ByzVRMarina
from strategies.byz_vr_marina_2 import ByzVRMarina2
from strategies.byz_vr_marina_pp import ByzVRMarinaPP
from strategies.compressors import Identity
from strategies.marina import DIFFERENCE, FULL
from strategies.method import Aggregator, Compressor, Method

EVERYBODY = (True, "all clients take part, and they have no majority")


LEAST: Literal["least"] = "least"


def _cohort(value: Any) -> Any:
    if value not in (None, LEAST) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f'must be a whole number of at least 1, or "{LEAST}", not {value!r}')
    return value


def least(federation: Federation, aggregator: Aggregator) -> int:
    """Return the least cohort in which the rule withstands all f Byzantine clients: C_hat >= f / delta; else n."""
    n, f = federation.clients, federation.byzantine
    return next((size for size in range(max(1, f), n) if aggregator.tolerates(size) >= f), n)


def biased(kind: str, compressor: Compressor) -> Iterator[str]:
    """Yield why a method cannot use a biased compressor, if this is one."""
    if not compressor.unbiased:
        yield (
            f'compressor.kind = "{compressor.kind}": biased, and {kind} needs an unbiased one; '
            'strategy.kind = "byz-ef21" takes it'
        )


class MarinaSection(MethodSection):
    """What the MARINA methods share."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "full_batch")

    kind: str
    p: float | None = Field(default=None, gt=0, le=1)
    """Probability of a full round; default: min(C/n, b/m, 1/(omega + 1)), with m the samples of a client and omega the
    variance of the compressor, which makes full rounds cost as much as the others together."""
    batch: int = Field(ge=1)
    """b: minibatch size of a gradient difference."""
    full_batch: int = Field(default=0, ge=0)
    """b': minibatch size of a full round; 0 for the full local gradient."""

    def conflicts(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Refuse a biased compressor."""
        yield from biased(self.kind, compressor)

    def sampled(self, federation: Federation) -> tuple[int, int]:
        """Return C and C_hat."""
        return federation.clients, federation.clients

    def cohorts(self, federation: Federation) -> dict[str, int]:
        """Return n."""
        return {"cohort": federation.clients}

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with gamma and p as numbers."""
        gamma, p = scaled(self.gamma, OVER_L, "c/L", facts, "gamma"), self.p
        if p is None:
            taking_part = self.sampled(federation)[0] / federation.clients
            p = min(taking_part, self.batch / facts.samples, 1 / (facts.compressor.omega(facts.dim) + 1), 1.0)
        return self.model_copy(update={"gamma": gamma, "p": p})

    def rounds_of(
        self, federation: Federation, facts: Facts, full: tuple[bool, str], difference: tuple[bool, str]
    ) -> Sequence[RoundKind]:
        """Return full and difference rounds, given whether and why they survive a Byzantine majority."""
        p, q, (sampled, everybody) = self.p or 1.0, facts.compressor, self.sampled(federation)
        return (
            RoundKind(FULL, p, everybody, Identity(), self.full_batch or facts.samples, full),
            RoundKind(DIFFERENCE, 1 - p, sampled, q, 2 * self.batch, difference, down=2),
        )

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return full rounds and difference rounds, of everybody."""
        return self.rounds_of(federation, facts, EVERYBODY, EVERYBODY)

    def common(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> dict[str, Any]:
        """Return the arguments that all these methods take; of a resolved section."""
        return {
            "n": federation.clients,
            "f": federation.byzantine,
            "gamma": float(self.gamma),
            "p": self.p,
            "batch": self.batch,
            "full_batch": self.full_batch,
            "aggregator": aggregator,
            "compressor": compressor,
        }


class ByzVRMarinaPPSection(MarinaSection, ClippingSection):
    """Byz-VR-MARINA-PP (Malinovsky et al., NeurIPS 2024)."""

    kind: Literal["byz-vr-marina-pp"]
    cohort: int = Field(ge=1)
    """C: clients sampled in an ordinary round."""
    full_cohort: Annotated[int | Literal["least"] | None, BeforeValidator(_cohort)] = None
    """C_hat: clients sampled in a full-gradient round; default: all. "least" is the fewest with which the rule
    withstands such a round even if all f Byzantine clients are sampled."""
    clip: Clip = True
    """Whether differences are clipped to lam = alpha ||x^k - x^{k-1}||. "auto" learns alpha from the replies; false
    switches clipping off, to see what it is for."""
    plus: bool = False
    """Aggregate clipped differences by their mean in place of the rule (Byz-VR-MARINA-PP+)."""

    def sampled(self, federation: Federation) -> tuple[int, int]:
        """Return C and C_hat; where that is not resolved yet, n."""
        return self.cohort, self.full_cohort if isinstance(self.full_cohort, int) else federation.clients

    def cohorts(self, federation: Federation) -> dict[str, int]:
        """Return C and C_hat by their keys."""
        return dict(zip(("cohort", "full_cohort"), self.sampled(federation), strict=True))

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with gamma, p, alpha and C_hat as numbers."""
        full = least(federation, facts.aggregator) if self.full_cohort == LEAST else self.sampled(federation)[1]
        update = {"alpha": self.clipping(facts), "full_cohort": full}
        return super().resolve(federation, facts).model_copy(update=update)

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return full rounds and difference rounds."""
        clipped = "differences are clipped to lam" if self.clip else "differences are not clipped"
        everybody = self.sampled(federation)[1] == federation.clients
        full = EVERYBODY if everybody else (False, "full gradients are not clipped")
        return self.rounds_of(federation, facts, full, (bool(self.clip), clipped))

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        cohort, full_cohort = self.sampled(federation)
        return ByzVRMarinaPP(
            cohort=cohort,
            full_cohort=full_cohort,
            alpha=self.multiplier,
            plus=self.plus,
            **self.common(federation, aggregator, compressor),
        )


class ByzVRMarinaSection(MarinaSection):
    """Byz-VR-MARINA (Gorbunov et al., ICLR 2023): all clients take part, nothing is clipped."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "full_batch", "gamma")  # workers take the server's step

    kind: Literal["byz-vr-marina"]

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        return ByzVRMarina(**self.common(federation, aggregator, compressor))


class ByzVRMarina2Section(MarinaSection):
    """Byz-VR-MARINA 2.0 (Rammal et al., AISTATS 2024): an estimate of its own for every client, kept by the server."""

    kind: Literal["byz-vr-marina-2"]

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        return ByzVRMarina2(**self.common(federation, aggregator, compressor))
