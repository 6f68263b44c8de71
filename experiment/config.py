"""One experiment: the TOML file that every process of a federation reads, as typed sections.

The unions here are the only registry: a new rule, compressor, attack or task is added to its union and nowhere else.
Methods have their table in ``strategies.methods``. Loading goes in two steps. ``load`` checks everything that the file
alone can tell. ``resolve`` fills in what only the loaded task knows (L and d): a ``ResolvedConfig`` holds the method,
and plain numbers that load again to the same bits.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import tomli_w
from pydantic import Discriminator, Field, PrivateAttr, TypeAdapter, ValidationError, field_validator, model_validator

from attacks.adaptive import ROP, Fang, Mimic, MinMax, MinSum, OptimalALIE, OptimalIPM
from attacks.attack import Attack
from attacks.backdoor import Replace
from attacks.classical import ALIE, FOE, IPM, Big, BitFlip, Gaussian, Infinity, LabelFlip, NaN, ShiftBack, Silence, Zero
from attacks.faults import WireFault
from experiment.problems import explain_one
from experiment.problems import kinds_of as kinds_of
from experiment.problems import suggest as suggest
from experiment.sections import METHOD_SECTIONS, Federation, MethodSection, Section
from foundation.errors import ConfigError
from foundation.files import replace_text
from foundation.origin import examples
from foundation.text import TextError, read_text
from strategies.aggregators import (
    Bulyan,
    CenteredClipping,
    ComparativeGradientElimination,
    CoordinateMedian,
    CovarianceFilter,
    DivideAndConquer,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MeanAroundMedian,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    SignGuard,
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
from strategies.hyperparameters import LEAST, Constants
from strategies.method import Method
from strategies.methods import METHODS
from strategies.schedules import Schedule
from tasks.cifar10 import Cifar10Task
from tasks.contract import Problem, Setting
from tasks.custom import CustomTask
from tasks.digits import DigitsTask
from tasks.logistic import LogisticTask
from tasks.mnist import MnistTask
from tasks.partition import OWN
from tasks.table import TableTask

ROOT_SAMPLES = 100
"""Training samples that the server keeps for a rule that needs its own row, where the config does not say how many."""


class StopTable(Section):
    """When evaluations end a run before its last round."""

    measure: Literal["loss", "accuracy"] = "loss"
    """What makes a model better than another: a lower loss, or a higher accuracy."""
    patience: int | None = Field(default=None, ge=1)
    """The run ends after this many evaluations in a row without a better model."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """The run ends once an evaluation has this loss or less, or this accuracy or more."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.patience is None and self.target is None:
            raise ValueError("ends nothing: give patience, target or both, or leave it out")
        if self.target is not None and self.measure == "accuracy" and not 0 < self.target <= 1:
            raise ValueError(f"target = {self.target:g}: must be an accuracy above 0 and at most 1")
        return self


class EvaluationSection(Section):
    """When the model is measured, and by whom."""

    every: int = Field(default=50, ge=1)
    """Rounds between evaluations; the last round is always evaluated."""
    by: Literal["server", "clients", "both", "none"] | None = None
    """Who measures it. By "clients": all that are connected measure it on data of their own and report loss, accuracy
    and number of samples. These are claims, shown as such: of their median at least byzantine + 1 answers are on either
    side, so it lies within what honest clients reported. Default: "clients" for partition
    "own" and for norm_stats "local", else "server"."""
    stop: StopTable | None = None
    """End the run early: ``{ measure = "accuracy", patience = 10, target = 0.9 }``, where ``patience`` (evaluations
    without a better model) or ``target`` may be left out, and the other measure is "loss", the default. The best model
    is written to ``best.safetensors``."""


