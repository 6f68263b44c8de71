"""One experiment: the TOML file that every process of a federation reads, as typed sections.

The unions here are the only registry: a new rule, compressor, attack or task is added to its union and nowhere else.
Methods have their table in ``strategies.methods``. Loading goes in two steps. ``load`` checks everything that the file
alone can tell. ``resolve`` fills in what only the loaded task knows (L and d): a ``ResolvedConfig`` holds the method,
and plain numbers that load again to the same bits.
"""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import tomli_w
from pydantic import Discriminator, Field, PrivateAttr, TypeAdapter, ValidationError, field_validator, model_validator

from attacks.adaptive import ROP, Mimic, MinMax, MinSum, OptimalALIE, OptimalIPM
from attacks.attack import Attack
from attacks.classical import ALIE, FOE, IPM, Big, BitFlip, Gaussian, Infinity, LabelFlip, NaN, ShiftBack, Silence, Zero
from attacks.faults import WireFault
from experiment.sections import METHOD_SECTIONS, Federation, MethodSection, Section
from foundation.errors import ConfigError
from foundation.text import TextError, read_text
from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    CoordinateMedian,
    CovarianceFilter,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    SmallestVarianceAveraging,
    TrimmedMean,
)
from strategies.aggregators.preaggregators import (
    AdaptiveRobustClipping,
    Bucketing,
    NearestNeighbourMixing,
    StaticClipping,
)
from strategies.cohorts import expected_byzantine, quorum_of
from strategies.compressors import QSGD, Identity, Masked, Natural, PermK, RandK, ScaledSign, TopK
from strategies.hyperparameters import Constants
from strategies.method import Method
from tasks.contract import Problem, Setting
from tasks.custom import CustomTask
from tasks.digits import DigitsTask
from tasks.logistic import LogisticTask
from tasks.mnist import MnistTask


class EvaluationSection(Section):
    """When the server measures the model."""

    every: int = Field(default=50, ge=1)
    """Rounds between evaluations; the last round is always evaluated."""


class CheckpointSection(Section):
    """How often the server writes down all that it needs to go on after a crash."""

    every: int | None = Field(default=None, ge=0)
    """Rounds between checkpoints; 0 for none. Default: as often as takes 2 % of the time, at most once a second."""
    keep: int = Field(default=3, ge=1)
    """How many of the newest are kept."""


if TYPE_CHECKING:
    StrategyUnion = MethodSection
else:
    StrategyUnion = Annotated[reduce(or_, METHOD_SECTIONS), Discriminator("kind")]
_Coordinates = Mean | CoordinateMedian | TrimmedMean | MeanAroundMedian
_Distances = Krum | MultiKrum | Bulyan | MinimumDiameterAveraging | MoNNA
_Centers = CenteredClipping | CovarianceFilter | SmallestVarianceAveraging
AggregatorUnion = Annotated[_Coordinates | GeometricMedian | _Distances | _Centers, Discriminator("kind")]
_Compressors = Identity | RandK | Masked | PermK | TopK | QSGD | Natural | ScaledSign
CompressorUnion = Annotated[_Compressors, Discriminator("kind")]
_Directions = BitFlip | LabelFlip | ALIE | OptimalALIE | IPM | OptimalIPM | FOE
_Searches = MinMax | MinSum | Mimic | ROP
_Values = ShiftBack | Gaussian | Zero | Big | NaN | Infinity
AttackUnion = Annotated[_Directions | _Searches | _Values | Silence | WireFault, Discriminator("kind")]
_PreAggregators = Bucketing | NearestNeighbourMixing | StaticClipping | AdaptiveRobustClipping
PreAggregatorUnion = Annotated[_PreAggregators, Discriminator("kind")]
TaskUnion = Annotated[LogisticTask | DigitsTask | MnistTask | CustomTask, Discriminator("kind")]


