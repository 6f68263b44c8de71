"""The parts of a config that are one section each: what all share, [federation], and a [strategy] for each method.

The sections of the methods are derived from the methods, see ``strategies.hyperparameters``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import lru_cache, partial, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_type_hints

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from experiment.problems import explain_one, kinds_of
from foundation.errors import ConfigError
from strategies.deadline import FIRST_S
from strategies.hyperparameters import REQUIRED, Entry, Multiplier
from strategies.method import Method
from strategies.methods import METHODS
from strategies.progress import STALL_ROUNDS
from strategies.server_step import ServerSteps
from strategies.weights import capped, heaviest, whole_weights

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Checked
else:

    class _Checked(type(BaseModel)):
        """Lets a section that is made in Python report what is wrong with it as one line for each problem."""

        def __call__(cls, *args: Any, **values: Any) -> Any:
            """Make a section.

            Raises:
                ConfigError: a value is missing, unknown or out of bounds.
            """
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                raise ConfigError("\n".join(cls.explain(error))) from None


class Section(BaseModel, metaclass=_Checked):
    """A section of the file: unknown keys are refused, values are not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    @classmethod
    def explain(cls, error: ValidationError) -> list[str]:
        """Return one line for each problem: where, which value, which bound, what to do."""
        return [explain_one(item, cls, cls._name()) for item in error.errors()]

    @classmethod
    def _name(cls) -> str:
        """Return the section's name in the file."""
        return cls.__name__.removesuffix("Section").lower()


def _vet_weights(value: Any) -> Any:
    """Return weights as they are, or raise ValueError with one line."""
    if value is None:
        return None
    if not isinstance(value, dict | list):
        raise ValueError(f"must be a table of weights by name, or a list of them by seat, not {value!r}")
    for key, weight in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"{key} = {weight!r}: must be a finite number above 0")
    return value


@lru_cache(maxsize=16)
def _whole(weights: tuple[float, ...], cap: float | None) -> tuple[int, ...]:
    return whole_weights(weights if cap is None else capped(weights, cap))


