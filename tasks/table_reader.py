"""Reads tables: CSV and Parquet files, and columns in memory, into arrays, with errors that name row and column.

CSV is read by Python's own ``csv``: it knows the line of every row, streams, and needs nothing to be installed. Parquet
is read by ``pyarrow``, the reference library of the format (the extra ``table``), which is imported only for it. Files
are input that may be wrong in any way or hostile: they must be regular, and all sizes are bounded before they are read.
"""

import csv
import difflib
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from foundation.text import TextError, first_line, one_line, without_marks
from tasks.contract import TaskError
from tasks.files import FIX
from tasks.scaling import LARGEST

ENDINGS = (".csv", ".parquet")
MOST_BYTES = 2 << 30
"""Bytes of a file, and of a Parquet file when it is unpacked."""
MOST_ROWS, MOST_COLUMNS = 10_000_000, 10_000
MOST_CELLS = 1 << 28
"""Rows times inputs of the model."""
_MOST_LINE = 4 << 20
_BATCH = 8192
"""Rows that are converted at once."""

Meanings = Mapping[str, int]
"""The number of each category, or class, by the text that stands for it in a table."""
Texts = Sequence[str]
"""The cells of a column; "" where the value is missing."""
Cells = Texts | NDArray[np.float64]
"""The same, or numbers: NaN where the value is missing, infinity for all that is no finite number."""


@dataclass(frozen=True)
class Wanted:
    """The columns that are read.

    Args:
        numeric: names.
        categorical: name -> number of each category.
        target: name.
        classes: number of each class; None where the target is a number.
        may_be_missing: whether numbers and categories may be; targets may not.
        needs_target: False reads tables without the target too, or with some targets missing, to predict them.
        inputs: of the model, for the bound on the size.
        delimiter: between the cells of a CSV file.
    """

    numeric: Sequence[str]
    categorical: Mapping[str, Meanings]
    target: str
    classes: Meanings | None
    may_be_missing: bool
    inputs: int
    delimiter: str
    needs_target: bool = True


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a table as numbers.

    Args:
        numbers: the numeric columns, shape (m, numeric), float64; NaN where missing.
        codes: the categorical columns, shape (m, categorical), int32; -1 where missing.
        targets: shape (m,); classes as int64, -1 where missing, or numbers as float64, NaN where missing. None where
            the table has no such column.
    """

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    targets: NDArray[Any] | None

    def __len__(self) -> int:
        """Return m."""
        return len(self.numbers)

    def part(self, rows: NDArray[Any]) -> "Table":
        """Return some of the rows, by number or mask."""
        return Table(self.numbers[rows], self.codes[rows], None if self.targets is None else self.targets[rows])

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have a target; shape (m,)."""
        if self.targets is None:
            return np.zeros(len(self), dtype=np.bool_)
        return self.targets >= 0 if self.targets.dtype.kind == "i" else ~np.isnan(self.targets)


def check_name(name: str) -> None:
    """Refuse what is no plain name of a table.

    Raises:
        ValueError: one line.
    """
    if not name or {"/", "\\", "\0", ":"} & set(name) or not name.lower().endswith(ENDINGS) or name.startswith("."):
        raise ValueError(f'file = "{one_line(name, 80)}": must be a plain name that ends in .csv or .parquet')


def inside(folder: Path | None, name: str) -> Path:
    """Return the path of a table in a folder.

    Args:
        folder: None if nobody named one.
        name: a plain one.

    Raises:
        TaskError: there is no such file, or it is a link that leads out of the folder.
    """
    if folder is None:
        raise TaskError(f'table "{name}": no data folder is known; {FIX}')
    path = folder / name
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = f"is not in the folder {folder}; {FIX}" if isinstance(error, FileNotFoundError) else f"{error}"
        raise TaskError(f'table "{name}": {reason}') from None
    if not found.is_relative_to(folder.resolve()):
        raise TaskError(f"{path}: is a link out of the folder; copy the file into it")
    return path


