"""Samples of a map-style Dataset, fetched by index when a batch needs them, in this process or in others.

Before a sample is fetched, the global generators of torch, NumPy and Python are seeded from the seed of the call and
the index of the sample, so that random transforms are a function of (run, worker, round, sample): they do not depend
on the number of processes that fetch, nor on what was fetched before. Importing it imports torch.
"""

import logging
import multiprocessing
import os
import pickle
import random
import signal
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foundation.text import first_line
from tasks.contract import TaskError
from tasks.partition import Indices
from tasks.samples import ByIndex, Samples, targets_of, tensors_of, with_targets
from tasks.trial import generators_restored

log = logging.getLogger("breakwater.tasks")

SHOWN = 32
"""Samples that digests and comparisons look at."""

_MISSES = 3


@dataclass(frozen=True)
class _Piece:
    """Samples that one process fetches.

    Args:
        rows: their indices.
        seed: of the call.
        whole: they are a batch, which is put together where they are fetched.
    """

    rows: list[int]
    seed: int
    whole: bool


@dataclass(frozen=True)
class _Failed:
    """What went wrong with samples, in one line: exceptions of other processes would come without their place."""

    reason: str


class _Pieces(Dataset[Any]):
    """What the processes of a DataLoader see: its indices are pieces.

    Args:
        dataset: the user's.
        collate: puts a list of samples together.
        read: checks and converts a batch; raises ``TaskError``.
        method: that gave the Dataset, for messages.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], read: Callable[[Any], Samples], method: str
    ) -> None:
        self.dataset, self._collate, self._read, self._method = dataset, collate, read, method

    def __getitem__(self, piece: _Piece) -> Any:
        """Return a batch; of a piece that is not whole its samples, pickled: each tensor would cost a descriptor."""
        try:
            samples = [self._fetched(row, piece.seed) for row in piece.rows]
            return self.joined(samples, piece.rows, piece.seed) if piece.whole else pickle.dumps(samples)
        except TaskError as error:
            return _Failed(str(error))
        except Exception as error:  # samples that cannot be pickled
            return _Failed(f"{self._method}() gave samples that cannot be sent between processes: {_place(error)}")

    def _fetched(self, row: int, seed: int) -> Any:
        _reseed(seed, row)
        try:
            return self.dataset[row]
        except Exception as error:  # the user's code
            raise TaskError(f"{_place(error)} (sample {row} of {self._method}())") from error

    def joined(self, samples: list[Any], rows: Sequence[int], seed: int) -> Samples:
        """Return a batch of samples.

        Raises:
            TaskError: they make none; with the first sample that makes none alone.
        """
        try:
            return self._batch(samples, rows, seed)
        except TaskError:
            for row, sample in zip(rows, samples, strict=True) if len(rows) > 1 else ():
                self._batch([sample], [row], seed)
            raise

    def _batch(self, samples: list[Any], rows: Sequence[int], seed: int) -> Samples:
        which = f"sample {rows[0]}" if len(rows) == 1 else f"samples {rows[0]}, {rows[1]}, ..."
        _reseed(seed, rows[0], 1)
        try:
            batch = self._collate(samples)
        except TaskError as error:
            raise TaskError(f"{error} ({which})") from None
        except Exception as error:  # the user's code
            raise TaskError(f"{_place(error)} (collate of {which} of {self._method}())") from error
        try:
            found = self._read(batch)
        except TaskError as error:
            raise TaskError(f"{error} ({which})") from None
        if any(len(part) != len(samples) for part in tensors_of(found)):
            shapes = [tuple(part.shape) for part in tensors_of(found)]
            raise TaskError(
                f"collate gave tensors of shapes {shapes} for {len(samples)} samples of {self._method}(); must have "
                f"one row a sample"
            )
        return found


class _Plan:
    """The pieces of the next pass; a DataLoader with lasting processes reads it anew for each."""

    pieces: Sequence[_Piece] = ()

    def __iter__(self) -> Iterator[_Piece]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


class Source:
    """A Dataset with what fetches from it; shared by all samples that are taken from it.

    Args:
        dataset: the user's, map-style.
        method: that gave it, for messages.
        collate: puts a list of samples together.
        read: checks and converts a batch.
        workers: how many processes of PyTorch's DataLoader fetch; 0 for this one.
        prefetch: batches that each of them prepares ahead.

    Raises:
        TaskError: it has no length or index, no samples, or other numbers of targets than of samples.
    """

    def __init__(
        self,
        dataset: Any,
        method: str,
        collate: Callable[[list[Any]], Any],
        read: Callable[[Any], Samples],
        *,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        if not hasattr(dataset, "__len__") or type(dataset).__getitem__ is Dataset.__getitem__:
            raise TaskError(f"{method}() gave a Dataset without length or index; must be a map-style Dataset")
        if not (size := len(dataset)):
            raise TaskError(f"{method}() gave an empty Dataset; it must have at least one sample")
        self.method, self.size = method, size
        self._pieces = _Pieces(dataset, collate, read, method)
        self._workers, self._prefetch = workers, prefetch
        self._plan = _Plan()
        self._loader: DataLoader[Any] | None = None
        self._prepared: tuple[list[_Piece], Iterator[Any]] | None = None
        """What is fetched ahead, and where it arrives."""
        self._misses = 0
        self._pid = 0
        """Of the process that the loader was made in: one that is forked from it must not use it."""

    def batches(self, parts: Sequence[Indices], seed: int) -> Iterator[Samples]:
        """Yield a batch of each part, while the next ones are prepared.

        Args:
            parts: indices of samples.
            seed: of all that is drawn at random; the same samples and seed give the same batches.

        Raises:
            TaskError: a sample cannot be fetched; one line with its index, and the place in the user's code.
        """
        if self._alone:
            for rows in parts:
                with generators_restored():
                    batch = self.fetched(rows.tolist(), seed)
                yield batch
            return
        cut = self._cut(parts, seed)
        pieces_of_all = [piece for pieces in cut for piece in pieces]
        results = self._taken(pieces_of_all)
        for number, (rows, pieces) in enumerate(zip(parts, cut, strict=True)):
            try:
                results = results or self._results(pieces_of_all)
                found = [next(results) for _ in pieces]
            except RuntimeError as error:  # one of them has ended
                log.warning("%s(): samples are now fetched in this process: %s", self.method, first_line(error))
                self._workers, self._loader = 0, None
                yield from self.batches(parts[number:], seed)
                return
            found = [_checked(piece) for piece in found]
            if pieces[0].whole:
                yield found[0]
                continue
            samples = [sample for part in found for sample in pickle.loads(part)]  # noqa: S301  # from our own processes
            with generators_restored():
                batch = self._pieces.joined(samples, rows.tolist(), seed)
            yield batch

    def prepare(self, parts: Sequence[Indices], seed: int) -> None:
        """Begin to fetch what ``batches`` will probably be asked for next, if other processes do.

        Where it was asked for something else ``_MISSES`` times in a row, because many workers share this or a worker is
        asked in few rounds, nothing is fetched ahead any more.
        """
        if self._alone or not parts or self._misses == _MISSES:
            return
        pieces = [piece for each in self._cut(parts, seed) for piece in each]
        try:
            self._prepared = pieces, self._results(pieces)
        except RuntimeError:  # one of the processes has ended, which ``batches`` will find
            self._prepared = None

    def _taken(self, pieces: list[_Piece]) -> Iterator[Any] | None:
        """Return where these arrive, if they are what is fetched ahead; nothing is afterwards."""
        prepared, self._prepared = self._prepared, None
        if prepared is None or not self._mine:
            return None
        hit = prepared[0] == pieces
        self._misses = 0 if hit else self._misses + 1
        return prepared[1] if hit else None

    @property
    def _alone(self) -> bool:
        """Whether this process fetches: one of multiprocessing that is a daemon may not start others."""
        return not self._workers or multiprocessing.current_process().daemon

    @property
    def _mine(self) -> bool:
        """Whether the loader's processes are this one's."""
        return self._loader is not None and self._pid == os.getpid()

    def _cut(self, parts: Sequence[Indices], seed: int) -> list[list[_Piece]]:
        """Return the pieces of each part: a few batches are fetched by all processes together."""
        each = max(1, self._workers // len(parts))
        return [[_Piece(piece.tolist(), seed, each == 1) for piece in _cut(rows, each)] for rows in parts]

    def fetched(self, rows: list[int], seed: int) -> Samples:
        """Return a batch that is fetched in this process; to be called with the global generators set aside.

        Raises:
            TaskError: see ``batches``.
        """
        return _checked(self._pieces[_Piece(rows, seed, whole=True)])

    def _results(self, pieces: list[_Piece]) -> Iterator[Any]:
        """Start a pass: return what the processes give for each piece."""
        self._plan.pieces = pieces
        if self._loader is None or not self._mine:
            self._pid = os.getpid()
            self._loader = DataLoader(
                self._pieces,
                batch_size=None,
                sampler=self._plan,
                collate_fn=_unchanged,
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                persistent_workers=True,
                multiprocessing_context="fork",  # only a fork finds the files beside the user's
                worker_init_fn=_start,
                generator=torch.Generator(),  # else it would draw from torch's own
            )
        return iter(self._loader)

    def draws(self, rows: Indices) -> bool:
        """Return whether fetching some samples draws at random from the global generators."""
        with generators_restored():
            for row in rows.tolist():
                _reseed(0, row)
                before = _states()
                self._pieces.dataset[row]
                if _states() != before:
                    return True
        return False

    @cached_property
    def targets(self) -> Tensor | None:
        """The Dataset's attribute ``targets`` as a tensor, one row a sample; None where it has none.

        Raises:
            TaskError: they are no numbers, or not one row a sample.
        """
        given = getattr(self._pieces.dataset, "targets", None)
        if given is None:
            return None
        try:
            found = given.detach().cpu() if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        except (TypeError, ValueError, RuntimeError) as error:
            raise TaskError(
                f"{self.method}() gave a Dataset whose targets are no numbers: {first_line(error)}"
            ) from None
        if found.ndim == 0 or len(found) != self.size:
            shape = tuple(found.shape)
            raise TaskError(f"{self.method}() gave a Dataset with {self.size} samples and targets of shape {shape}")
        return found if found.is_floating_point() else found.to(torch.int64)


class Fetched(ByIndex):
    """Some samples of a Dataset.

    Args:
        source: where they come from.
        rows: which ones; None for all.
        flipped: targets of all samples of the source, in place of those that it gives; None for these.
    """

    def __init__(self, source: Source, rows: Indices | None = None, flipped: Tensor | None = None) -> None:
        self.source, self._flipped = source, flipped
        self._rows = np.arange(source.size) if rows is None else rows

    @property
    def rows(self) -> Indices:
        """Which samples of the Dataset these are."""
        return self._rows

    @property
    def targets(self) -> Tensor | None:
        """The targets of these samples, where the Dataset has the attribute ``targets``; else None."""
        known = self.source.targets if self._flipped is None else self._flipped
        return None if known is None else known[torch.from_numpy(self.rows)]

    def taken(self, rows: Indices) -> "Fetched":
        """Return some of these samples."""
        return Fetched(self.source, self.rows[rows], self._flipped)

    def with_targets(self, targets: Tensor) -> "Fetched":
        """Return the same samples with other targets, one row a sample."""
        whole = targets.new_zeros((self.source.size, *targets.shape[1:]))
        whole[torch.from_numpy(self.rows)] = targets
        return Fetched(self.source, self.rows, whole)

    def batches(self, parts: Sequence[Indices], seed: int) -> Iterator[Samples]:
        """Yield a batch of each part, see ``Source.batches``.

        Args:
            parts: positions among these samples.
            seed: of all that is drawn at random.
        """
        chosen = [self.rows[part] for part in parts]
        for rows, batch in zip(chosen, self.source.batches(chosen, seed), strict=False):
            yield batch if self._flipped is None else self._changed(batch, self._flipped[torch.from_numpy(rows)])

    def prepare(self, parts: Sequence[Indices], seed: int) -> None:
        """Begin to fetch what ``batches`` will be asked for next, if other processes do."""
        self.source.prepare([self.rows[part] for part in parts], seed)

    def _changed(self, batch: Samples, targets: Tensor) -> Samples:
        given = targets_of(batch)
        if given is None or given.shape != targets.shape:
            shape = "no targets" if given is None else f"targets of shape {tuple(given.shape)}"
            what = f"{self.source.method}() gave batches with {shape}, and its Dataset has some of"
            raise TaskError(f"{what} {tuple(targets.shape)}; label flipping needs the same")
        return with_targets(batch, targets.to(given.dtype))

    @cached_property
    def shown(self) -> Samples:
        """A batch of at most ``SHOWN`` of these samples, fetched in this process under a fixed seed."""
        rows = self.shown_rows.tolist()
        with generators_restored():
            return self.source.fetched(rows, 0)

    @property
    def shown_rows(self) -> Indices:
        """Which samples of the Dataset are shown."""
        places = np.linspace(0, len(self.rows) - 1, min(len(self.rows), SHOWN)).astype(np.int64)
        return self.rows[places]

    @cached_property
    def random(self) -> bool:
        """Whether fetching one of the shown samples draws at random."""
        return self.source.draws(self.shown_rows)


def _cut(rows: Indices, pieces: int) -> list[Indices]:
    return np.array_split(rows, min(pieces, len(rows)))


def _checked(found: Any) -> Any:
    if isinstance(found, _Failed):
        raise TaskError(found.reason)
    return found


def _unchanged(found: Any) -> Any:
    return found


def _start(_: int) -> None:
    """Let the parent decide when its processes end: it sends SIGTERM, which is then no failure; or it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _reseed(*words: int) -> None:
    """Seed the global generators, which users' transforms draw from."""
    state = np.random.SeedSequence(words).generate_state(4).tolist()
    torch.default_generator.manual_seed(state[0] << 31 | state[1])
    np.random.seed(state[2])
    random.seed(state[3])


def _states() -> tuple[object, ...]:
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numpy[1].tobytes(), numpy[2:], random.getstate()


def _place(error: BaseException) -> str:
    """Say in one line what the user's code raised, and where: the innermost line outside of installed packages."""
    library = sysconfig.get_paths()["stdlib"]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not ("site-packages" in frame.filename or frame.filename.startswith(library))]
    message = first_line(error)
    what = f"{type(error).__name__}{message and f': {message}'}"
    if not (own or frames):
        return what
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}: {what}"