class Config(Section):
    """The whole experiment."""

    federation: Federation
    task: TaskUnion
    strategy: StrategyUnion
    aggregator: AggregatorUnion = CoordinateMedian()
    compressor: CompressorUnion = Identity()
    attack: AttackUnion | None = None
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @field_validator("aggregator", mode="before")
    @classmethod
    def _read_presteps(cls, section: Any) -> Any:
        """Let a pre-aggregator be written by its name alone, ``pre = ["nnm"]``, and read it by its kind."""
        if not isinstance(section, dict) or not isinstance(section.get("pre", []), list):
            return section
        section = {"kind": "cm", **section}  # the default rule, where only its pre-aggregators are named
        adapter: TypeAdapter[Any] = TypeAdapter(PreAggregatorUnion)
        steps = []
        for item in section.get("pre", []):
            try:
                steps.append(adapter.validate_python({"kind": item} if isinstance(item, str) else item))
            except ValidationError as error:
                raise ValueError("pre: " + _explain_one(error.errors()[0], PreAggregatorUnion, "")) from None
        return {**section, "pre": tuple(steps)}

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        for problem in self._conflicts():
            raise ValueError(problem)
        return self

    def _conflicts(self) -> Iterable[str]:
        """Yield what no run of this config could make sense of."""
        n, f = self.federation.clients, self.federation.byzantine
        if 2 * f >= n:
            yield f"federation.byzantine = {f} of clients = {n}: no rule withstands half; at most {(n - 1) // 2}"
        start_with = self.federation.start_with
        if start_with is not None and start_with > n:
            yield f"federation.start_with = {start_with}: must be at most clients = {n}"
        if start_with is not None and start_with <= f < n / 2:
            fewer = "fewer may all be attackers, and no round would count"
            yield f"federation.start_with = {start_with}: must be at least byzantine + 1 = {f + 1}; {fewer}"
        steps = " and ".join(step.kind for step in self.aggregator.pre)
        rule = f'aggregator.kind = "{self.aggregator.kind}"{" after " if steps else ""}{steps}'
        few = f"too few rows for {rule}; sample more clients or choose another rule"
        for key, size in self.cohorts.items():
            cohort, share = f"strategy.{key} = {size}", expected_byzantine(size, n, f)
            if size > n:
                yield f"{cohort}: must be at most federation.clients = {n}"
            if self.aggregator.tolerates(size) < 0:
                yield f"{cohort}: {few}"
            elif 0 < share < size and self.aggregator.tolerates(size - share) < 0:
                yield f"{cohort}: if {share} of them are Byzantine and stay silent, {size - share} are left: {few}"
        most = max(self.cohorts.values())
        share, tolerated = expected_byzantine(most, n, f), self.aggregator.tolerates(most)
        if 0 <= tolerated < share:
            bound = f"federation.byzantine = {f} of clients = {n}"
            yield f"{rule} tolerates {tolerated} of {most} rows, but {share} of them may be Byzantine ({bound})"
        quorum = self.federation.quorum
        for key, size in self.cohorts.items() if quorum is not None else ():
            wanted, most = quorum_of(quorum, size), min(size, n - f)
            if wanted > most:
                asked = f"federation.quorum = {quorum:g}: wants {wanted} replies of strategy.{key} = {size}"
                yield f"{asked}, but {f} silent Byzantine clients leave only {most}; at most {most / size:.3g}"
        yield from self.strategy.method.conflicts(dict(self.strategy), self.compressor)
        if self.attack is not None and f == 0:
            yield f'attack.kind = "{self.attack.kind}" with federation.byzantine = 0: nobody attacks; set byzantine'
        elif self.attack is not None and (flaw := self.attack.validate(n, f)) is not None:
            yield f"[attack] {flaw}"

    @property
    def cohorts(self) -> dict[str, int]:
        """The cohort sizes by key."""
        n, f = self.federation.clients, self.federation.byzantine
        return self.strategy.method.cohorts(dict(self.strategy), n, f, self.aggregator)

    @property
    def reveals_cohort(self) -> bool:
        """Whether the sampled clients learn who else was sampled."""
        return self.federation.reveal_cohort or (self.attack is not None and self.attack.needs_cohort)

    def setting(self, data_dir: Path | None, config_dir: Path | None) -> Setting:
        """Return what the task needs in order to load."""
        who = self.federation
        return Setting(who.clients, who.byzantine, who.seed, data_dir=data_dir, config_dir=config_dir)

    def worker_terms(self) -> dict[str, Any]:
        """Return what an honest client must agree on with the server: data, seed, what it computes and sends."""
        whole = self.model_dump(mode="json", exclude_none=True)
        return {
            "federation": {key: whole["federation"][key] for key in ("clients", "byzantine", "seed")},
            "task": whole["task"],
            "strategy": {key: whole["strategy"].get(key) for key in ("kind", *self.strategy.method.worker_keys)},
            "compressor": whole["compressor"],
        }

    def trajectory_terms(self) -> dict[str, Any]:
        """Return what the models of a run depend on: all but how long it is, what is measured, how long one waits."""
        whole = self.model_dump(mode="json", exclude_none=True)
        del whole["evaluation"], whole["checkpoint"], whole["strategy"]["rounds"]
        waits = ("deadline_s", "flower_deadline_s", "join_timeout_s", "stall_rounds", "start_with", "heartbeat_s")
        for key in (*waits, "same_code"):
            whole["federation"].pop(key, None)
        return whole

    def for_clients(self) -> Self:
        """Return the config as clients may know it: without what is the server's alone."""
        return self.model_copy(update={"federation": self.federation.model_copy(update={"server_seed": None})})

    def to_toml(self) -> str:
        """Return the config as TOML; loading it again gives an equal config."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


class ResolvedConfig(Config):
    """A config in which nothing is left open. As TOML it loads and resolves to an equal one."""

    _method: Method = PrivateAttr()

    @property
    def method(self) -> Method:
        """The method, ready for either half."""
        return self._method


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: one line for each problem, with the key, the value, the bound and the fix.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; deploy/configs/ holds one for each thing to try") from None
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(text, overrides, name=str(path))


def parse(text: str, overrides: Sequence[str] = (), *, name: str = "config") -> Config:
    """Read a config from TOML text; see ``load``."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
    for override in overrides:
        _override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in _explain(error))) from None