def read_table(source: Path | Mapping[str, Any], wanted: Wanted) -> Table:
    """Read a table.

    Args:
        source: path of a file, or columns by name: lists or arrays, or a data frame.
        wanted: which columns.

    Raises:
        TaskError: it cannot be read, or a value is not what it should be; one line with file, row and column.
    """
    if not isinstance(source, Path):
        return _gather(_of_memory(source, wanted), wanted, "table")
    with _opened(source) as file:
        batches = _of_parquet if source.suffix.lower() == ".parquet" else _of_csv
        return _gather(batches(file, source, wanted), wanted, str(source))


@dataclass(frozen=True)
class _Batch:
    """Some rows: their cells by column, and their names for a person."""

    columns: Mapping[str, Cells]
    rows: Sequence[int]
    word: str


class _Flaw(Exception):  # noqa: N818  # becomes a TaskError
    """A cell that is not what it should be."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def _gather(batches: Iterator[_Batch], wanted: Wanted, name: str) -> Table:
    """Convert and join batches."""
    parts, rows = [], 0
    most = min(MOST_ROWS, MOST_CELLS // max(1, wanted.inputs))
    for batch in batches:
        rows += len(batch.rows)
        if rows > most:
            raise TaskError(f"{name}: has more than {most:,} rows, the most for {wanted.inputs} inputs; split it")
        parts.append(_converted(batch, wanted, name))
    if rows == 0:
        raise TaskError(f"{name}: has no rows")
    targets = [part.targets for part in parts if part.targets is not None]
    return Table(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate(targets) if targets else None,
    )


def _converted(batch: _Batch, wanted: Wanted, name: str) -> Table:
    m = len(batch.rows)
    numbers, codes = np.empty((m, len(wanted.numeric))), np.empty((m, len(wanted.categorical)), dtype=np.int32)
    targets, column = None, ""
    try:
        for k, column in enumerate(wanted.numeric):
            numbers[:, k] = _numbers(batch.columns[column], wanted.may_be_missing)
        for k, (column, meanings) in enumerate(wanted.categorical.items()):
            codes[:, k] = _codes(batch.columns[column], meanings, wanted.may_be_missing, "category")
        column = wanted.target
        if column in batch.columns and wanted.classes is None:
            targets = _numbers(batch.columns[column], not wanted.needs_target)
        elif column in batch.columns and wanted.classes is not None:
            found = _codes(batch.columns[column], wanted.classes, not wanted.needs_target, "class")
            targets = found.astype(np.int64)
    except _Flaw as flaw:
        place = f'{batch.word} {batch.rows[flaw.index]}, column "{column}"'
        raise TaskError(f"{name}, {place}: {flaw}") from None
    return Table(numbers, codes, targets)


def _numbers(cells: Cells, may_be_missing: bool) -> NDArray[np.float64]:
    values = cells if isinstance(cells, np.ndarray) else _parsed(cells)
    with np.errstate(invalid="ignore"):
        bad = np.abs(values) > LARGEST
    if bad.any():
        index = int(bad.argmax())
        shown = "the value" if isinstance(cells, np.ndarray) else f'"{one_line(cells[index].strip(), 40)}"'
        raise _Flaw(index, f"{shown} is no finite number up to {LARGEST:g}; leave a missing value empty")
    if not may_be_missing and (gone := np.isnan(values)).any():
        raise _Flaw(int(gone.argmax()), "the value is missing")
    return values


def _parsed(cells: Texts) -> NDArray[np.float64]:
    """Return numbers as ``Cells`` has them.

    Raises:
        _Flaw: a cell is text.
    """
    values = np.empty(len(cells))
    for index, cell in enumerate(cells):
        try:
            value = float(cell)
        except ValueError:
            if cell.strip():
                raise _Flaw(index, f'"{one_line(cell.strip(), 40)}" is no number') from None
            values[index] = math.nan
        else:
            if "_" in cell:  # which Python takes for a separator of thousands
                raise _Flaw(index, f'"{one_line(cell.strip(), 40)}" is no number')
            values[index] = math.inf if math.isnan(value) else value
    return values


def _codes(cells: Cells, meanings: Meanings, may_be_missing: bool, word: str) -> NDArray[np.int32]:
    if isinstance(cells, np.ndarray):
        cells = ["" if math.isnan(value) else repr(float(value)) for value in cells]
    codes = np.empty(len(cells), dtype=np.int32)
    known = dict(meanings)  # and what else was found to mean the same
    for index, cell in enumerate(cells):
        code = known.get(cell)
        if code is None:
            text = cell.strip()
            code = meanings.get(text, meanings.get(_whole(text), -1 if not text else -2))
            if code == -2:
                some = ", ".join(f'"{meaning}"' for meaning in list(meanings)[:8])
                more = ", ..." if len(meanings) > 8 else ""
                raise _Flaw(index, f'"{one_line(text, 40)}" is no {word} of the config ({some}{more})')
            known[cell] = code
        codes[index] = code
    if not may_be_missing and (gone := codes < 0).any():
        raise _Flaw(int(gone.argmax()), f"the {word} is missing")
    return codes


def _whole(text: str) -> str:
    """Return "1" for "1.0", as which a column of whole numbers with gaps is often written."""
    number, point, zeros = text.partition(".")
    return number if point and not zeros.strip("0") else text


def _check_header(header: Sequence[str], wanted: Wanted, name: str) -> list[str]:
    """Return the columns to read.

    Raises:
        TaskError: one is missing, or there twice.
    """
    if len(header) > MOST_COLUMNS:
        raise TaskError(f"{name}: has {len(header):,} columns; at most {MOST_COLUMNS:,}")
    columns = [*wanted.numeric, *wanted.categorical]
    if wanted.needs_target or wanted.target in header:
        columns.append(wanted.target)
    for column in columns:
        count = header.count(column)
        if count > 1:
            raise TaskError(f'{name}: column "{column}" is there {count} times')
        if count == 0:
            close = difflib.get_close_matches(column, header, n=1, cutoff=0.6)
            some = ", ".join(one_line(each, 40) for each in header[:8]) + (", ..." if len(header) > 8 else "")
            hint = f'; did you mean "{one_line(close[0], 40)}"?' if close else f"; it has {some}"
            raise TaskError(f'{name}: column "{column}" is missing{hint}')
    return columns


# --- columns in memory ---


def _of_memory(source: Mapping[str, Any], wanted: Wanted) -> Iterator[_Batch]:
    names = _check_header([str(name) for name in source], wanted, "table")
    columns = {name: [_text(value) for value in source[name]] for name in names}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TaskError(f"table: the columns have different lengths: {lengths}"[:300])
    rows = next(iter(lengths.values()))
    if rows:
        yield _Batch(columns, range(1, rows + 1), "row")


def _text(value: Any) -> str:
    """Return a value as a cell of a CSV file would have it."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    text = str(value)
    return "" if text in ("<NA>", "NaT") else text  # pandas' missing values