class SafeguardSection(Section):
    """Going back to an earlier model where a run diverges. Off without this section."""

    factor: float = Field(default=2.0, gt=1, allow_inf_nan=False)
    """The run goes back to its best model, and halves gamma (and alpha where it is learnt), once the loss exceeds this
    times the lowest one or the model is not finite. A loss counts as at least 1 % of the first one."""
    times: int = Field(default=3, ge=1)
    """How often it does so at most; then it ends with its best model."""


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
_Filters = DivideAndConquer | SignGuard | ComparativeGradientElimination | FLTrust
AggregatorUnion = Annotated[_Coordinates | GeometricMedian | _Distances | _Centers | _Filters, Discriminator("kind")]
_Compressors = Identity | RandK | Masked | PermK | TopK | QSGD | Natural | ScaledSign
CompressorUnion = Annotated[_Compressors, Discriminator("kind")]
_Directions = BitFlip | LabelFlip | ALIE | OptimalALIE | IPM | OptimalIPM | FOE
_Searches = MinMax | MinSum | Fang | Mimic | ROP
_Values = Replace | ShiftBack | Gaussian | Zero | Big | NaN | Infinity
AttackUnion = Annotated[_Directions | _Searches | _Values | Silence | WireFault, Discriminator("kind")]
_PreAggregators = Bucketing | NearestNeighbourMixing | StaticClipping | AdaptiveRobustClipping
PreAggregatorUnion = Annotated[_PreAggregators, Discriminator("kind")]
TaskUnion = Annotated[
    LogisticTask | DigitsTask | MnistTask | Cifar10Task | TableTask | CustomTask, Discriminator("kind")
]


