"""What the sections of a config are made of: strict types, and numbers that may be given in terms of the task's L.

``experiment.sections.marina`` has a section for each method, ``experiment.config`` the whole file.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from foundation.errors import ConfigError
from strategies.deadline import FIRST_S
from strategies.method import Aggregator, Compressor, Method
from strategies.progress import STALL_ROUNDS


class Section(BaseModel):
    """A section of the file: unknown keys are refused, values are not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )


class Federation(Section):
    """Who takes part, and how long the server waits for them."""

    clients: int = Field(ge=1, le=100_000)
    """n: how many clients there are; each holds one seat, 0 .. n-1."""
    byzantine: int = Field(default=0, ge=0)
    """f: how many of them may be Byzantine. In a local run the last f seats are."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes everything random: the same config and seed give the same trajectory, bit for bit."""
    server_seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Fixes, in place of ``seed``, what the server draws: the coin, the cohorts, the rule's own choices. Clients are
    not told it, so nobody can foresee them; with ``seed``, which clients must know, they can."""
    deadline_s: float | None = Field(default=None, gt=0)
    """Seconds that a round waits for its replies; who has not answered by then is silent in this round. Default: learnt
    from what rounds take, 5 to 30 s, see ``strategies.deadline``."""
    flower_deadline_s: float = Field(default=120.0, gt=0)
    """The same where messages go through Flower's SuperLink and SuperNodes, which poll and start a process for each."""
    quorum: float | None = Field(default=None, gt=0, le=1)
    """The share of the sampled clients whose replies a round needs; with fewer usable ones it goes on as if none had
    come. Default: what the method itself needs (more than half in a full round, none elsewhere)."""
    join_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds to wait for clients: at the start, whenever nobody is connected, and while a run is held because too few
    of them answer; see ``stall_rounds``."""
    stall_rounds: int = Field(default=STALL_ROUNDS, ge=1)
    """Rounds in a row without a usable reply after which the model is held and all connected clients are asked, until
    f + 1 of them answer; after ``join_timeout_s`` the run ends as "stalled". The same happens where fewer than f + 1
    distinct clients had usable replies for so long that sampling cannot explain it. See ``strategies.progress``."""
    start_with: int | None = Field(default=None, ge=1)
    """How many clients must have joined before round 1; default: all."""
    heartbeat_s: float = Field(default=5.0, ge=0.1)
    """Seconds between signs of life; a peer that misses one for as long again is gone."""
    reveal_cohort: bool = False
    """Tell the sampled clients who else was sampled. For experiments with attackers that need to know, and for nothing
    else."""

    @property
    def seed_of_server(self) -> int:
        """What the server's own draws come from."""
        return self.seed if self.server_seed is None else self.server_seed

    @property
    def last_seats(self) -> range:
        """The last f seats, which are the Byzantine ones where one party starts all clients."""
        return range(self.clients - self.byzantine, self.clients)

    @property
    def longest_deadline_s(self) -> float:
        """The deadline of rounds over the link, or the most that is learnt."""
        return FIRST_S if self.deadline_s is None else self.deadline_s


@dataclass(frozen=True)
class Facts:
    """What the loaded task, the compressor and the rule tell a method's section: the letters of the papers' formulas.

    Args:
        dim: d.
        samples: m, the samples of a worker.
        compressor: Q, with its own defaults filled in.
        aggregator: ARAgg.
        smoothness: returns L, None where the task does not know it; may take a while, so it is only called if needed.
    """

    dim: int
    samples: int
    compressor: Compressor
    aggregator: Aggregator
    smoothness: Callable[[], float | None]


@dataclass(frozen=True)
class RoundKind:
    """One kind of round of a method: how often it comes, what travels and what it costs; for ``breakwater check``.

    Args:
        name: the method's word for it.
        share: probability of a round of this kind.
        sampled: clients sampled.
        up: the compressor of the replies.
        gradients: gradients of single samples that one worker computes.
        survives: whether the method survives such a round with a Byzantine majority, and why, in a few words.
        down: dense vectors that every sampled client is sent.
        broadcast: the compressor of what else it is sent, if anything.
    """

    name: str
    share: float
    sampled: int
    up: Compressor
    gradients: int
    survives: tuple[bool, str]
    down: int = 1
    broadcast: Compressor | None = None


Scaled = float | str
OVER_L = re.compile(r"\s*(?P<c>[0-9.eE+-]+)\s*/\s*L\s*")
TIMES_L = re.compile(r"\s*(?P<c>[0-9.eE+-]+)?\s*\*?\s*L\s*")


def number(key: str, text: str, pattern: re.Pattern[str], form: str) -> float:
    """Return c of ``"c/L"`` or ``"cL"``."""
    match = pattern.fullmatch(text)
    try:
        value = float(match["c"] or 1) if match else math.nan
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        example = form.replace("c", "0.5")
        raise ValueError(f'{key} = "{text}": must be a positive number or "{form}", for example "{example}"')
    return value


def scaled(value: Scaled, pattern: re.Pattern[str], form: str, facts: Facts, key: str) -> float:
    """Turn ``"c/L"`` or ``"cL"`` into a number with the task's L.

    Raises:
        ConfigError: the task does not know its L.
    """
    if not isinstance(value, str):
        return float(value)
    c = number(key, value, pattern, form)
    smoothness = facts.smoothness()
    if smoothness is None:
        raise ConfigError(f'[strategy] {key} = "{value}": this task does not know its L; give a number')
    return c / smoothness if pattern is OVER_L else c * smoothness


class MethodSection(Section, ABC):
    """What every method's section has."""

    worker_keys: ClassVar[tuple[str, ...]] = ("batch",)
    """The keys that an honest client must agree on with the server, beside ``kind``: what a worker computes."""

    rounds: int = Field(ge=1)
    """How many rounds to run; after round r the model is x^r."""
    gamma: Scaled
    """Step size: a number, or "c/L" where the task knows its L."""

    @model_validator(mode="after")
    def _check_gamma(self) -> Self:
        if isinstance(self.gamma, str):
            number("gamma", self.gamma, OVER_L, "c/L")
        elif not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma = {self.gamma}: must be a positive number")
        return self

    @abstractmethod
    def cohorts(self, federation: Federation) -> dict[str, int]:
        """Return the cohort sizes by key, defaults filled in."""

    @abstractmethod
    def resolve(self, federation: Federation, facts: Facts) -> Self:
        """Return the section with plain numbers and no defaults left open.

        Raises:
            ConfigError: a value needs something that the task or the compressor does not have; one line.
        """

    @abstractmethod
    def build(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Method:
        """Return the method of a resolved section."""

    def conflicts(self, federation: Federation, aggregator: Aggregator, compressor: Compressor) -> Iterator[str]:
        """Yield what of the other sections does not go with this method, one line each; nothing for most."""
        yield from ()

    @abstractmethod
    def plan(self, federation: Federation, facts: Facts) -> Sequence[RoundKind]:
        """Return the kinds of rounds of a resolved section; their shares sum to 1."""