def parse_attack(kind: str, settings: Sequence[str], config: Config) -> Attack:
    """Return the attack that a client is to run.

    Its parameters are those of the config's ``[attack]`` section where that is of the same kind, and ``settings``
    (``attack.key=value``) on top of them.

    Raises:
        ConfigError: unknown kind or parameter, a bad value, or a view that this experiment does not offer.
    """
    same = config.attack is not None and config.attack.kind == kind
    given = config.model_dump(mode="json", exclude_none=True)["attack"] if same else {"kind": kind}
    tree: dict[str, Any] = {"attack": given}
    for setting in settings:
        if not setting.startswith("attack."):
            raise ConfigError(f"--set {setting}: a client only takes attack.key=value; the rest is the server's")
        _override(tree, setting)
    try:
        attack = TypeAdapter(AttackUnion).validate_python(tree["attack"])
    except ValidationError as error:
        lines = [_explain_one(item, AttackUnion, "attack") for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    flaw = attack.validate(config.federation.clients, config.federation.byzantine)
    if flaw is not None:
        raise ConfigError(f"[attack] {flaw}")
    if attack.needs_cohort and not config.reveals_cohort:
        fix = "set federation.reveal_cohort = true there, or choose another attack or view"
        raise ConfigError(f'attack "{kind}" with view "{attack.view}" needs the cohort, which this server hides; {fix}')
    return attack


@dataclass(frozen=True)
class ProblemConstants:
    """What a loaded task reports; ``task`` in ``summary.json``, so that a report need not load it again.

    Args:
        dim: d, the number of parameters.
        dtype: of the model and of what travels.
        samples: m, the samples of a worker.
        smoothness: L; None where the task does not know it.
        optimum: f*; None where the task does not know it.
    """

    dim: int
    dtype: np.dtype[Any]
    samples: int
    smoothness: float | None
    optimum: float | None

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return those of a loaded task."""
        smoothness, optimum = _maybe(problem.smoothness), _maybe(problem.optimum)
        return cls(int(problem.dim), problem.dtype, int(problem.samples), smoothness, optimum)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Return what ``to_dict`` returned.

        Raises:
            ValueError, KeyError, TypeError: it did not write this.
        """
        dim, dtype, samples = int(data["dim"]), np.dtype(data["dtype"]), int(data["samples"])
        if dim < 1 or samples < 1 or dtype.kind != "f":
            raise ValueError(f"no facts of a task: {data}")
        return cls(dim, dtype, samples, _maybe(data.get("smoothness")), _maybe(data.get("optimum")))

    def to_dict(self) -> dict[str, Any]:
        """Return them as JSON has it."""
        return asdict(self) | {"dtype": self.dtype.name}


def _maybe(number: Any) -> float | None:
    return None if number is None else float(number)


def resolve(config: Config, task: Problem | ProblemConstants) -> ResolvedConfig:
    """Fill in what only the loaded task knows, and check what depends on it.

    Raises:
        ConfigError: a value does not fit the task, for example k > d.
    """
    try:
        compressor: Any = config.compressor
        if getattr(compressor, "parts", 0) is None:  # one part for each worker
            compressor = replace(compressor, parts=config.federation.clients)
        compressor.layout(task.dim, task.dtype)
    except ValueError as error:
        raise ConfigError(f"[compressor] {error}") from None
    who, rule = config.federation, config.aggregator
    sizes = {"n": who.clients, "f": who.byzantine, "dim": task.dim, "samples": task.samples}
    constants = Constants(aggregator=rule, compressor=compressor, smoothness=lambda: task.smoothness, **sizes)
    method = config.strategy.method.of(dict(config.strategy), constants)
    parts = dict(config) | {"compressor": compressor, "strategy": config.strategy.holding(method)}
    resolved = ResolvedConfig.model_construct(**parts)
    resolved._method = method
    return resolved


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value`` to the parsed file; the value is TOML, or a bare string."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if path[:2] == ["task", "options"] and len(path) > 2:
        path = _dotted(key) or path
    elif len(path) != 2:
        path = []
    if not equals or not path or not all(path):
        examples = "--set strategy.rounds=100 or --set task.options.hidden=8"
        raise ConfigError(f"--set {override}: must read section.key=value, for example {examples}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, name = path
    section = tables[0]
    if path[1] == "kind" and not isinstance(value, str):
        value = text.strip()  # TOML reads the nan of attack.kind=nan as a number
    if (*path, value) == ("attack", "kind", "none"):
        tree.pop("attack", None)
        return
    if not isinstance(tree.setdefault(section, {}), dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    if path[1] == "kind" and tree[section].get("kind") != value:
        # Another kind has other keys: start its section afresh, but keep what every kind of method shares.
        keep = {"rounds", "gamma"} if section == "strategy" else {"pre"} if section == "aggregator" else set()
        tree[section] = {k: v for k, v in tree[section].items() if k in keep}
    place = tree
    for depth, table in enumerate(tables):
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {'.'.join(tables[: depth + 1])} is not a table")
    if isinstance(place.get(name), str) and isinstance(value, float) and not math.isfinite(value):
        value = text.strip()  # TOML reads nan and inf as numbers, where a string was
    place[name] = value


def _dotted(key: str) -> list[str]:
    """Return the parts of a dotted key as TOML reads it, so that a part may be quoted; none if it is no such key."""
    try:
        tree: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    path = []
    while isinstance(tree, dict):
        ((part, tree),) = tree.items()
        path.append(part)
    return path


def _explain(error: ValidationError) -> list[str]:
    """Return one line for each problem: where, which value, which bound, what to do."""
    lines = []
    for item in error.errors():
        section, *inner = map(str, item["loc"] or [""])
        known = Config.model_fields.get(section)
        inside = {**item, "loc": inner}
        lines.append(_explain_one(inside, known.annotation, section) if known else _explain_one(item, Config, ""))
    return lines


def _explain_one(item: Any, annotation: Any, section: str) -> str:
    """Return the line for one problem of a section of type ``annotation``; ``item["loc"]`` is the place within it."""
    where = [str(part) for part in item["loc"]]
    kinds = kinds_of(annotation)
    member = kinds[where.pop(0)] if where and where[0] in kinds else annotation
    message = item["msg"].removeprefix("Value error, ")
    key = ".".join(where)
    place = f"[{section}] {key}".strip() if section else key
    head = f"[{section}] kind" if section else "kind"
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            noun = "section" if annotation is Config else "key"
            return f"{place}: unknown {noun}{suggest(where[-1], _keys(member))}"
        case "union_tag_invalid":
            tag = item["ctx"]["tag"]
            return f'{head} = "{tag}": unknown{suggest(tag, list(kinds))}'
        case "union_tag_not_found":
            return f"{head}: missing; one of {', '.join(kinds)}"
        case "missing" | "missing_argument":
            return f"{place}: missing" if key else f"{place}: section missing"
        case "value_error":
            return f"{place}: {message}" if key else f"{place} {message}".strip()
        case _:
            return f"{place} = {item['input']!r}: {message.replace('Input should be', 'must be')}"


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the members of a union of sections by their ``kind``."""
    found, queue = {}, [annotation]
    while queue:
        item = queue.pop(0)
        if item is type(None):
            continue
        if isinstance(item, type):
            for kind in getattr(item.__annotations__.get("kind"), "__args__", ()):
                found[kind] = item
        else:
            queue = [*getattr(item, "__args__", ()), *queue]
    return found


def _keys(member: Any) -> list[str]:
    """Return the keys that a section of this type has."""
    return [each.name for each in fields(member)] if is_dataclass(member) else list(getattr(member, "model_fields", ()))


def suggest(unknown: str, known: Sequence[str]) -> str:
    """Return the end of a sentence about an unknown word: the known one that was meant, or all of them."""
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