class Config(Section):
    """The whole experiment.

    A file gives a config (``load``), and so do objects::

        Config(federation=Federation(clients=10, byzantine=3), task=DigitsTask(), attack=ALIE(),
               strategy=ByzVRMarinaPP(n=10, f=3, aggregator=TrimmedMean(), compressor=Identity(), ...), rounds=200)

    A method in ``strategy`` comes with ``rounds``, and brings its aggregator and compressor. Its numbers may be written
    as in a file, ``gamma="0.2/L"``. Parts are checked as those of a file are.

    Raises:
        ConfigError: one line for each problem.
    """

    federation: Federation
    task: TaskUnion
    strategy: StrategyUnion
    aggregator: AggregatorUnion = CoordinateMedian()
    compressor: CompressorUnion = Identity()
    attack: AttackUnion | None = None
    evaluation: EvaluationSection = EvaluationSection()
    safeguard: SafeguardSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    _folder: Path | None = PrivateAttr(default=None)

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            federation: Federation,
            task: TaskUnion,
            strategy: MethodSection | Method | Mapping[str, Any],
            rounds: int | None = None,
            aggregator: AggregatorUnion = ...,
            compressor: CompressorUnion = ...,
            attack: AttackUnion | None = None,
            evaluation: EvaluationSection = ...,
            safeguard: SafeguardSection | None = None,
            checkpoint: CheckpointSection = ...,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _read_objects(cls, data: Any) -> Any:
        """Read a method, and other parts made in Python, as the sections that a file would have for them."""
        if not isinstance(data, dict):
            return data
        data = {key: as_written(value) for key, value in data.items()}
        method = data.get("strategy")
        return _from_method(data, method) if isinstance(method, Method) else data

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
                raise ValueError("pre: " + explain_one(error.errors()[0], PreAggregatorUnion, "")) from None
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
        yield from self._conflicts_of_weights()
        steps = " and ".join(step.kind for step in self.aggregator.pre)
        rule = f'aggregator.kind = "{self.aggregator.kind}"{" after " if steps else ""}{steps}'
        few = f"too few rows for {rule}; sample more clients or choose another rule"
        for key, size in self.cohorts.items():
            if size > n:
                yield f"strategy.{key} = {size}: must be at most federation.clients = {n}"
        for key, size in self.aggregated.items():
            cohort, share = f"{key} = {size}", expected_byzantine(size, n, f)
            if self.aggregator.tolerates(size) < 0:
                yield f"{cohort}: {few}"
            elif 0 < share < size and self.aggregator.tolerates(size - share) < 0:
                yield f"{cohort}: if {share} of them are Byzantine and stay silent, {size - share} are left: {few}"
        most = max(self.aggregated.values())
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
        if self.evaluated_by == "none" and (self.safeguard or self.evaluation.stop):
            what = "[safeguard]" if self.safeguard else "[evaluation] stop"
            yield f'{what}: needs a measured loss, and evaluation.by = "none"; set it to "server" or "clients"'
        if self.local_stats and self.server_evaluates:
            lacks = 'with [task] norm_stats = "local" the server has no running statistics to measure models with'
            yield f'evaluation.by = "{self.evaluated_by}": {lacks}; use "clients" or "none"'
        yield from self._conflicts_of_root()
        yield from self.strategy.method.conflicts(dict(self.strategy), self.compressor)
        if self.attack is not None and f == 0:
            yield f'attack.kind = "{self.attack.kind}" with federation.byzantine = 0: nobody attacks; set byzantine'
        elif self.attack is not None and (flaw := self.flaw_of(self.attack)) is not None:
            yield f"[attack] {flaw}"

    def _conflicts_of_root(self) -> Iterable[str]:
        """Yield what does not go with a rule that needs a row of the server's own, or with data kept for one."""
        rule, method, samples = self.aggregator, self.strategy.method, self.federation.root_samples
        needs = f'aggregator.kind = "{rule.kind}" needs rows'
        if samples is not None and not rule.needs_root:
            yield f'federation.root_samples = {samples}: only aggregator.kind = "fltrust" needs them; leave it out'
        elif samples is not None and self.own_data:
            own = f'with partition = "{OWN}" the server has its own (docs/own-data.md)'
            yield f"federation.root_samples = {samples}: {own}; leave it out"
        if not rule.needs_root:
            return
        if not method.takes_root:
            takers = ", ".join(each.kind for each in METHODS if each.takes_root)
            yield f"{needs} that the server can compute too, which those of {method.kind} are not; use {takers}"
        elif dict(self.strategy).get("clip", False):
            yield f"{needs} that are gradients, and clip makes them differences from the last aggregate; leave it out"

    def _conflicts_of_weights(self) -> Iterable[str]:
        """Yield what does not go with the weights of clients."""
        weights, rule, f = self.federation.whole_weights, self.aggregator, self.federation.byzantine
        if self.federation.weights is None:
            return
        if (part := rule.refuses_weights()) is not None:
            rules, steps = "mean, cm, cwtm, rfa, centered-clip and fltrust", "static-clip, nnm and bucketing"
            yield f"federation.weights: {part} takes none; rules that do are {rules}, pre-aggregators {steps}"
        elif weights and not rule.withstands(np.array(weights), f):
            spoilt = "with the rows that they may spoil in pre-aggregators"
            yield f"federation.weights: {f} clients may have half of the weight or more, {spoilt}; set weight_cap"
        for key, value in dict(self.strategy).items():
            if value == LEAST:
                yield f'strategy.{key} = "{LEAST}": is not known with federation.weights; give a number'

    def flaw_of(self, attack: Attack) -> str | None:
        """Say why this attack cannot be carried out in this federation; None if it can."""
        if self.own_data and attack.view == "omniscient":
            whose = f'view = "omniscient" needs honest clients\' data, which with partition = "{OWN}" nobody else has'
            return f'{whose}; use view = "coalition" or "own"'
        if self.own_data and attack.membership == "mobile":
            party = f'needs one party that starts all clients, and with partition = "{OWN}" each starts its own'
            return f'membership = "mobile" {party}; use "fixed"'
        return attack.validate(self.federation.clients, self.federation.byzantine)

    @property
    def own_data(self) -> bool:
        """Whether each client has data of its own, which no other process can read."""
        return getattr(self.task, "partition", "") == OWN  # a task of yours may have none

    @property
    def local_stats(self) -> bool:
        """Whether running statistics of batch norm stay at the clients, so that the server cannot measure models."""
        return getattr(self.task, "norm_stats", None) == "local"  # only tasks with a torch module have it

    @property
    def evaluated_by(self) -> Literal["server", "clients", "both", "none"]:
        """Who measures the model, with the default filled in."""
        return self.evaluation.by or ("clients" if self.own_data or self.local_stats else "server")

    @property
    def server_evaluates(self) -> bool:
        """Whether the server measures the model."""
        return self.evaluated_by in ("server", "both")

    @property
    def clients_evaluate(self) -> bool:
        """Whether all connected clients are asked to measure the model."""
        return self.evaluated_by in ("clients", "both")

    @property
    def batches(self) -> dict[str, int]:
        """The sizes of a worker's batches, by key; 0 for its full local gradient."""
        strategy = self.strategy.model_dump()
        return {key: strategy[key] for key in ("batch", "full_batch") if strategy.get(key) is not None}

    @property
    def cohorts(self) -> dict[str, int]:
        """The cohort sizes by key."""
        n, f = self.federation.clients, self.federation.byzantine
        return self.strategy.method.cohorts(dict(self.strategy), n, f, self.aggregator)

    @property
    def aggregated(self) -> dict[str, int]:
        """How many vectors a round aggregates if everybody sampled replies, by the key that says so."""
        if self.strategy.method.aggregates_all:
            return {"federation.clients": self.federation.clients}
        return {f"strategy.{key}": size for key, size in self.cohorts.items()}

    @property
    def reveals_cohort(self) -> bool:
        """Whether the sampled clients learn who else was sampled."""
        if self.federation.reveal_cohort or self.attack is None:
            return self.federation.reveal_cohort
        # Where all vectors count, attackers that look at several must know which of those are new.
        all_count = self.strategy.method.aggregates_all and self.attack.view != "own"
        return self.attack.needs_cohort or all_count

    @property
    def mobile(self) -> bool:
        """Whether other clients are Byzantine in every round."""
        return self.attack is not None and self.attack.membership == "mobile"

    @property
    def attackers(self) -> range:
        """The seats that attack in some round where one party starts all clients: the last f, or any."""
        federation = self.federation
        return range(federation.clients) if self.mobile and federation.byzantine else federation.last_seats

    @property
    def stratified(self) -> bool:
        """Whether every cohort has the same number of Byzantine clients."""
        return self.attack is not None and self.attack.membership == "per-cohort"

    def setting(
        self,
        data_dir: Path | None,
        config_dir: Path | None,
        party: Literal["server", "client"] = "server",
        folders: Mapping[int, Path] = {},  # never written to
    ) -> Setting:
        """Return what the task needs in order to load.

        Args:
            data_dir: folder of data files, or None.
            config_dir: folder of the config file, or None.
            party: who loads it. Only clients with data of their own load other data than the server.
            folders: the data folder of each worker, for a process that holds several with data of their own.
        """
        who = self.federation
        byzantine = 0 if self.mobile else who.byzantine  # where all are honest now and then, all data count
        root = (who.root_samples or ROOT_SAMPLES) if self.aggregator.needs_root else 0
        batch = self.batches.get("batch") or self.batches.get("full_batch") or 0
        setting = Setting(who.clients, byzantine, who.seed, data_dir=data_dir, config_dir=config_dir, batch=batch)
        setting = replace(setting, root=root)
        return replace(setting, party=party, folders=folders) if self.own_data else setting

    def worker_terms(self) -> dict[str, Any]:
        """Return what an honest client must agree on with the server: data, seed, what it computes and sends."""
        whole = self.model_dump(mode="json", exclude_none=True)
        shared = ("clients", "byzantine", "seed") + ("declare_samples",) * self.own_data
        if self.federation.root_samples is not None:
            shared = (*shared, "root_samples")
        return {
            "federation": {key: whole["federation"][key] for key in shared},
            "task": {key: value for key, value in whole["task"].items() if key != "root_file"},
            "strategy": {key: whole["strategy"].get(key) for key in ("kind", *self.strategy.method.worker_keys)},
            "compressor": whole["compressor"],
            "evaluation": {"by": self.evaluated_by},
        }

    def trajectory_terms(self) -> dict[str, Any]:
        """Return what the models of a run depend on: all but how long it is, what is measured, how long one waits."""
        whole = self.model_dump(mode="json", exclude_none=True)
        del whole["evaluation"], whole["checkpoint"], whole["strategy"]["rounds"]
        waits = ("deadline_s", "flower_deadline_s", "join_timeout_s", "stall_rounds", "start_with", "heartbeat_s")
        for key in (*waits, "same_code", "declare_samples"):
            whole["federation"].pop(key, None)
        if self.safeguard is not None:  # what is measured then decides
            whole["safeguard"] |= {"every": self.evaluation.every, "by": self.evaluated_by}
        for key, value in dict(self.strategy).items():
            if isinstance(value, Schedule):  # it may depend on how long the run is
                whole["strategy"][key] = as_written(value.within(self.strategy.rounds))
        return whole

    @property
    def reveals_weights(self) -> bool:
        """Whether clients learn the weights, by seat: an omniscient attacker of an experiment plans with them."""
        return self.attack is not None and self.attack.view == "omniscient"

    def for_clients(self) -> Self:
        """Return the config as clients may know it: without what is the server's alone."""
        change: dict[str, Any] = {"server_seed": None}
        if not self.reveals_weights:
            change |= {"weights": None, "weight_cap": None}
        return self.model_copy(update={"federation": self.federation.seated().model_copy(update=change)})

    def seated(self, names: Sequence[str]) -> Self:
        """Return the config with the weights of these clients by seat; see ``Federation.seated``."""
        return self.model_copy(update={"federation": self.federation.seated(names)})

    @property
    def folder(self) -> Path | None:
        """The folder of the file that the config was loaded from, where its custom task lies; None if it has none."""
        return self._folder

    def to_toml(self) -> str:
        """Return the config as TOML; loading it again gives an equal config."""
        return tomli_w.dumps(self.tree())

    def tree(self) -> dict[str, Any]:
        """Return the config as plain tables, as a file has them."""
        return self.model_dump(mode="json", exclude_none=True)

    def write(self, path: Path | str) -> None:
        """Write the config as a TOML file, which loads to an equal config.

        A custom task is looked up relative to that file.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            replace_text(Path(path), self.to_toml())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    @classmethod
    def explain(cls, error: ValidationError) -> list[str]:
        """Return one line for each problem: where, which value, which bound, what to do."""
        lines = []
        for item in error.errors():
            section, *inner = map(str, item["loc"] or [""])
            known = cls.model_fields.get(section)
            if known is None:
                lines.append(explain_one(item, cls, "", noun="section"))
            else:
                lines.append(explain_one({**item, "loc": inner}, known.annotation, section))
        return lines

    def __eq__(self, other: object) -> bool:
        """Return whether all sections are equal, wherever the configs come from."""
        return isinstance(other, Config) and type(self) is type(other) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # a custom task's options are a mapping


class ResolvedConfig(Config):
    """A config in which nothing is left open. As TOML it loads and resolves to an equal one."""

    _method: Method = PrivateAttr()

    @property
    def method(self) -> Method:
        """The method, ready for either half."""
        return self._method

    def for_clients(self) -> Self:
        """Return the config as clients may know it, and the method without weights that they do not know."""
        known = super().for_clients()
        if known.federation.weights is None:
            known._method = replace(self._method, weights=())
        return known


Overrides = Sequence[str] | Mapping[str, Any]
"""Changes to a config: ``section.key=value`` as on the command line, or values by ``section.key``."""


def load(path: Path | str, overrides: Overrides = ()) -> Config:
    """Read a config file and change values of it.

    Args:
        path: of the TOML file.
        overrides: a list of ``section.key=value`` as on the command line, or a mapping: ``{"strategy.rounds": 200}``.

    Raises:
        ConfigError: one line for each problem, with the key, the value, the bound and the fix.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {examples()} holds one for each thing to try") from None
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None
    config = parse(text, overrides, name=str(path))
    config._folder = path.resolve().parent
    return config


