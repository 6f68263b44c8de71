"""The experiment file of a sweep: a config, what varies, and which figures to draw.

::

    title = "Clipping against none"
    base = "../../deploy/configs/a9a.toml"      # relative to this file
    set = ["strategy.rounds=600"]               # as --set, for all runs
    seeds = [1, 2, 3]

    [axes.attack]                               # every combination of the axes' values is run with every seed
    bf = ["attack.kind=bf"]
    alie = ["attack.kind=alie", "attack.z=1.06"]
    [axes.alpha]
    key = "strategy.alpha"
    values = [0.1, 1.0, 10.0]

    [[figures]]
    name = "gap"
    x = "round"
    y = "gap"
    panels = "attack"
    lines = "alpha"

docs/experiments.md has all keys.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from experiment import config as configs
from experiment.config import Config
from experiment.problems import suggest
from experiment.sections import Section
from foundation.errors import ConfigError
from foundation.text import TextError, read_text

Measure = Literal["loss", "accuracy", "gap", "trigger"]
Value = dict[str, list[str]]
"""The values of an axis: what each is called, and its settings."""


def _settings(given: object, *, place: str = "") -> list[str]:
    """Return settings that are one string or a list of them."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(item, str) and "=" in item for item in listed):
        raise ValueError(f'{place}must be "section.key=value" or a list of such')
    return listed


def _axis(given: object) -> object:
    """Return an axis as a table of values, however it was written."""
    if not isinstance(given, dict) or not given:
        raise ValueError('must be a table: name = ["section.key=value", ...] for each value; or key and values')
    if set(given) != {"key", "values"}:
        return {str(name): _settings(settings, place=f"{name}: ") for name, settings in given.items()}
    key, values = given["key"], given["values"]
    if not isinstance(key, str) or not re.fullmatch(r"\w+\.\w+", key):
        raise ValueError(f'key = {key!r}: must be "section.key", for example "strategy.alpha"')
    if not isinstance(values, list) or not values or not all(isinstance(v, str | int | float | bool) for v in values):
        raise ValueError("values: must be a list of numbers, texts or true and false")
    return {_word(value): [f"{key}={_word(value)}"] for value in values}