# --- files ---


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of bounded size; a pipe or a device is refused without waiting for it.

    Raises:
        TaskError: it is none, or cannot be read.
    """
    if path.suffix.lower() not in ENDINGS:
        raise TaskError(f"{path}: is no table; its name must end in .csv or .parquet")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise TaskError(f"{path}: is no regular file")
            if found.st_size > MOST_BYTES:
                raise TaskError(f"{path}: is longer than {MOST_BYTES >> 30} GiB; split it")
            yield file
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror or error}") from None


def _of_csv(file: BinaryIO, path: Path, wanted: Wanted) -> Iterator[_Batch]:
    """Yield the rows of a CSV file: UTF-8, with a header; blank lines are skipped."""
    reader = csv.reader(_lines(file, path), delimiter=wanted.delimiter, skipinitialspace=True, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if not header:
            raise TaskError(f"{path}: is empty; its first line must name the columns")
        columns = [(name, header.index(name)) for name in _check_header(header, wanted, str(path))]
        rows: list[list[str]] = []
        lines: list[int] = []
        line = reader.line_num
        for row in reader:
            at, line = line + 1, reader.line_num  # a quoted cell may go over several lines
            if not row:
                continue
            if len(row) != len(header):
                raise TaskError(f"{path}, line {at}: has {len(row)} cells, and the header {len(header)}")
            rows.append(row)
            lines.append(at)
            if len(rows) == _BATCH:
                yield _Batch({name: [row[k] for row in rows] for name, k in columns}, lines, "line")
                rows, lines = [], []
        if rows:
            yield _Batch({name: [row[k] for row in rows] for name, k in columns}, lines, "line")
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.line_num}: is no CSV: {error}") from None


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Yield the lines of a text in UTF-8, with their ends."""
    number = 0
    while raw := file.readline(_MOST_LINE + 1):
        number += 1
        if len(raw) > _MOST_LINE:
            raise TaskError(f"{path}, line {number}: is longer than {_MOST_LINE >> 20} MiB: is it a table?")
        try:
            yield (without_marks(raw) if number == 1 else raw).decode("utf-8")
        except TextError as error:
            raise TaskError(f"{path}: {error}") from None
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x}"
            raise TaskError(f"{path}, line {number}: is not UTF-8 ({byte}); save it as UTF-8") from None


