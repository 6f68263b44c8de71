"""Tables without Python: CSV or Parquet files of a schema that the config states once for all parties.

Numeric columns are standardised, categories become one column for each; a linear model or a perceptron in NumPy
(``network.py``) predicts a class or a number. With ``partition = "own"`` each party has a file of its own, and only its
process reads it; else one file is split among the workers, for experiments. Both ways compute the same bits.

The inputs depend on a scaling that all parties share (``scaling.py``). On shared data ``load`` works it out; on own
data the problem is loaded first, and takes it with ``settle``.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from foundation.text import one_line
from strategies.method import Evaluation, Vector
from strategies.randomness import Role, stream
from tasks.built_in import BuiltIn
from tasks.contract import Setting, TaskError, mean_samples
from tasks.network import CURVATURE, Head, Inputs, Network, NetworkOracle, Targets
from tasks.partition import OWN, check_root, kept_back, share_out
from tasks.scaling import (
    LARGEST,
    NONE,
    ColumnScaling,
    ColumnStatistics,
    Scaling,
    Statistics,
    federated,
    read_statistics,
)
from tasks.table_reader import MOST_COLUMNS, Meanings, Table, Wanted, check_name, inside, read_table
from tasks.threads import one_thread

log = logging.getLogger("breakwater.tasks")

_MOST_UNITS, _MOST_LAYERS = 4096, 8


@dataclass(frozen=True, kw_only=True)
class TableSchema(BuiltIn):
    """What the columns of a table are, and the model that predicts the target: all that is needed to use a model.

    Args:
        target: the column to predict.
        classes: names of the classes of the target; or a table of the values that stand for each,
            ``{ healthy = ["0"], ill = ["1", "2"] }``. Unset for a regression.
        loss: of a regression, in place of ``classes``.
        numeric: columns of numbers.
        categorical: columns of categories, with all categories of each: ``{ sex = ["f", "m"] }``.
        missing: ``"median"`` fills missing numbers with the federation's median, and gives a missing category zeros
            for all its categories; ``"refuse"`` refuses missing values. A target must never be missing.
        standardise: ``"federated"`` subtracts the federation's mean of a column and divides by its spread; ``"none"``
            takes numbers as they are. A table gives numbers, ``{ age = [CENTRE, SPREAD] }``; a missing value is then
            filled with the centre, and columns that are not in it are federated. Also of the target of a regression.
        clip: standardised values are cut to at most this, in absolute value.
        model: ``linear`` (of two classes: logistic regression) or ``mlp`` with hidden ReLU layers.
        hidden: units of each hidden layer of ``mlp``.
        delta: of ``huber``, where the loss turns linear, in spreads of the target.
        dtype: of data, model and gradients.
        delimiter: between the cells of a CSV file.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "coerce_numbers_to_str": True,
    }  # classes = [0, 1]

    target: str
    classes: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    loss: Literal["squared", "huber"] | None = None
    numeric: tuple[str, ...] = ()
    categorical: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Literal["median", "refuse"] = "median"
    standardise: str | Mapping[str, tuple[float, float]] = "federated"
    clip: float = 5.0
    model: Literal["linear", "mlp"] = "linear"
    hidden: tuple[int, ...] = (32,)
    delta: float = 1.0
    dtype: Literal["float32", "float64"] = "float64"
    delimiter: Literal[",", ";", "\t", "|"] = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.classes is None) == (self.loss is None):
            raise ValueError(
                'must have either classes = ["no", "yes"], or loss = "squared" or "huber" for a regression'
            )
        if self.loss not in (None, "squared", "huber"):
            raise ValueError(f'loss = "{self.loss}": must be "squared" or "huber"')
        names = [self.target, *self.numeric, *self.categorical]
        if len(names) == 1:
            raise ValueError("numeric and categorical are empty: must name at least one column")
        if double := [name for name, times in Counter(names).items() if times > 1 or not name]:
            raise ValueError(f'column "{double[0]}": must have a name, and be one of target, numeric and categorical')
        for name, categories in self.categorical.items():
            _check_texts(f"categorical.{name}", categories, 1)
        if self.classes is not None:
            _check_texts("classes", self.class_names, 2)
            _check_texts("classes", tuple(self._values), 2)
        if self.inputs > MOST_COLUMNS:
            raise ValueError(f"{self.inputs:,} inputs of the model: must be at most {MOST_COLUMNS:,}")
        self._check_standardise()
        for key in ("clip", "delta"):
            if not 0 < (value := getattr(self, key)) < math.inf:
                raise ValueError(f"{key} = {value}: must be a finite number above 0")
        if not 1 <= len(self.hidden) <= _MOST_LAYERS or not all(1 <= size <= _MOST_UNITS for size in self.hidden):
            bound = f"1 to {_MOST_LAYERS} layers of 1 to {_MOST_UNITS:,} units"
            raise ValueError(f"hidden = {list(self.hidden)}: must be {bound}")

    def _check_standardise(self) -> None:
        given = self.standardise
        if isinstance(given, str):
            if given not in ("federated", "none"):
                raise ValueError(f'standardise = "{given}": must be "federated", "none" or a table of numbers')
            return
        for name, pair in given.items():
            if name not in self.scaled:
                raise ValueError(f"standardise.{name}: must be a numeric column{' or the target' if self.loss else ''}")
            centre, spread = pair
            if not (abs(centre) <= LARGEST and 0 < spread <= LARGEST):
                bound = f"[CENTRE, SPREAD] up to {LARGEST:g}, with a spread above 0"
                raise ValueError(f"standardise.{name} = {list(pair)}: must be {bound}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in their order; none for a regression."""
        return tuple(self.classes or ())

    @property
    def _values(self) -> list[str]:
        """The values of the target that stand for classes."""
        if isinstance(self.classes, Mapping):
            return [value for values in self.classes.values() for value in values]
        return list(self.class_names)

    @property
    def _meanings(self) -> Meanings | None:
        if self.classes is None:
            return None
        if isinstance(self.classes, Mapping):
            return {value: k for k, values in enumerate(self.classes.values()) for value in values}
        return {name: k for k, name in enumerate(self.class_names)}

    @property
    def scaled(self) -> tuple[str, ...]:
        """The columns that a scaling has: the numeric ones, and the target of a regression."""
        return (*self.numeric, self.target) if self.loss else self.numeric

    @property
    def federated(self) -> tuple[str, ...]:
        """The columns of which the parties report statistics."""
        if isinstance(self.standardise, Mapping):
            return tuple(name for name in self.scaled if name not in self.standardise)
        if self.standardise == "none":
            return self.numeric if self.missing == "median" else ()
        return self.scaled

    @property
    def inputs(self) -> int:
        """The number of inputs of the model."""
        return len(self.numeric) + sum(map(len, self.categorical.values()))

    @property
    def network(self) -> Network:
        """The model."""
        head: Head = self.loss or ("logit" if len(self.class_names) == 2 else "softmax")
        hidden = self.hidden if self.model == "mlp" else ()
        return Network((self.inputs, *hidden, len(self.class_names) if head == "softmax" else 1), head, self.delta)

    @property
    def layout(self) -> str:
        """Names and shapes of what x holds, in its order, as JSON."""
        sizes = self.network.sizes
        layers = [([f"weight_{k}", [sizes[k - 1], sizes[k]]], [f"bias_{k}", [sizes[k]]]) for k in range(1, len(sizes))]
        return json.dumps([part for layer in layers for part in layer])

    def wanted(self, *, needs_target: bool = True) -> Wanted:
        """Return the columns to read; see ``Wanted``."""
        categorical = {name: {text: k for k, text in enumerate(texts)} for name, texts in self.categorical.items()}
        return Wanted(
            numeric=self.numeric,
            categorical=categorical,
            target=self.target,
            classes=self._meanings,
            may_be_missing=self.missing == "median",
            inputs=self.inputs,
            delimiter=self.delimiter,
            needs_target=needs_target,
        )

    def scaling(self, reports: Sequence[Statistics], f: int) -> Scaling:
        """Return the scaling of all columns, out of the statistics of the parties.

        Args:
            reports: of the parties that reported any; at most one for each.
            f: how many of the parties may lie.

        Raises:
            ValueError: fewer than 2f + 1 parties reported a column; one line.
        """
        agreed = dict(federated(reports, f, self.federated).columns)
        if isinstance(self.standardise, Mapping):
            agreed |= {name: ColumnScaling(c, spread, fill=c) for name, (c, spread) in self.standardise.items()}
        elif self.standardise == "none":
            agreed = {name: ColumnScaling(0.0, 1.0, column.fill) for name, column in agreed.items()}
        return Scaling({name: agreed.get(name, NONE) for name in self.scaled})

    def encode(self, table: Table, scaling: Scaling) -> Inputs:
        """Return the inputs of the model, shape (m, inputs)."""
        inputs = np.zeros((len(table), self.inputs), dtype=self.dtype)
        for k, name in enumerate(self.numeric):
            column, values = scaling.columns[name], table.numbers[:, k]
            values = (np.where(np.isnan(values), column.fill, values) - column.centre) / column.spread
            inputs[:, k] = values if self.standardise == "none" else np.clip(values, -self.clip, self.clip)
        at = len(self.numeric)
        for k, categories in enumerate(self.categorical.values()):
            rows = np.flatnonzero(table.codes[:, k] >= 0)
            inputs[rows, at + table.codes[rows, k]] = 1
            at += len(categories)
        return inputs

    def encode_targets(self, targets: Targets, scaling: Scaling) -> Targets:
        """Return classes as they are, and numbers scaled; shape (m,)."""
        if self.loss is None:
            return targets
        column = scaling.columns[self.target]
        scaled: Targets = ((targets - column.centre) / column.spread).astype(self.dtype)
        return scaled

    def smoothness(self, l2: float) -> float | None:
        """Return a bound on L that holds whatever the tables hold; None where there is none.

        A linear model's loss has L <= c R^2 + l2 with the curvature c of the loss and the norm R of a row: each
        standardised value is at most ``clip``, each categorical column has at most a single 1, and so has the bias.
        """
        if self.model != "linear" or (self.numeric and self.standardise == "none"):
            return None
        row = len(self.numeric) * self.clip**2 + len(self.categorical) + 1
        return CURVATURE[self.network.head] * row + l2

    def described(self) -> dict[str, Any]:
        """Return the schema as JSON has it, for the file of a model."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(TableSchema)}


@dataclass(frozen=True, kw_only=True)
class TableTask(TableSchema):
    """Prediction of one column of a table from others: CSV or Parquet files, at each party or shared.

    Args:
        file: plain name of the table, ending in .csv or .parquet: in each party's own folder, or in the data folder.
        root_file: plain name of a table of the same columns in the server's own folder, on which it computes the row
            that ``fltrust`` trusts; its rows are in no other table. With ``partition = "own"``.
        partition: ``"own"``: each client has a table of its own; else who holds which rows of a shared one, see
            ``tasks/partition.py``.
        test_share: share of its rows that each client keeps back to measure the model on; of each class alike.
        min_rows: a client with fewer training rows, or with fewer values in a column, reports no statistics of them.
        l2: weight of the regulariser (l2/2) ||x||^2.
    """

    own_data: ClassVar[bool] = True

    kind: Literal["table"] = "table"
    file: str
    root_file: str | None = None
    partition: str = "iid"
    test_share: float = 0.2
    min_rows: int = 20
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.file)
        if self.root_file is not None:
            check_name(self.root_file)
            if self.partition != OWN or self.root_file == self.file:
                fix = f'must be another file than file = "{self.file}", and needs partition = "{OWN}"'
                raise ValueError(f'root_file = "{self.root_file}": {fix}')
        if not 0 <= self.test_share <= 0.9:
            raise ValueError(f"test_share = {self.test_share}: must be from 0 to 0.9")
        if self.min_rows < 1:
            raise ValueError(f"min_rows = {self.min_rows}: must be at least 1")

    def modules(self) -> Sequence[str]:
        """Return the heavy modules that ``load`` imports."""
        return ("threadpoolctl",)

    def load(self, setting: Setting) -> "TableProblem":
        """Read what this process may read, and split it.

        Raises:
            TaskError: a table cannot be read or has a wrong value, see ``read_table``; more workers than rows; on
                shared data, too few parts for the statistics.
        """
        one_thread()
        if self.partition == OWN:
            return self._load_own(setting)
        table = read_table(inside(setting.data_dir, self.file), self.wanted())
        if table.targets is None:  # the reader refuses such a table
            raise TaskError(f'{self.file}: column "{self.target}" is missing')
        parts, kept = share_out(self.partition, table.targets, setting)
        if parts[-1] is parts[0]:
            rows = table if kept is None else table.part(parts[0])
            parties = [self._party(rows, setting.seed)] * setting.clients
        else:
            parties = [self._party(table.part(rows), setting.seed) for rows in parts]
        problem = TableProblem(self, setting, parties, root=None if kept is None else table.part(kept))
        found = {str(worker): problem.statistics(worker) for worker in range(setting.clients)}
        try:
            problem.settle(problem.scaling_of(found, setting.byzantine))
        except ValueError as error:
            raise TaskError(str(error)) from None
        return problem

    def _load_own(self, setting: Setting) -> "TableProblem":
        parties: dict[Path, Party] = {}
        held: list[Party | None] = []
        for worker in range(setting.clients):
            if worker not in setting.folders and (setting.folders or setting.party != "client"):
                held.append(None)
                continue
            folder = setting.folder_of(worker)
            if folder not in parties:
                parties[folder] = self._party(read_table(inside(folder, self.file), self.wanted()), setting.seed)
            held.append(parties[folder])
        test, here = None, setting.data_dir
        if setting.party != "client" and here is not None and (here / self.file).exists():
            test = read_table(inside(here, self.file), self.wanted())
        root = None
        if setting.party == "server" and setting.root and self.root_file is not None and here is not None:
            root = read_table(inside(here, self.root_file), self.wanted())
            if test is not None:
                check_root(_arrays(root), _arrays(test))
        problem = TableProblem(self, setting, held, test, root)
        if not self.federated:
            problem.settle(problem.scaling_of({}, 0))
        return problem

    def _party(self, table: Table, seed: int) -> "Party":
        """Split the rows of a party; the same seed and rows give the same parts."""
        labels = table.targets if self.classes is not None and table.targets is not None else np.zeros(len(table))
        train, kept = kept_back(labels, self.test_share, seed)
        return Party(table.part(train), table.part(kept))


@dataclass(frozen=True, eq=False)
class Party:
    """The rows of one party.

    Args:
        train: what it trains on; at least one row.
        kept: what it keeps back to measure the model on; may be empty.
    """

    train: Table
    kept: Table


class TableProblem:
    """A loaded table task.

    Args:
        spec: of the task.
        setting: of the federation.
        parties: the rows of each worker; None of those whose rows are not in this process.
        test: the server's own test set, on own data.
        root: training rows of the server's; None where it has none.
    """

    optimum: float | None = None

    def __init__(
        self,
        spec: TableTask,
        setting: Setting,
        parties: Sequence[Party | None],
        test: Table | None = None,
        root: Table | None = None,
    ) -> None:
        self._root = root
        self.spec, self._setting, self._parties, self._test = spec, setting, list(parties), test
        self._network = spec.network
        self._scaling: Scaling | None = None
        self._oracles: dict[tuple[int, str], NetworkOracle] = {}

    @property
    def dim(self) -> int:
        """The number of parameters, d."""
        return self._network.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return np.dtype(self.spec.dtype)

    @property
    def smoothness(self) -> float | None:
        """A bound on L out of the schema alone; None where there is none."""
        return self.spec.smoothness(self.spec.l2)

    @property
    def samples(self) -> int:
        """m, the mean number of training rows of honest workers, or of those whose own rows are here; 0 for none."""
        counted = self._parties if self.spec.partition == OWN else self._parties[: self._setting.honest]
        held = [party.train for party in counted if party is not None]
        return mean_samples(held, len(held)) if held else 0

    def initial(self) -> Vector:
        """Return x^0: zeros for a linear model, else drawn from the run's seed."""
        if self.spec.model == "linear":
            return np.zeros(self.dim, dtype=self.dtype)
        return self._network.initial(stream(self._setting.seed, Role.INITIAL)).astype(self.dtype)

    def layout(self) -> str:
        """Return names and shapes of what x holds, in its order."""
        return self.spec.layout

    def training_data(self) -> list[NDArray[Any]]:
        """Return inputs and targets of a shared table; nothing of own data."""
        if self.spec.partition == OWN:
            return []
        parties = dict.fromkeys(party for party in self._parties if party is not None)
        oracles = [self._oracle(party.train) for party in parties]
        return [np.concatenate([o.inputs for o in oracles]), np.concatenate([o.labels for o in oracles])]

    # --- what the parties agree on before the first round ---

    @property
    def needs_statistics(self) -> bool:
        """Whether the scaling depends on statistics of the parties."""
        return bool(self.spec.federated)

    @property
    def settled(self) -> bool:
        """Whether the scaling is known."""
        return self._scaling is not None

    def count(self, worker: int) -> int:
        """Return the number of a worker's training rows."""
        return len(self._party(worker).train)

    def statistics(self, worker: int, min_rows: int | None = None) -> dict[str, dict[str, float]] | None:
        """Return the statistics of a worker's training rows by column, as JSON has them; see ``ColumnStatistics``.

        Args:
            worker: 0 .. n-1.
            min_rows: with fewer rows, None is returned, and columns with fewer values are left out: the mean of a
                single row would be the record. Default: that of the config.
        """
        least = self.spec.min_rows if min_rows is None else min_rows
        train = self._party(worker).train
        if len(train) < least:
            return None
        found = {}
        for name in self.spec.federated:
            values = train.targets if name == self.spec.target else train.numbers[:, self.spec.numeric.index(name)]
            if values is not None and np.count_nonzero(~np.isnan(values)) >= least:
                found[name] = asdict(ColumnStatistics.of(values))
        return found

    def scaling_of(self, reports: Mapping[str, object], f: int) -> str:
        """Return the federation's scaling, as text for ``settle``.

        Args:
            reports: what each party reported, as JSON has it; None where it reported nothing. One that reports
                anything else than statistics of these columns does not count, and the log says why.
            f: how many of the parties may lie.

        Raises:
            ValueError: fewer than 2f + 1 parties reported a column; one line.
        """
        found = []
        for name, report in reports.items():
            try:
                found += [] if report is None else [read_statistics(report, self.spec.federated)]
            except ValueError as error:
                log.warning("the statistics of %s do not count: %s", one_line(name, 80), error)
        return self.spec.scaling(found, f).to_json()

    def settle(self, scaling: str) -> None:
        """Take the federation's scaling.

        Raises:
            ValueError: it is not that of these columns; one line.
        """
        taken = Scaling.from_json(scaling, self.spec.scaled)
        if taken != self._scaling:
            self._scaling = taken
            self._oracles.clear()

    def description(self) -> dict[str, Any]:
        """Return what a model needs to be used, as JSON has it: schema and scaling, empty while that is not known."""
        columns = self._scaling.columns if self._scaling is not None else {}
        scaling = {name: asdict(columns[name]) for name in sorted(columns)}
        return {"schema": self.spec.described(), "scaling": scaling}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes by number; none of a regression."""
        return self.spec.class_names

    def own_data(self, worker: int) -> list[list[NDArray[Any]]]:
        """Return what a worker trains on, and what it keeps back: numbers, codes and targets of each."""
        party = self._party(worker)
        return [_arrays(part) for part in (party.train, party.kept) if len(part)]

    # --- gradients and measures ---

    def oracle(self, worker: int, *, flipped: bool = False) -> NetworkOracle:
        """Return a worker's oracle; the same object each time.

        Args:
            worker: 0 .. n-1.
            flipped: on flipped targets, for an attacker: the class y becomes K - 1 - y, a scaled number y becomes -y.

        Raises:
            TaskError: its rows are not in this process, or the scaling is not known yet.
        """
        return self._oracle(self._party(worker).train, "flipped" if flipped else "")

    @property
    def has_root_data(self) -> bool:
        """Whether this process has training rows of the server's."""
        return self._root is not None

    def root(self) -> NetworkOracle:
        """Return the gradients of the server's own training rows.

        Raises:
            TaskError: there are none, or the scaling is not known yet.
        """
        if self._root is None:
            raise TaskError("the server has no training rows of its own")
        return self._oracle(self._root)

    @property
    def has_test_data(self) -> bool:
        """Whether ``evaluate`` can measure the model here."""
        return self.spec.partition != "own" or self._test is not None

    def evaluate(self, x: Vector) -> Evaluation:
        """Measure the model.

        On shared data: mean of the honest workers' training losses, accuracy on all that they keep back, or on their
        training rows if they keep nothing back. On own data: loss and accuracy on the server's test set.

        Raises:
            TaskError: on own data, the server has no test set.
        """
        if self.spec.partition == OWN:
            if self._test is None:
                where = "the server's data folder has no such table"
                raise TaskError(f'"{self.spec.file}": {where} to measure the model on; let the clients measure it')
            return self._measured(self._oracle(self._test), x)
        honest = list(dict.fromkeys(self._party(worker) for worker in range(self._setting.honest)))
        loss = float(np.mean([self._oracle(party.train).value(x) for party in honest]))
        if self.spec.loss:
            return Evaluation(loss=loss, accuracy=None)
        measured = [party.kept for party in honest if len(party.kept)] or [party.train for party in honest]
        hits = sum(self._oracle(rows).accuracy(x) * len(rows) for rows in measured)
        return Evaluation(loss=loss, accuracy=hits / sum(map(len, measured)))

    def measure(self, worker: int, x: Vector) -> Evaluation:
        """Measure the model on what a worker keeps back; on its training rows if it keeps nothing back."""
        party = self._party(worker)
        return self._measured(self._oracle(party.kept if len(party.kept) else party.train), x)

    def kept_back(self, worker: int) -> int:
        """Return how many rows ``measure`` measures on."""
        party = self._party(worker)
        return len(party.kept) or len(party.train)

    def _measured(self, oracle: NetworkOracle, x: Vector) -> Evaluation:
        return Evaluation(loss=oracle.value(x), accuracy=None if self.spec.loss else oracle.accuracy(x))

    def _party(self, worker: int) -> Party:
        party = self._parties[worker]
        if party is None:
            raise TaskError(f"the rows of client {worker} are at that client alone")
        return party

    @property
    def _agreed(self) -> Scaling:
        if self._scaling is None:
            raise TaskError("the scaling of the columns is not known yet")
        return self._scaling

    def _oracle(self, rows: Table, form: str = "") -> NetworkOracle:
        """Return the model on some rows, encoded once."""
        key = (id(rows), form)  # the rows live as long as this object
        if key not in self._oracles:
            if rows.targets is None:
                raise TaskError(f'column "{self.spec.target}" is missing')
            if form:
                plain = self._oracle(rows)
                labels = -plain.labels if self.spec.loss else len(self.spec.class_names) - 1 - plain.labels
                self._oracles[key] = NetworkOracle(self._network, plain.inputs, labels, self.spec.l2)
            else:
                inputs = self.spec.encode(rows, self._agreed)
                labels = self.spec.encode_targets(rows.targets, self._agreed)
                self._oracles[key] = NetworkOracle(self._network, inputs, labels, self.spec.l2)
        return self._oracles[key]


def _arrays(table: Table) -> list[NDArray[Any]]:
    """Return what a table holds: numbers, codes and targets, one row each."""
    return [array for array in (table.numbers, table.codes, table.targets) if array is not None]


def _check_texts(key: str, texts: Sequence[str], least: int) -> None:
    """Refuse a list of categories or classes in which one is empty or there twice.

    Raises:
        ValueError: one line.
    """
    wrong = [text for text, times in Counter(texts).items() if not text or text != text.strip() or times > 1]
    if wrong or len(texts) < least:
        bound = f"at least {least} different texts, none empty or with spaces around it"
        raise ValueError(f"{key} = {list(texts)[:8]}: must be {bound}")


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