def parse(text: str, overrides: Overrides = (), *, name: str = "config") -> Config:
    """Read a config from TOML text; see ``load``."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None
    return _of_tree(tree, overrides, name)


def changed(config: Config, overrides: Overrides) -> Config:
    """Return a config with other values; see ``load``.

    Raises:
        ConfigError: as ``load`` does.
    """
    if not overrides:
        return config
    new = _of_tree(config.tree(), overrides, "config")
    new._folder = config.folder
    return new


def _of_tree(tree: dict[str, Any], overrides: Overrides, name: str) -> Config:
    if isinstance(overrides, str):
        raise ConfigError(f'overrides = "{overrides}": must be a mapping, or a list of "section.key=value"')
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _change(tree, str(key), as_written(value), f"override {key}")
    else:
        for override in overrides:
            _override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {line}" for line in Config.explain(error))) from None


def as_written(value: Any) -> Any:
    """Return a value made in Python as a file would have it: parts as tables, tuples as lists, NumPy's numbers as plain
    ones. A method stays as it is.
    """
    if isinstance(value, Method):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_written(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [as_written(item) for item in value]
    return {key: as_written(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _from_method(data: dict[str, Any], method: Method) -> dict[str, Any]:
    """Return sections in place of a method; raise ValueError with one line where it contradicts the other sections."""
    name = type(method).__name__
    if method.kind not in kinds_of(StrategyUnion) or type(method) not in METHODS:
        raise ValueError(f"strategy = {name}(...): is not in the table of methods that a config can name")
    data = dict(data)
    rounds, federation = data.pop("rounds", None), data.get("federation")
    if rounds is None:
        raise ValueError(f"rounds: missing; give Config(strategy={name}(...), rounds=200)")
    for key, here in (("clients", "n"), ("byzantine", "f")):
        given = federation.get(key) if isinstance(federation, dict) else getattr(federation, key, None)
        if given != getattr(method, here):
            raise ValueError(f"federation.{key} = {given}, but strategy = {name}({here}={getattr(method, here)})")
    if method.weights:
        raise ValueError(f"strategy = {name}(weights=...): give them as Federation(weights=...) alone")
    for part in ("aggregator", "compressor"):
        own = as_written(getattr(method, part))
        if data.setdefault(part, own) != own:
            raise ValueError(f"{part}: is another one than that of strategy = {name}(...); give it there alone")
    return data | {"strategy": as_written(MethodSection.written_as(method, rounds))}


def parse_attack(kind: str, settings: Sequence[str], config: Config) -> Attack:
    """Return the attack that a client is to run.

    Its parameters are those of the config's ``[attack]`` section where that is of the same kind, and ``settings``
    (``attack.key=value``) on top of them.

    Raises:
        ConfigError: unknown kind or parameter, a bad value, or a view that this experiment does not offer.
    """
    same = config.attack is not None and config.attack.kind == kind
    given = config.model_dump(mode="json", exclude_none=True)["attack"] if same else {"kind": kind}
    if config.mobile:
        given = {**given, "membership": "mobile"}
    tree: dict[str, Any] = {"attack": given}
    for setting in settings:
        if not setting.startswith("attack."):
            raise ConfigError(f"--set {setting}: a client only takes attack.key=value; the rest is the server's")
        if setting.partition("=")[0].strip() == "attack.membership":
            raise ConfigError(f"--set {setting}: the server samples the clients; set it in the server's config")
        _override(tree, setting)
    try:
        attack = TypeAdapter(AttackUnion).validate_python(tree["attack"])
    except ValidationError as error:
        lines = [explain_one(item, AttackUnion, "attack") for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    if (flaw := config.flaw_of(attack)) is not None:
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
        samples: m, the samples of a worker; 0 where it is not known.
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
        dim, dtype = int(data["dim"]), np.dtype(data["dtype"])
        samples = int(data["samples"])
        if dim < 1 or samples < 0 or dtype.kind != "f":
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
    constants = Constants(
        n=who.clients,
        f=who.byzantine,
        aggregator=rule,
        compressor=compressor,
        dim=task.dim,
        samples=task.samples,
        smoothness=lambda: task.smoothness,
        weights=who.whole_weights,
    )
    method = config.strategy.method.of(dict(config.strategy), constants)
    sections = dict(config) | {"compressor": compressor, "strategy": config.strategy.holding(method)}
    resolved = ResolvedConfig.model_construct(**sections)
    resolved._method = method
    return resolved


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value`` to the parsed file; the value is TOML, or a bare string."""
    key, equals, text = override.partition("=")
    label = f"--set {override}"
    if not equals:
        raise ConfigError(f"{label}: must read section.key=value, for example {_EXAMPLES}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _change(tree, key, value, label, text)


_EXAMPLES = "--set strategy.rounds=100 or --set task.options.hidden=8"


def _change(tree: dict[str, Any], key: str, value: Any, label: str, text: str | None = None) -> None:
    """Change one value of the parsed file.

    Args:
        tree: the file, which is changed.
        key: ``section.key``.
        value: the new one.
        label: how messages name the change.
        text: the value as it was typed; None where it was not.
    """
    path = key.strip().split(".")
    if path[:2] == ["task", "options"] and len(path) > 2:
        path = _dotted(key) or path
    elif len(path) != 2:
        path = []
    if not path or not all(path):
        raise ConfigError(f"{label}: must read section.key=value, for example {_EXAMPLES}")
    text = str(value) if text is None else text
    *tables, name = path
    section = tables[0]
    if path[1] == "kind" and not isinstance(value, str):
        value = text.strip()  # TOML reads the nan of attack.kind=nan as a number
    if (*path, value) == ("attack", "kind", "none"):
        tree.pop("attack", None)
        return
    if not isinstance(tree.setdefault(section, {}), dict):
        raise ConfigError(f"{label}: {section} is not a section")
    if path[1] == "kind" and tree[section].get("kind") != value:
        # Another kind has other keys: start its section afresh, but keep what every kind of method shares.
        keep = {"rounds", "gamma"} if section == "strategy" else {"pre"} if section == "aggregator" else set()
        tree[section] = {k: v for k, v in tree[section].items() if k in keep}
    place = tree
    for depth, table in enumerate(tables):
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{label}: {'.'.join(tables[: depth + 1])} is not a table")
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
