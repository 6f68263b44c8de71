"""What all processes of a run must agree on about the task, so that their gradients belong together.

Server and clients load the task each for themselves. A ``TaskIdentity`` is what a process found, as short strings that
travel in the handshake (``docs/wire.md``) and lie in checkpoints. It is a guard against mistakes: another file, another
copy of the data, data that are drawn anew in every process. It proves nothing of a client that lies.

Where numbers were computed, processors may differ in the last bits, and a digest of bytes tells no small difference
from a large one. So arrays of floating-point numbers are also summed up in two numbers each, with fixed random signs:
whatever is more than rounding changes these.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from foundation.text import one_line
from tasks.contract import Problem

Reading = Literal["whole", "bits", "none"]
"""How the training data are read for their digest: whole; without the sums, for processes on one machine, where no
rounding differs; or not at all."""

_MOST, _MOST_TEXT = 480, 4096
"""Characters of a field that are read, and of all of them together."""
_FILES = 12
"""Files of a task that are named one by one."""
_PERIOD, _ROWS = 4093, 2048
"""The signs repeat after ``_PERIOD`` numbers, with another sign for each such row; ``_ROWS`` are summed at once."""
_ROUNDING = 1e-5
"""Relative to the length of the array: sums of its numbers differ by at most this where only rounding differs."""

_files: WeakKeyDictionary[Any, Mapping[str, str]] = WeakKeyDictionary()
"""The files that the custom task of a problem was made by, see ``remember_files``."""


@dataclass(frozen=True, kw_only=True)
class TaskIdentity:
    """The task as one process sees it. An empty field is not known there, and is not compared.

    Args:
        dim: d.
        dtype: of the model.
        samples: how many training samples there are; of a task that does not report it, m.
        layout: digest of the names and shapes of the trained parameters, in their order.
        shapes: the same as JSON, where it is short, for messages.
        files: the custom task's file and those that it imported, each with a digest.
        data: digest of the training data, see ``digest``.
        frozen: the same of what belongs to the model and is not trained.
        start: the same of x^0. The server sends it, so a difference does no harm.
        smoothness: L_i, of a party that has its own data and knows it; not compared.
    """

    dim: str = ""
    dtype: str = ""
    samples: str = ""
    layout: str = ""
    shapes: str = ""
    files: str = ""
    data: str = ""
    frozen: str = ""
    start: str = ""
    smoothness: str = ""

    def written(self) -> str:
        """Return it as text, for ``parse``."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return what another process reports of itself; invalid fields count as unknown. Never raises."""
        try:
            claimed = json.loads(text) if isinstance(text, str) and len(text) <= _MOST_TEXT else {}
        except (ValueError, RecursionError):
            claimed = {}
        if not isinstance(claimed, dict):
            return cls()
        known = {field.name for field in fields(cls) if isinstance(claimed.get(field.name), str)}
        return cls(**{name: one_line(claimed[name], _MOST) for name in known})

    def differences(self, other: Self, here: str = "at the client", there: str = "at the server") -> list[str]:
        """Return what two processes must not differ in, in words; nothing where they agree.

        Args:
            other: of the other process.
            here: where this one is.
            there: where the other one is.
        """
        found = _shapes_that_differ(self.shapes, other.shapes, here, there)
        for name, shown in (("dim", "d ="), ("dtype", "dtype")):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not found and _differ(mine, theirs):
                found.append(f"{shown} {mine[:40]} {here}, {theirs[:40]} {there}")
        if not found and _differ(self.layout, other.layout):
            found.append("the model's parameters have other names or shapes")
        found += _files_that_differ(self.files, other.files, here, there)
        if _differ(self.samples, other.samples):
            found.append(f"the training data differ: {self.samples[:40]} rows {here}, {other.samples[:40]} {there}")
        elif _compare(self.data, other.data) == "other":
            found.append(f"the training data differ: {self.samples[:40]} rows both times, with other values or labels")
        if not found and _compare(self.frozen, other.frozen) == "other":
            found.append("the model's frozen parameters or buffers have other values")
        return found

    def roundings(self, other: Self) -> list[str]:
        """Return what differs a little, as it may between processors; the run goes on."""
        compared = {
            "the training data": _compare(self.data, other.data) == "near",
            "the frozen parameters": _compare(self.frozen, other.frozen) == "near",
            "the initial model": _compare(self.start, other.start) != "same",
        }
        return [name for name, differs in compared.items() if differs]