class Federation(Section):
    """Who takes part, and how long the server waits for them."""

    clients: int = Field(ge=1, le=100_000)
    """n: how many clients there are; each holds one seat, 0 .. n-1."""
    byzantine: int = Field(default=0, ge=0)
    """f: how many of them may be Byzantine. In a local run the last f seats are."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes everything random: the same config and seed give the same trajectory, bit for bit."""
    server_seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Fixes, in place of ``seed``, what the server draws: the coin, the cohorts, the rule's own choices. Clients do
    not know it, so nobody can foresee them; with ``seed``, which clients must know, they can."""
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
    same_code: Literal["required", "warn"] = "required"
    """Whether a client with other code than the server's is refused, or joins with a warning. With "warn" the revisions
    of method, compressor and random streams must still agree; log and report name what each client runs. Such a run may
    not repeat to the last bit."""
    root_samples: int | None = Field(default=None, ge=1)
    """How many training samples the server keeps for a rule that needs its own row (fltrust), where all processes share
    the data; no client has them. Default: 100 with such a rule."""
    weights: Annotated[dict[str, float] | list[float] | None, BeforeValidator(_vet_weights)] = None
    """How much each client counts in the rule: numbers above 0 of which only the ratios matter, by the name in a
    client's certificate, ``{ alice = 3.0, bob = 1.0 }``, or in experiments as a list by seat. By name, seats follow the
    sorted names, and no other name may join. The f heaviest must have less than half of all weight. Default: all count
    the same."""
    weight_cap: float | None = Field(default=None, gt=0, le=1)
    """The greatest share of all weight that one client may have: larger ones are lowered to it, which raises the others
    in proportion."""
    declare_samples: bool = True
    """Whether clients with their own data tell the server how many samples they have. Defaults that need m, such as
    that of ``strategy.p``, use the median of these counts; without them they must be given."""
    reveal_cohort: bool = False
    """Tell the sampled clients who else was sampled. For experiments with attackers that need to know, and for nothing
    else."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights is None:
            if self.weight_cap is not None:
                raise ValueError(f"weight_cap = {self.weight_cap:g}: there are no weights; give both or neither")
            return self
        n, f = self.clients, self.byzantine
        if len(self.weights) != n:
            raise ValueError(f"weights: {len(self.weights)} for clients = {n}; every client needs one")
        try:
            whole = self.whole_weights
        except ValueError as error:
            raise ValueError(f"weight_cap = {error}") from None
        if whole and 2 * f < n and 2 * (most := heaviest(np.array(whole), f)) >= sum(whole):
            share = f"the {f} heaviest of them have {100 * most / sum(whole):.3g} % of the weight"
            fix = f"set weight_cap below {1 / (2 * f):.3g}, or lower byzantine"
            raise ValueError(f"weights: {share}, and no rule withstands half; {fix}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the clients by seat, where weights are given by name; else ()."""
        return tuple(sorted(self.weights)) if isinstance(self.weights, dict) else ()

    @property
    def seat_weights(self) -> list[float] | None:
        """The weights as they are written, by seat; None where there are none."""
        weights = self.weights
        return [weights[name] for name in self.names] if isinstance(weights, dict) else weights

    @property
    def whole_weights(self) -> tuple[int, ...]:
        """The weights after ``weight_cap`` as whole numbers, by seat; () where all clients count the same."""
        weights = self.seat_weights
        return () if weights is None else _whole(tuple(map(float, weights)), self.weight_cap)

    def seated(self, names: Sequence[str] | None = None) -> Self:
        """Return the section with its weights by seat.

        Args:
            names: who has which seat; None for the order of ``names``.

        Raises:
            ConfigError: one of them has no weight; one line.
        """
        weights = self.weights
        if not isinstance(weights, dict):
            return self
        for name in names or ():
            if name not in weights:
                known = ", ".join(sorted(weights))
                raise ConfigError(f'[federation] weights: none for "{name}", only for {known}; or give a list by seat')
        return self.model_copy(update={"weights": [weights[name] for name in names or self.names]})

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


class MethodSection(Section):
    """What every ``[strategy]`` section has."""

    method: ClassVar[type[Method]]

    kind: str
    rounds: int = Field(ge=1)
    """How many rounds to run; after round r the model is x^r."""
    gamma: Any
    """Step size: a number, "c/L" where the task knows its L, or a schedule, see ``strategies.schedules``."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_server_steps(cls, data: Any) -> Any:
        """Say why a method takes no server step, which it has no key for."""
        if isinstance(data, dict) and data.get("server") is not None and "server" not in cls.model_fields:
            why = f"{cls.method.kind} takes no server step: {cls.method.no_server_step}"
            those = ", ".join(method.kind for method in METHODS if issubclass(method, ServerSteps))
            raise ValueError(f"server: {why}; leave it out, or choose one of {those}")
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, key in self.method.keys().items():
            key.check(name, dict(self))
        return self

    @classmethod
    def _name(cls) -> str:
        return "strategy"

    @classmethod
    def written_as(cls, method: Method, rounds: int) -> dict[str, Any]:
        """Return the section that a method was written as: what is in units of L, or left open, stays so."""
        return {"kind": method.kind, "rounds": rounds, **method.written()}

    def holding(self, method: Method) -> Self:
        """Return the section that gives this method, with nothing left open."""
        return type(self)(kind=self.kind, rounds=self.rounds, **method.written())


def section_of(method: type[Method]) -> type[MethodSection]:
    """Return the ``[strategy]`` section of a method."""
    found: dict[str, Any] = {"kind": (Literal[method.kind], ...)}
    hints = get_type_hints(method)
    defaults = {each.name: REQUIRED if each.default is MISSING else each.default for each in fields(method)}
    # What a user looks for first comes first: after gamma, whether the method clips.
    for name, key in sorted(method.keys().items(), key=lambda item: not isinstance(item[1], Multiplier)):
        found |= {each: _typed(entry) for each, entry in key.entries(name, hints[name], defaults[name]).items()}
    section = create_model(f"{method.__name__}Section", __base__=MethodSection, __doc__=method.__doc__, **found)
    section.method = method
    return section


def _typed(entry: Entry) -> tuple[Any, Any]:
    """Return a key as pydantic declares it."""
    type_ = entry.type if entry.vet is None else Annotated[entry.type, BeforeValidator(entry.vet)]
    if entry.kinds:
        type_ = Annotated[reduce(or_, entry.kinds, type_), BeforeValidator(partial(_read_table, entry))]
    return type_, Field(entry.default, description=entry.meaning or None, **entry.bounds)


def _read_table(entry: Entry, value: Any) -> Any:
    """Return a value that may be a table with its ``kind`` as what it stands for; raise ValueError with one line."""
    if isinstance(value, dict):
        union: Any = Annotated[reduce(or_, entry.kinds), Discriminator("kind")]
        adapter: TypeAdapter[Any] = TypeAdapter(union)
        try:
            return adapter.validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            raise ValueError(explain_one(error.errors()[0], union, "")) from None
    numbers = (int, float, str) if entry.type is not None else (type(None),)
    if isinstance(value, bool) or not isinstance(value, (*numbers, *entry.kinds)):
        kinds = ", ".join(kinds_of(reduce(or_, entry.kinds)))
        plain = 'a number, "c/L" or ' if entry.type is not None else ""
        raise ValueError(f"must be {plain}a table with kind = one of {kinds}, not {value!r}")
    return value


METHOD_SECTIONS = tuple(map(section_of, METHODS))
globals().update({section.__name__: section for section in METHOD_SECTIONS})  # pickle looks classes up by name
