"""The ``[strategy]`` sections of the methods x^{k+1} = x^k - gamma ARAgg({v_i}), each with or without clipping."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from experiment.sections.base import OVER_L, Facts, Federation, RoundKind, Scaled, number, scaled
from experiment.sections.clipping import Clip, ClippingSection
from experiment.sections.marina import biased
from strategies.clipped import Clipped
from strategies.descent import Descent
from strategies.local_sgd import LocalSGD
from strategies.method import Aggregator, Compressor, Method
from strategies.robust_momentum_sgd import RobustMomentumSGD
from strategies.robust_sgd import RobustSGD


class DescentSection(ClippingSection):
    """What these methods share."""

    round_kind: ClassVar[str] = "gradient"
    """The method's word for its rounds."""

    kind: str
    cohort: int | None = Field(default=None, ge=1)
    """C: clients sampled in a round; default: all."""
    batch: int = Field(default=0, ge=0)
    """b: minibatch size; 0 for the full local gradient."""
    clip: Clip = False
    """Clip differences from the last aggregate, the heuristic for partial participation: needed where ``cohort`` is so
    small that a sampled one may have a Byzantine majority. "auto" learns alpha from the replies."""

    @abstractmethod
    def descent(self, common: dict[str, Any]) -> Descent:
        """Return the method without clipping; ``common`` are the arguments that all of the family take."""

    def conflicts(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Refuse a biased compressor."""
        yield from biased(self.kind, compressor)

    def sampled(self, federation: Federation) -> int:
        """Return C."""
        return self.cohort or federation.clients

    def cohorts(self, federation: Federation) -> dict[str, int]:
        """Return C by its key."""
        return {"cohort": self.sampled(federation)}

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with gamma, C and alpha as numbers."""
        gamma = scaled(self.gamma, OVER_L, "c/L", facts, "gamma")
        update = {"gamma": gamma, "cohort": self.sampled(federation), "alpha": self.clipping(facts)}
        return self.model_copy(update=update)

    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the one kind of round."""
        sampled = self.sampled(federation)
        if sampled == federation.clients:
            survives = (True, "all clients take part, and they have no majority")
        elif self.clip:
            survives = (True, "from round 2 on, differences from the last aggregate are clipped to lam")
        else:
            survives = (False, "nothing is clipped")
        gradients = self.steps * (self.batch or facts.samples)
        return [RoundKind(self.round_kind, 1.0, sampled, facts.compressor, gradients, survives)]

    @property
    def steps(self) -> int:
        """How many gradients a worker computes in a round."""
        return 1

    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method, wrapped where it is to be clipped."""
        method = self.descent(
            {
                "n": federation.clients,
                "f": federation.byzantine,
                "gamma": float(self.gamma),
                "cohort": self.sampled(federation),
                "aggregator": aggregator,
                "compressor": compressor,
            }
        )
        return Clipped(method=method, alpha=self.multiplier) if self.clip else method


class RobustSGDSection(DescentSection):
    """Robust SGD; with the rule "mean" plain averaging (FedSGD)."""

    kind: Literal["robust-sgd"]

    def descent(self, common: dict[str, Any]) -> Descent:
        """Return robust SGD."""
        return RobustSGD(batch=self.batch, **common)


class RobustMomentumSGDSection(DescentSection):
    """Robust SGD with client momentum (Karimireddy, He, Jaggi, ICML 2021)."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "beta")
    round_kind: ClassVar[str] = "momentum"

    kind: Literal["robust-momentum-sgd"]
    beta: float = Field(default=0.9, ge=0, lt=1)
    """Momentum: m_i = beta m_i + (1 - beta) gradient."""

    def descent(self, common: dict[str, Any]) -> Descent:
        """Return robust SGD with client momentum."""
        return RobustMomentumSGD(beta=self.beta, batch=self.batch, **common)


class LocalSGDSection(DescentSection):
    """Robust local SGD; with the rule "mean" FedAvg."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch", "local_steps", "local_gamma")

    kind: Literal["local-sgd"]
    local_steps: int = Field(ge=1, le=10_000)
    """H: local steps of a round."""
    local_gamma: Scaled
    """eta: step size of a local step, a number or "c/L". gamma = eta H with the rule "mean" is FedAvg."""

    @model_validator(mode="after")
    def _check_local_gamma(self) -> Self:
        if isinstance(self.local_gamma, str):
            number("local_gamma", self.local_gamma, OVER_L, "c/L")
        elif not 0 < self.local_gamma < math.inf:
            raise ValueError(f"local_gamma = {self.local_gamma}: must be a positive number")
        return self

    @property
    def steps(self) -> int:
        """H."""
        return self.local_steps

    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with eta as a number too."""
        local_gamma = scaled(self.local_gamma, OVER_L, "c/L", facts, "local_gamma")
        return super().resolve(federation, facts).model_copy(update={"local_gamma": local_gamma})

    def descent(self, common: dict[str, Any]) -> Descent:
        """Return robust local SGD."""
        return LocalSGD(batch=self.batch, local_steps=self.local_steps, local_gamma=float(self.local_gamma), **common)