def identify(problem: Problem, data: Reading = "whole") -> TaskIdentity:
    """Return the identity of a loaded task.

    A problem may have ``training_data()``, ``frozen()`` (arrays), ``layout()`` (text) and ``fingerprint()`` (any text
    that stands for the data); of one that has neither data nor fingerprint the data stay unknown.

    Args:
        problem: as it was loaded.
        data: how the data are read.
    """

    def optional(method: str, default: Any) -> Any:
        return getattr(problem, method)() if hasattr(problem, method) else default

    arrays, frozen, layout = list(optional("training_data", ())), optional("frozen", {}), str(optional("layout", ""))
    fingerprint = str(optional("fingerprint", "")) if data != "none" else ""
    read = arrays if data != "none" else []
    return TaskIdentity(
        dim=str(int(problem.dim)),
        dtype=str(np.dtype(problem.dtype)),
        samples=str(len(arrays[-1]) if arrays else int(problem.samples) or ""),
        layout=_hash(layout.encode()) if layout else "",
        shapes=layout if len(layout) <= _MOST else "",
        files=_files_of(problem),
        data=_hash(fingerprint.encode()) if fingerprint else digest(read, sums=data == "whole") if read else "",
        frozen=digest(list(frozen.values()), together=True) if frozen else "",
        start=digest([np.asarray(problem.initial())], sums=False),
    )


def identify_party(problem: Problem, *, at_server: bool, samples: bool) -> TaskIdentity:
    """Return the identity of a loaded task whose parties each have their own data.

    Of the values of the data it holds at most L_i, to three digits: a digest could be confirmed by guessing a table.

    Args:
        problem: as it was loaded.
        at_server: the server has no training data.
        samples: the party declares how many samples it has.
    """
    found = identify(problem, "none")
    if at_server:
        return replace(found, samples="")
    known = problem.smoothness
    return replace(found, samples=found.samples if samples else "", smoothness="" if known is None else f"{known:.3g}")


def remember_files(problem: Any, files: Mapping[str, str]) -> None:
    """Note by which files a custom task was made.

    Args:
        problem: the loaded task.
        files: a digest by the path in the task's folder.
    """
    with suppress(TypeError):  # a class with slots, or that cannot be hashed: its files stay unknown
        _files[problem] = files


def digest(arrays: Sequence[NDArray[Any]], *, together: bool = False, sums: bool = True) -> str:
    """Return a short text that tells arrays apart, and rounding from other differences.

    It is ``EXACT BITS NORM,SUM,SUM;...``: a digest of dtypes, shapes and everything but floating-point numbers; one of
    these numbers' bytes; and of each floating-point array its length and two signed sums.

    Args:
        arrays: of numbers, booleans or bytes.
        together: sum all of them up as one, for many small ones.
        sums: whether to sum them up at all.
    """
    exact, bits = hashlib.sha256(), hashlib.sha256()
    floats = []
    for array in arrays:
        exact.update(f"{array.dtype.str}{array.shape}".encode())
        flat = np.ascontiguousarray(array).reshape(-1)
        if flat.dtype.kind in "fbiu":
            (bits if flat.dtype.kind == "f" else exact).update(flat.view(np.uint8).data)
        else:
            exact.update(repr(np.ascontiguousarray(array).tolist()).encode())
        if flat.dtype.kind == "f":
            floats.append(flat)
    if together and floats:
        floats = [np.concatenate([part.astype(np.float64) for part in floats])]
    summed = [",".join(f"{value:.12g}" for value in _sums(array)) for array in floats if sums]
    return f"{exact.hexdigest()[:16]} {bits.hexdigest()[:16]} {';'.join(summed)}".rstrip()