def _of_parquet(file: BinaryIO, path: Path, wanted: Wanted) -> Iterator[_Batch]:
    """Yield the rows of a Parquet file."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        fix = "install it with: pip install 'breakwater[table]', or save the table as CSV"
        raise TaskError(f"{path}: Parquet needs pyarrow; {fix}") from None
    try:
        # Texts stay numbers into a dictionary: a long one that is repeated is in memory once.
        schema = ParquetFile(file).schema_arrow
        columns = _check_header(schema.names, wanted, str(path))
        texts = [name for name in columns if pyarrow.types.is_string(schema.field(name).type)]
        parquet = ParquetFile(file, read_dictionary=texts)
        _check_size(parquet.metadata, path)
        row = 0
        for batch in parquet.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
            found = {name: _cells(batch.column(name), name, path) for name in batch.schema.names}
            rows = range(row + 1, row + batch.num_rows + 1)
            row += batch.num_rows
            if batch.num_rows:
                yield _Batch(found, rows, "row")
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        reason = one_line(first_line(error))
        raise TaskError(f"{path}: is no Parquet file that can be read: {reason}") from None


def _check_size(about: Any, path: Path) -> None:
    """Refuse a Parquet file that says that it unpacks to too much.

    Only totals are read: pyarrow ends the process when it is asked about single columns of some damaged files.
    """
    unpacked = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
    if unpacked > MOST_BYTES:
        raise TaskError(f"{path}: unpacks to {unpacked >> 20:,} MiB; at most {MOST_BYTES >> 20:,}")
    if about.num_rows > MOST_ROWS:
        raise TaskError(f"{path}: has {about.num_rows:,} rows; at most {MOST_ROWS:,}")


def _cells(column: Any, name: str, path: Path) -> Cells:
    """Return the cells of a column of a Parquet file."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind):
        valid = ~np.asarray(column.is_null())
        values = np.array(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        values[valid & np.isnan(values)] = math.inf
        return values
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind)):
        raise TaskError(f'{path}, column "{name}": is of the type {kind}; must be numbers, texts or booleans')
    coded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    texts = [_text(value) for value in coded.dictionary.to_pylist()]
    return ["" if index is None else texts[index] for index in coded.indices.to_pylist()]
