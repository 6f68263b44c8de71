"""A trained model of a table task, ready to use: what it needs travels in its file.

    model = breakwater.load_model("runs/first/model.safetensors")
    found = model.predict("new.csv")
    found.values, found.probabilities, found.accuracy

A model may come from anybody, so all that its file claims is checked before it is used.
"""

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from foundation.errors import ConfigError
from foundation.files import replace_text
from foundation.text import one_line
from strategies.method import Vector
from tasks.contract import TaskError
from tasks.scaling import Scaling
from tasks.table import TableSchema
from tasks.table_reader import Table, read_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts for the rows of a table.

    Args:
        values: for each row the name of a class, or a number in the units of the target; shape (m,).
        classes: names of the classes; none for a regression.
        probabilities: of each class in each row, shape (m, classes); None for a regression.
        targets: what the table has in the target's column: "" or NaN in rows without it; None without the column.
        imputed: how many values were missing and have been filled in.
    """

    values: NDArray[Any]
    classes: tuple[str, ...]
    probabilities: NDArray[np.floating] | None
    targets: NDArray[Any] | None
    imputed: int

    def __len__(self) -> int:
        """Return m."""
        return len(self.values)

    @property
    def compared(self) -> int:
        """The number of rows that have a target."""
        return len(self._pairs()[0])

    @property
    def accuracy(self) -> float | None:
        """Share of the rows with a target whose class is predicted; None for a regression, and without targets."""
        values, targets = self._pairs()
        return float(np.mean(values == targets)) if self.classes and len(values) else None

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared error of a regression, in the units of the target; None without targets."""
        values, targets = self._pairs()
        return None if self.classes or not len(values) else float(np.sqrt(np.mean(np.square(values - targets))))

    @property
    def mae(self) -> float | None:
        """Mean absolute error of a regression, in the units of the target; None without targets."""
        values, targets = self._pairs()
        return None if self.classes or not len(values) else float(np.mean(np.abs(values - targets)))

    def to_csv(self) -> str:
        """Return a table: row (from 1), prediction, and the probability of each class."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", "prediction", *(f"probability of {name}" for name in self.classes)])
        shares: Any = [()] * len(self) if self.probabilities is None else self.probabilities
        for row, (value, share) in enumerate(zip(self.values, shares, strict=True), 1):
            shown = value if self.classes else f"{value:.9g}"
            writer.writerow([row, shown, *(f"{each:.6g}" for each in share)])
        return out.getvalue()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_csv()`` to a file.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            replace_text(Path(path), self.to_csv())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    def summary(self) -> str:
        """Return rows, imputed values and, where targets are there, how good the predictions are, on one line."""
        parts = [f"{len(self):,} rows", f"{self.imputed:,} missing values filled in"]
        if self.accuracy is not None:
            parts.append(f"accuracy {100 * self.accuracy:.1f} % on {self.compared:,} rows")
        elif self.rmse is not None:
            parts.append(f"RMSE {self.rmse:.6g}, MAE {self.mae:.6g} on {self.compared:,} rows")
        else:
            parts.append("no targets to compare with")
        return ", ".join(parts)

    def _pairs(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return values and targets of the rows that have a target."""
        if self.targets is None:
            return self.values[:0], self.values[:0]
        known = self.targets != "" if self.classes else ~np.isnan(self.targets)
        return self.values[known], self.targets[known]


@dataclass(frozen=True, eq=False)
class TableModel:
    """A trained model of a table task.

    Args:
        schema: columns, categories and classes, and the form of the model.
        scaling: of the columns.
        x: the trained parameters, shape (d,).
    """

    schema: TableSchema
    scaling: Scaling
    x: Vector

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> Self:
        """Return the model in a file.

        Args:
            tensors: the parameters by name.
            description: what ``TableProblem.description`` returned.

        Raises:
            ValueError: what the file claims does not fit together; one line.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            schema = TypeAdapter(TableSchema).validate_python(description.get("schema"))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in ("schema", *first["loc"]))
            raise ValueError(one_line(f"{place}: {first['msg']}")) from None
        try:
            scaling = Scaling.from_json(json.dumps(description.get("scaling")), schema.scaled)
        except ValueError as error:
            raise ValueError(f"its scaling: {error}") from None
        layout = dict(json.loads(schema.layout))
        if {name: list(array.shape) for name, array in tensors.items()} != layout:
            raise ValueError("its parameters have other names or shapes than those of its schema")
        x: Vector = np.concatenate([tensors[name].reshape(-1) for name in layout])
        if x.dtype != np.dtype(schema.dtype) or not np.isfinite(x).all():
            raise ValueError(f"its parameters must be finite numbers of the type {schema.dtype}")
        return cls(schema, scaling, x)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return (*self.schema.numeric, *self.schema.categorical)

    def predict(self, table: "str | os.PathLike[str] | Mapping[str, Any] | pd.DataFrame") -> Predictions:
        """Predict the target of each row of a table; the table may have the target too.

        Args:
            table: path of a CSV or Parquet file; or columns by name: lists, arrays or a data frame, with None or NaN
                for missing values.

        Raises:
            ConfigError: the table cannot be read, lacks a column or has a wrong value; one line with row and column.
        """
        source: Any = Path(table) if isinstance(table, str | os.PathLike) else table
        try:
            rows = read_table(source, self.schema.wanted(needs_target=False))
        except TaskError as error:
            raise ConfigError(str(error)) from None
        inputs, network = self.schema.encode(rows, self.scaling), self.schema.network
        imputed = int(np.isnan(rows.numbers).sum() + (rows.codes < 0).sum())
        if self.schema.loss is None:
            names = np.array(self.schema.class_names)
            values = names[network.classes(self.x, inputs)]
            return Predictions(
                values, self.schema.class_names, network.probabilities(self.x, inputs), _named(rows, names), imputed
            )
        column = self.scaling.columns[self.schema.target]
        values = network.scores(self.x, inputs)[:, 0].astype(np.float64) * column.spread + column.centre
        return Predictions(values, (), None, rows.targets, imputed)


def _named(rows: Table, names: NDArray[np.str_]) -> NDArray[np.str_] | None:
    """Return the targets as names of classes, "" where there is none."""
    if rows.targets is None:
        return None
    return np.where(rows.known, names[np.maximum(rows.targets, 0)], "")
