"""The ``[strategy]`` sections of the methods that are made for compression, in which the server keeps a vector of every
client: an estimate of its gradient (Byz-DASHA-PAGE, Byz-EF21), a momentum (RoSDHB)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from experiment.sections.base import OVER_L, Facts, Federation, MethodSection, RoundKind, scaled
from experiment.sections.descents import DescentSection
from experiment.sections.marina import EVERYBODY, biased
from foundation.errors import ConfigError
from strategies.byz_dasha_page import DIFFERENCE, FULL, ByzDashaPage
from strategies.byz_ef21 import CHANGE, ByzEF21, ByzEF21BC
from strategies.compressors import Identity
from strategies.descent import Descent
from strategies.estimates import START
from strategies.method import Aggregator, Compressor, Method
from strategies.rosdhb import RoSDHB, RoSDHBLocal


class EstimatesSection(MethodSection):
    """What the methods with an estimate of every client's gradient share. All clients take part in every round."""

    kind: str

    def cohorts(self, federation: Federation) -> dict[str, int]:
        """Return n."""
        return {"cohort": federation.clients}

    def started(self, federation: Federation, facts: Facts, *later: RoundKind) -> Sequence[RoundKind]:
        """Return the plan: the first round, and the kinds of later ones, whose shares sum to 1 - 1/rounds."""
        first = RoundKind(START, 1 / self.rounds, federation.clients, Identity(), facts.samples, EVERYBODY)
        return [first, *(kind for kind in later if kind.share > 0)]

    def common(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> dict[str, Any]:
        """Return the arguments that all these methods take."""
        return {
            "n": federation.clients,
            "f": federation.byzantine,
            "gamma": float(self.gamma),
            "aggregator": aggregator,
            "compressor": compressor,
        }


class ByzDashaPageSection(EstimatesSection):
    """Byz-DASHA-PAGE (Rammal et al., AISTATS 2024)."""

    kind: Literal["byz-dasha-page"]
    batch: int = Field(ge=1)
    """b: minibatch size of a gradient difference."""
    p: float | None = Field(default=None, gt=0, le=1)
    """Probability of a round of full gradients; default: b/m, with m the samples of a client."""
    a: float | None = Field(default=None, gt=0, le=1)
    """Momentum; default: 1/(2 omega + 1), with omega the variance of the compressor."""

    def conflicts(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Refuse a biased compressor."""
        yield from biased(self.kind, compressor)

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with gamma, p and a as numbers."""
        return self.model_copy(
            update={
                "gamma": scaled(self.gamma, OVER_L, "c/L", facts, "gamma"),
                "p": self.p or min(1.0, self.batch / facts.samples),
                "a": self.a or 1.0 / (2.0 * facts.compressor.omega(facts.dim) + 1.0),
            }
        )

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the first round, and those of either side of the coin."""
        n, q, p, rest = federation.clients, facts.compressor, self.p or 1.0, 1 - 1 / self.rounds
        return self.started(
            federation,
            facts,
            RoundKind(FULL, rest * p, n, q, facts.samples, EVERYBODY),
            RoundKind(DIFFERENCE, rest * (1 - p), n, q, 2 * self.batch, EVERYBODY, down=2),
        )

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        if self.p is None or self.a is None:
            raise ConfigError("[strategy] p, a: not resolved")
        common = self.common(federation, aggregator, compressor)
        return ByzDashaPage(p=self.p, batch=self.batch, a=self.a, **common)


class ErrorFeedbackSection(EstimatesSection):
    """What the methods with error feedback share: full gradients, and a compressor that is a contraction."""

    worker_keys: ClassVar[tuple[str, ...]] = ()

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with gamma as a number.

        Raises:
            ConfigError: the compressor is no contraction.
        """
        delta = facts.compressor.contraction(facts.dim)
        if not delta > 0:
            raise ConfigError(
                f'[compressor] kind = "{facts.compressor.kind}": E||C(v) - v||^2 <= (1 - delta) ||v||^2 holds with '
                f"delta = {delta:.3g} only, and error feedback needs delta > 0; choose top-k, for example"
            )
        return self.model_copy(update={"gamma": scaled(self.gamma, OVER_L, "c/L", facts, "gamma")})


class ByzEF21Section(ErrorFeedbackSection):
    """Byz-EF21 (Rammal et al., AISTATS 2024)."""

    kind: Literal["byz-ef21"]

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the first round and the others."""
        rest = 1 - 1 / self.rounds
        return self.started(
            federation,
            facts,
            RoundKind(CHANGE, rest, federation.clients, facts.compressor, facts.samples, EVERYBODY),
        )

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        return ByzEF21(**self.common(federation, aggregator, compressor))


class ByzEF21BCSection(ErrorFeedbackSection):
    """Byz-EF21-BC: the broadcast is compressed as well, by the same compressor (Rammal et al., AISTATS 2024)."""

    kind: Literal["byz-ef21-bc"]

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the first round and the others."""
        q, rest = facts.compressor, 1 - 1 / self.rounds
        return self.started(
            federation,
            facts,
            RoundKind(CHANGE, rest, federation.clients, q, facts.samples, EVERYBODY, down=0, broadcast=q),
        )

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method."""
        return ByzEF21BC(**self.common(federation, aggregator, compressor))


class ServerMomentumSection(DescentSection):
    """What RoSDHB and RoSDHB-Local share."""

    masks: ClassVar[tuple[str, str]]
    """The compressor that it needs, and why."""

    beta: float = Field(default=0.9, ge=0, lt=1)
    """Momentum: m_i = beta m_i + (1 - beta) gradient, kept by the server."""

    def conflicts(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Refuse a compressor that masks otherwise, or not at all; k = d is fine."""
        needed, why = self.masks
        if compressor.kind not in (needed, Identity().kind):
            yield (
                f'compressor.kind = "{compressor.kind}": {self.kind} {why}; choose "{needed}" (or "identity", to send '
                "everything)"
            )

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the one kind of round: without clipping all momenta count, whoever is sampled."""
        [round_] = super().plan(federation, facts)
        whole = (True, "the momenta of all clients are aggregated, sampled or not")
        return [round_ if self.clip else replace(round_, survives=whole)]


class RoSDHBSection(ServerMomentumSection):
    """RoSDHB (Gupta et al., AISTATS 2026): one mask a round, drawn by the server."""

    masks: ClassVar[tuple[str, str]] = ("masked", "draws one mask for all workers of a round")

    kind: Literal["rosdhb"]

    def descent(self, common: dict[str, Any]) -> Descent:
        """Return RoSDHB."""
        return RoSDHB(beta=self.beta, batch=self.batch, **common)


class RoSDHBLocalSection(ServerMomentumSection):
    """RoSDHB-Local: every worker draws its own masks, and may take local steps."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "local_steps", "local_gamma")
    masks: ClassVar[tuple[str, str]] = ("rand-k", "lets every worker draw its own masks")

    kind: Literal["rosdhb-local"]
    local_steps: int = Field(default=1, ge=1, le=10_000)
    """H: local steps of a round; with more than one, workers send model deltas in gradient units."""
    local_gamma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """eta: step size of a local step."""

    @model_validator(mode="after")
    def _check_local_gamma(self) -> Self:
        if self.local_steps > 1 and self.local_gamma is None:
            raise ValueError(f"local_gamma: missing; local_steps = {self.local_steps} need a step size")
        return self

    @property
    def steps(self) -> int:
        """H."""
        return self.local_steps

    def descent(self, common: dict[str, Any]) -> Descent:
        """Return RoSDHB-Local."""
        eta = self.local_gamma or 0.0
        return RoSDHBLocal(beta=self.beta, batch=self.batch, local_steps=self.local_steps, local_gamma=eta, **common)
