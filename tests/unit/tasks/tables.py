"""Small tables for the tests of the table task: texts, files, and tasks that read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.contract import Setting
from tasks.table import TableProblem, TableTask

COLUMNS: dict[str, Any] = {
    "target": "outcome",
    "classes": ("no", "yes"),
    "numeric": ("age", "bmi"),
    "categorical": {"sex": ("f", "m")},
}
HEADER = "age,bmi,sex,outcome"


def task(**changes: Any) -> TableTask:
    """Return a task that reads ``t.csv`` of ``rows``."""
    return TableTask(**({"file": "t.csv", **COLUMNS} | changes))


def rows(m: int, seed: int = 0, gaps: float = 0.1) -> list[str]:
    """Return lines of a table in which the outcome depends on the columns; some values are missing."""
    rng = np.random.default_rng(seed)
    age, bmi = rng.normal(50, 12, m).round(1), rng.normal(26, 4, m).round(2)
    sex = rng.integers(0, 2, m)
    score = (age - 50) / 12 - (bmi - 26) / 4 + 0.5 * sex + rng.normal(size=m)
    cells = [[str(a), str(b), "fm"[s]] for a, b, s in zip(age, bmi, sex, strict=True)]
    cells = [["" if rng.random() < gaps else cell for cell in row] for row in cells]
    return [",".join([*row, "yes" if y > 0 else "no"]) for row, y in zip(cells, score, strict=True)]


def write(folder: Path, lines: Sequence[str], name: str = "t.csv", header: str = HEADER) -> Path:
    """Write a CSV file and return its path."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def load(folder: Path, spec: TableTask, clients: int = 3, **setting: Any) -> TableProblem:
    """Load a task from a folder."""
    return spec.load(Setting(clients, data_dir=folder, **setting))


def loaded(folder: Path, lines: Sequence[str], clients: int = 3, **changes: Any) -> TableProblem:
    """Write a table and load a task that reads it."""
    write(folder, lines)
    return load(folder, task(**changes), clients)


def parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    """Write a Parquet file and return its path; the test is left out where pyarrow is not installed."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra table)")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(dict(columns)), path)
    return path