def _word(value: str | float | bool) -> str:
    """Return a value as TOML, but for the quotes of a text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


Overrides = Annotated[list[str], BeforeValidator(_settings)]
Axes = dict[str, Annotated[Value, BeforeValidator(_axis)]]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]


class Target(Section):
    """A value that the runs should reach: the tables have the rounds and bytes until each does."""

    measure: Measure
    value: float

    @property
    def name(self) -> str:
        """The target in a few characters."""
        return f"{self.measure} {self.value:g}"


class Tune(Section):
    """One axis whose best value is chosen first, for each combination of the others; only that is run on."""

    axis: str
    """Which one."""
    measure: Measure
    """What is best: the highest accuracy, the lowest loss or gap, at the end."""
    reach: float | None = None
    """In place of that: the fewest rounds to this value; where none reaches it, the best at the end."""
    seeds: Seeds
    """Of the runs that choose; the median counts."""
    set: Overrides = Field(default_factory=list)
    """More settings for these runs, for example fewer rounds."""


class Figure(Section):
    """One picture: a row of panels, or a table of them."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Of the file, without .png."""
    title: str = ""
    x: str = "round"
    """``round``, ``bytes_up``, ``bytes_down`` or ``seconds``; or an axis, to show where runs end against its values."""
    y: Measure = "gap"
    """What is shown; where there is no gap, the loss."""
    reach: float | None = None
    """With an axis as x: in place of y at the end, what it costs until y is as good as this ..."""
    cost: Literal["round", "bytes_up"] = "bytes_up"
    """... in rounds or in bytes."""
    panels: str | None = None
    """The axis whose values are columns of panels."""
    rows: str | None = None
    """The axis whose values are rows of panels."""
    lines: str | None = None
    """The axis whose values have colours."""
    styles: str | None = None
    """The axis whose values have line styles."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only runs with these values of axes."""
    limits: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Lowest and highest y."""

    @property
    def axes(self) -> dict[str, str | None]:
        """Which key of the figure names which axis."""
        return {key: getattr(self, key) for key in ("panels", "rows", "lines", "styles")}


class Reduced(Section):
    """What ``--reduced`` changes, so that the same experiment takes seconds."""

    base: str | None = None
    set: Overrides = Field(default_factory=list)
    seeds: Seeds | None = None
    only: dict[str, list[str]] = Field(default_factory=dict)
    """Of these axes only these values."""
    axes: Axes = Field(default_factory=dict)
    """These axes in place of the ones of the same names."""
    tune_set: Overrides = Field(default_factory=list)
    """In place of ``tune.set``."""
    targets: list[Target] | None = None


class ExperimentFile(Section):
    """The whole file."""

    title: str
    base: str
    set: Overrides = Field(default_factory=list)
    seeds: Seeds
    axes: Axes = Field(default_factory=dict)
    exclude: list[dict[str, str]] = Field(default_factory=list)
    """Combinations that are not run: those that have all these values."""
    tune: Tune | None = None
    targets: list[Target] = Field(default_factory=list)
    figures: list[Figure] = Field(default_factory=list)
    reduced: Reduced | None = None


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Args:
        values: by axis.
    """

    values: tuple[tuple[str, str], ...]

    @property
    def folder(self) -> str:
        """The name of its folder: letters, digits and ``. _ + -``."""
        return "_".join(f"{_plain(axis)}-{_plain(value)}" for axis, value in self.values) or "run"

    @property
    def label(self) -> str:
        """What a user reads."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values)

    def without(self, axis: str) -> "Cell":
        """Return the combination of the other axes."""
        return Cell(tuple(pair for pair in self.values if pair[0] != axis))

    def has(self, values: Mapping[str, str]) -> bool:
        """Return whether it has all these values."""
        own = dict(self.values)
        return all(own.get(axis) == value for axis, value in values.items())


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-") or "x"


@dataclass(frozen=True)
class PlannedRun:
    """One run.

    Args:
        cell: its values.
        seed: of the run.
        config: the experiment that is run, not resolved.
        folder: where, relative to the sweep's folder.
        tuning: it only chooses a value of the tuned axis.
    """

    cell: Cell
    seed: int
    config: Config
    folder: str
    tuning: bool = False

    @property
    def label(self) -> str:
        """What a user reads."""
        return ", ".join(filter(None, ("tuning" if self.tuning else "", self.cell.label, f"seed {self.seed}")))


@dataclass(frozen=True)
class Plan:
    """An experiment that has been checked.

    Args:
        file: its content, with ``--reduced`` and ``--seeds`` applied.
        text: the file as it is.
        base: path of the config that it starts from.
        changes: ``--set`` of the command line.
    """

    file: ExperimentFile
    text: str
    base: Path
    changes: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """Return every combination, in the order of the file."""
        names = list(self.file.axes)
        found = [Cell(tuple(zip(names, values, strict=True))) for values in itertools.product(*self.file.axes.values())]
        return [cell for cell in found if not any(cell.has(left_out) for left_out in self.file.exclude)]

    def tuning(self) -> list[PlannedRun]:
        """Return the runs that choose the values of the tuned axis; none without one."""
        tune = self.file.tune
        if tune is None:
            return []
        folder = "tuning" if tune.set else "runs"
        runs = (self.run(cell, seed, tune.set) for cell in self.cells() for seed in tune.seeds)
        return [replace(run, folder=f"{folder}/{run.cell.folder}/seed-{run.seed}", tuning=True) for run in runs]

    def runs(self, chosen: Mapping[Cell, str]) -> list[PlannedRun]:
        """Return the runs that the results are made of.

        Args:
            chosen: the best value of the tuned axis, by the combination of the others.
        """
        tune, cells = self.file.tune, self.cells()
        if tune is not None:
            cells = [cell for cell in cells if chosen.get(cell.without(tune.axis)) == dict(cell.values)[tune.axis]]
        return [self.run(cell, seed) for cell in cells for seed in self.file.seeds]

    def run(self, cell: Cell, seed: int, more: Sequence[str] = ()) -> PlannedRun:
        """Return the run of a combination.

        Raises:
            ConfigError: its config cannot be run.
        """
        settings = list(itertools.chain.from_iterable(self.file.axes[axis][value] for axis, value in cell.values))
        overrides = [*self.file.set, *more, *settings, *self.changes, f"federation.seed={seed}"]
        config = configs.parse(_read(self.base), overrides, name=str(self.base))
        if config.checkpoint.every is None:  # a run that is interrupted is run again; and marks cost bytes
            config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 0})})
        return PlannedRun(cell, seed, config, f"runs/{cell.folder}/seed-{seed}")


def load_plan(
    path: Path, *, seeds: Sequence[int] | None = None, reduced: bool = False, changes: Sequence[str] = ()
) -> Plan:
    """Read an experiment file and check everything that can be without running it.

    Args:
        path: of the file.
        seeds: in place of those in the file.
        reduced: take its ``[reduced]`` form.
        changes: ``section.key=value`` on top of everything.

    Raises:
        ConfigError: one line for each mistake.
    """
    text = _read(path)
    try:
        file = ExperimentFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(dict.fromkeys(f"{path}: {line}" for line in _explain(error)))) from None
    if reduced:
        file = _reduced(file, path)
    if seeds:
        file = file.model_copy(update={"seeds": list(seeds)})
    problems = list(dict.fromkeys(_flaws(file)))
    plan = Plan(file, text, (path.parent / file.base).resolve(), tuple(changes))
    if not plan.base.is_file():
        problems.append(f"base = {file.base!r}: {plan.base}: no such file")
    if not problems:
        problems = _config_flaws(plan)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return plan


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None


def _explain(error: ValidationError) -> Iterator[str]:
    """Yield one line for each problem."""
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        place = ".".join(where)
        message = item["msg"].removeprefix("Value error, ")
        match item["type"]:
            case "extra_forbidden":
                yield f"{place}: unknown key{suggest(where[-1], _keys(where[:-1]))}"
            case "missing":
                yield f"{place}: missing"
            case "value_error":
                yield f"{place}: {message}"
            case _:
                yield f"{place} = {item['input']!r}: {message.replace('Input should be', 'must be')}"


def _keys(where: Sequence[str]) -> list[str]:
    """Return the keys of the table at this place."""
    tables: dict[str, type[Section]] = {"tune": Tune, "figures": Figure, "targets": Target, "reduced": Reduced}
    return list(tables.get(where[0] if where else "", ExperimentFile).model_fields)


def _reduced(file: ExperimentFile, path: Path) -> ExperimentFile:
    """Return the experiment with its ``[reduced]`` table applied.

    Raises:
        ConfigError: it has none, or one that does not fit.
    """
    less = file.reduced
    if less is None:
        raise ConfigError(f"{path}: --reduced: the file has no [reduced] table")
    named: list[tuple[str, str, str | None]] = [("axes", axis, None) for axis in less.axes]
    named += [("only", axis, value) for axis, values in less.only.items() for value in (*values, None)]
    problems = [line for table, axis, value in named for line in _unknown(f"reduced.{table}", axis, value, file.axes)]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in dict.fromkeys(problems)))
    axes = {
        axis: {value: settings for value, settings in values.items() if value in less.only.get(axis, values)}
        for axis, values in (file.axes | less.axes).items()
    }
    tune = file.tune and file.tune.model_copy(update={"set": less.tune_set})
    update = {"set": [*file.set, *less.set], "axes": axes, "tune": tune}
    update |= {key: given for key in ("base", "seeds", "targets") if (given := getattr(less, key)) is not None}
    return file.model_copy(update=update)


def _flaws(file: ExperimentFile) -> Iterator[str]:
    """Yield what in the file does not go together."""
    axes = file.axes
    if len(set(file.seeds)) < len(file.seeds):
        yield f"seeds = {file.seeds}: a seed is listed twice"
    for axis, values in axes.items():
        plain = [_plain(value) for value in values]
        if len(set(plain)) < len(plain):
            yield f"axes.{axis}: two values that differ only in signs would share a folder; rename one"
    for number, left_out in enumerate(file.exclude):
        for axis, value in left_out.items():
            yield from _unknown(f"exclude.{number}", axis, value, axes)
    if file.tune is not None and file.tune.axis not in axes:
        yield f"tune.axis = {file.tune.axis!r}: no such axis{suggest(file.tune.axis, list(axes))}"
    known = ("round", "bytes_up", "bytes_down", "seconds")
    for figure in file.figures:
        place = f"figure {figure.name!r}"
        for axis, value in figure.where.items():
            yield from _unknown(f"{place}: where", axis, value, axes)
        for key, name in figure.axes.items():
            if name is not None and name not in axes:
                yield f"{place}: {key} = {name!r}: no such axis{suggest(name, list(axes))}"
        if figure.x not in (*known, *axes):
            yield f"{place}: x = {figure.x!r}: neither an axis nor one of {', '.join(known)}"
        elif figure.reach is not None and figure.x not in axes:
            yield f"{place}: reach: needs an axis as x, not {figure.x!r}"
        shown = {figure.x, *figure.where, *figure.axes.values(), file.tune.axis if file.tune else None}
        for axis, count in ((axis, len(values)) for axis, values in axes.items() if axis not in shown):
            if count > 1:
                yield f"{place}: axis {axis!r} has {count} values: name it in panels, rows, lines, styles or where"
    names = [figure.name for figure in file.figures]
    if len(set(names)) < len(names):
        yield f"figures: two have the same name: {', '.join(names)}"


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _unknown(place: str, axis: str, value: str | None, axes: Mapping[str, Value]) -> Iterator[str]:
    if axis not in axes:
        yield f"{place}.{axis}: no such axis{suggest(axis, list(axes))}"
    elif value is not None and value not in axes[axis]:
        yield f"{place}.{axis} = {value!r}: no such value{suggest(value, list(axes[axis]))}"


def _config_flaws(plan: Plan) -> list[str]:
    """Return what is wrong with the configs of the runs, each once."""
    cells = plan.cells()
    if not cells:
        return ["exclude: leaves no combination to run"]
    settings = [(each, axis) for axis, values in plan.file.axes.items() for each in itertools.chain(*values.values())]
    set_by_axes = {_key(setting): axis for setting, axis in settings}
    flaws = []
    for change in plan.changes:
        key = _key(change)
        if key == "federation.seed":
            flaws.append(f"--set {change}: the sweep sets it; use --seeds")
        for other, axis in set_by_axes.items():
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                flaws.append(f"--set {change}: axis {axis!r} sets {other} too")
    if flaws:
        return flaws
    seen: dict[str, str] = {}
    tune = plan.file.tune
    for cell in cells:
        for more in ((), tuple(tune.set)) if tune else ((),):
            try:
                plan.run(cell, plan.file.seeds[0], more)
            except ConfigError as error:
                for line in str(error).splitlines():
                    seen.setdefault(line.removeprefix(f"{plan.base}: "), cell.label)
    return [f"{label}: {line}" if label else line for line, label in seen.items()]
