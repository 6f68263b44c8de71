"""Reads LIBSVM files: one sample a line, ``label index:value index:value ...``, indices counted from 1.

An own reader rather than scikit-learn's: importing that takes seconds in each of many client processes, this one reads
a9a (32,561 lines) in 0.3 s and names the line that is wrong.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foundation.text import TextError, without_marks
from tasks.contract import TaskError
from tasks.files import read


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a file; row i holds the entries ``starts[i]`` up to ``starts[i+1]``.

    Args:
        labels: shape (m,), float64, as in the file.
        starts: shape (m+1,), int64.
        columns: shape (non-zeros,), int64, counted from 0, ascending in each row.
        values: shape (non-zeros,), float64.
    """

    labels: NDArray[np.float64]
    starts: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]


def read_libsvm(path: Path) -> Samples:
    """Read a LIBSVM file, plain, ``.gz`` or ``.bz2``; empty lines and ``# comments`` are skipped.

    Raises:
        TaskError: the file is missing or unreadable, has no samples, or a line breaks the format.
    """
    try:
        content = without_marks(read(path))
    except TextError as error:
        raise TaskError(f"data file {path}: {error}") from None
    if b"#" in content:
        content = re.sub(rb"#[^\r\n]*", b"", content)
    lines = [b" ".join(line.split()) for line in content.splitlines() if line.strip()]
    if not lines:
        raise TaskError(f"data file {path}: no samples in it")
    counts = np.array([line.count(b":") for line in lines])
    numbers = _numbers(b"\n".join(lines))
    if numbers is None or not np.isfinite(numbers).all():
        raise TaskError(f"data file {path}: {_bad_line(content)}")

    # The numbers of a row: its label, then index and value in turn.
    starts = np.concatenate([[0], np.cumsum(counts)])
    label_at = np.arange(len(lines)) + 2 * starts[:-1]
    pairs = np.delete(numbers, label_at).reshape(-1, 2)
    indices, values = pairs[:, 0], pairs[:, 1]
    row = np.repeat(np.arange(len(lines)), counts)
    wrong = ~((indices >= 1) & (indices < 2**31) & (indices == np.floor(indices)))
    wrong[1:] |= (row[1:] == row[:-1]) & (indices[1:] <= indices[:-1])
    if wrong.any():
        at = int(np.argmax(wrong))
        entry = f'sample {row[at] + 1} has the entry "{indices[at]:.15g}:{values[at]:.15g}"'
        bound = "indices must be whole numbers from 1 up to 2^31, ascending in a line"
        raise TaskError(f"data file {path}: {entry}: {bound}")
    return Samples(numbers[label_at], starts, indices.astype(np.int64) - 1, np.ascontiguousarray(values))


def _numbers(content: bytes) -> NDArray[np.float64] | None:
    """Return all numbers of a file in order, or None if it breaks the format.

    Args:
        content: the lines, with single blanks between the entries.
    """
    signs = np.frombuffer(content + b"\n", np.uint8)
    signs = signs[(signs == ord(" ")) | (signs == ord(":")) | (signs == ord("\n"))]
    # In a good file a blank follows a label or a value, and a colon an index: blank and colon take turns.
    if signs[0] == ord(":") or not np.array_equal(signs[1:] == ord(":"), signs[:-1] == ord(" ")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how NumPy 2 says that it stopped at something else
        try:
            numbers = np.fromstring(content.replace(b":", b" ").decode("ascii"), sep=" ")
        except (ValueError, DeprecationWarning):
            return None
    return numbers if numbers.size == signs.size else None


def _bad_line(content: bytes) -> str:
    """Say which line first breaks the format."""
    number = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    form = re.compile(rf"\s*(?:{number}(?:\s+[0-9]+:{number})*)?\s*".encode())
    for at, line in enumerate(content.splitlines(), start=1):
        if not form.fullmatch(line):
            shown = line[:40].decode("ascii", "replace")
            return f'line {at} is "{shown}": must be "label index:value index:value ..."'
    return "a number in it is beyond 1.8e308"