def _sums(array: NDArray[Any]) -> tuple[float, float, float]:
    """Return the length of a vector, and its products with two vectors of signs."""
    signs, squares, sums = _signs(), 0.0, np.zeros(2)
    with np.errstate(all="ignore"):  # NaN and infinity may be in it
        for number, at in enumerate(range(0, len(array), _PERIOD * _ROWS)):
            block = array[at : at + _PERIOD * _ROWS].astype(np.float64)
            squares += float(block @ block)
            rows = -(-len(block) // _PERIOD)
            block = np.pad(block, (0, rows * _PERIOD - len(block)))
            across = np.random.default_rng([number, 2]).choice([-1.0, 1.0], (2, rows))
            sums += ((across @ block.reshape(rows, _PERIOD)) * signs).sum(axis=1)
        return float(np.sqrt(squares)), float(sums[0]), float(sums[1])


@cache
def _signs() -> NDArray[np.float64]:
    return np.random.default_rng(1).choice([-1.0, 1.0], (2, _PERIOD))


def _compare(mine: str, theirs: str) -> str:
    """Say how two digests compare: "same", "near" or "other"; "same" where one is unknown. Never raises."""
    if not _differ(mine, theirs):
        return "same"
    ours, others = mine.split(" "), theirs.split(" ")
    if len(ours) > 1 and ours[:2] == others[:2]:
        return "same"
    left, right = _numbers(ours), _numbers(others)
    if ours[0] != others[0] or left is None or right is None or left.shape != right.shape:
        return "other"
    scale = np.maximum(left[:, :1], right[:, :1])
    with np.errstate(all="ignore"):
        return "near" if bool(np.all(np.abs(left - right) <= _ROUNDING * scale)) else "other"


def _numbers(parts: list[str]) -> NDArray[np.float64] | None:
    """Return the sums of a digest, one row an array; None where it has none."""
    with suppress(ValueError):
        _, _, text = parts
        table = np.array([[float(number) for number in row.split(",")] for row in text.split(";")])
        return table if table.ndim == 2 and table.shape[1] == 3 else None
    return None


def _shapes_that_differ(mine: str, theirs: str, here: str, there: str) -> list[str]:
    """Return the first parameter of two layouts that differs, in words; nothing where a layout is not known."""
    if not _differ(mine, theirs):
        return []
    try:
        ours, others = (
            {str(name): tuple(map(int, shape)) for name, shape in json.loads(text)} for text in (mine, theirs)
        )
    except (ValueError, TypeError, RecursionError):
        return []
    for name in [*ours, *others]:
        left, right = ours.get(name), others.get(name)
        if left != right:
            where = (f"is {left} {here}, {right} {there}", f"exists only {there if left is None else here}")
            return [f"parameter `{name[:60]}` {where[left is None or right is None]}"]
    return []


def _differ(mine: str, theirs: str) -> bool:
    return bool(mine and theirs and mine != theirs)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _files_of(problem: Any) -> str:
    """Return the files of a custom task, as ``NAME:DIGEST`` with spaces between; many in one at the end."""
    files: Mapping[str, str] = {}
    with suppress(TypeError):  # it cannot be hashed
        files = _files.get(problem, {})
    names = sorted(files)
    parts = [f"{_short(name)}:{files[name][:10]}" for name in names[:_FILES]]
    if rest := names[_FILES:]:
        parts.append(f"(others):{_hash(repr([(name, files[name]) for name in rest]).encode())[:10]}")
    return " ".join(parts)


def _short(name: str) -> str:
    """Return a file's name without what separates names here, the end of it where it is long."""
    return "".join(c if c.isprintable() and c not in " :" else "_" for c in name)[-24:]


def _files_that_differ(mine: str, theirs: str, here: str, there: str) -> Iterable[str]:
    if not _differ(mine, theirs):
        return []
    ours, others = (dict(part.rpartition(":")[::2] for part in text.split()) for text in (mine, theirs))
    changed = [name for name in ours if name in others and others[name] != ours[name]]
    found = [f"task file {name[:40]} differs" for name in changed[:3]]
    for where, some, rest in ((here, ours, others), (there, others, ours)) if not found else ():
        found += [f"task file {name[:40]} is used only {where}" for name in some if name not in rest][:2]
    return found or ["the task's files differ"]
