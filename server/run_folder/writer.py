"""Writes a run folder.

A full disk does not end a run: what cannot be written is kept in memory and tried again after every round.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Self

from experiment.config import Config
from experiment.model_file import ModelForm, write_model
from foundation.errors import ConfigError, Unwritten
from foundation.files import lock, replace_text
from foundation.signals import waiting
from server.run_folder import BEST, CONFIG, METRICS, MODEL, SUMMARY
from server.run_folder.checkpoints import Checkpoint, Checkpoints, clear_drafts
from server.run_folder.manifest import unwritable, versions
from server.run_folder.record import claims_to, from_line, kind_of, measures_to, plain, to_line
from strategies.claims import Claims, MeasuredBy, Measures, headline
from strategies.claims import measured_by as whose_measures
from strategies.method import ATTACK_FAILED, Evaluation, Vector
from strategies.safeguard import Course
from strategies.strategy import RoundRecord

log = logging.getLogger("breakwater.server")

_RESERVE, _RESERVE_BYTES = ".reserve", 64 << 10
"""A file that keeps room for the summary while the run goes, so that a full disk cannot lose it; and its size."""
_MAX_UNWRITTEN = 64 << 20
"""At most this many bytes of metrics wait in memory for room on the disk; with more the run ends."""


class Claim:
    """The lock on a run folder: while it is held, no other server runs there. Use it as a context manager.

    A server claims its folder before it listens or writes anything: one that is started by mistake on a run that is
    going on must not touch what the other one needs. The lock goes to the ``RunFolder`` that is opened with it.

    Args:
        path: the run folder, absolute; created with its parents.
        goes_on: the run was begun there; else there must be none.

    Raises:
        ConfigError: see RunFolder.
    """

    def __init__(self, path: Path, *, goes_on: bool) -> None:
        self._metrics, self._goes_on = path / METRICS, goes_on
        try:
            path.mkdir(parents=True, exist_ok=True)
            if self._metrics.exists() and not goes_on:
                raise ConfigError(f"{path}: holds a run already; give --out another folder or remove it")
            self._file = os.open(self._metrics, os.O_RDWR | os.O_CREAT, 0o644)
            locked = lock(self._file)
        except OSError as error:
            raise unwritable(path, error, goes_on=goes_on) from None
        if not locked:
            os.close(self._file)
            raise ConfigError(f"{path}: another server is running this run")

    def take(self) -> int:
        """Return the metrics file, open and locked; the caller closes it."""
        file, self._file = self._file, -1
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:  # no RunFolder was opened
            if not self._goes_on:
                self._metrics.unlink(missing_ok=True)
            os.close(self._file)


class RunFolder:
    """Writes one run.

    Args:
        path: created with its parents; must not hold a run already, unless that is resumed.
        checkpoint: where the run is resumed: what was written about later rounds is removed, as they
            will be run again. None for a new one.
        claim: the lock on the folder, where this process has it already.

    ``form`` says how models are written, one vector x at first; whoever knows the task sets it.

    Raises:
        ConfigError: the folder cannot be used, or another server uses it; the message says how to fix that.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint | None = None, claim: Claim | None = None) -> None:
        self.path = path
        self.form = ModelForm()
        self._rounds = self._bytes_up = self._bytes_down = 0
        self._incomplete = self._attack_failed = 0
        self._attack_failure = ""  # the first reason
        self._rejected: Counter[str] = Counter()
        self._rejected_of: dict[str, Counter[str]] = {}
        self._names: dict[int, str] = {}
        self._evaluation_bytes = [0, 0]  # up, down
        self._start: Measures = (None, None)
        self._last: Measures | None = None
        self._wall_s = 0.0 if checkpoint is None else checkpoint.wall_s  # before this server was started
        self._began: float | None = None
        self._unwritten = bytearray()
        self._failing: set[str] = set()  # what could not be written at the last attempt
        self._metrics = (claim or Claim(path, goes_on=checkpoint is not None)).take()
        self._size = 0
        with ExitStack() as after_error:
            after_error.callback(self.close)
            if checkpoint is not None:
                self._go_back(checkpoint.round)
            after_error.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open, so that another server may go on; a second call does nothing."""
        if self._metrics >= 0:
            os.close(self._metrics)
            self._metrics = -1

    def _go_back(self, round_: int) -> None:
        """Take the run back to the end of a round.

        Raises:
            ConfigError: its rounds until then are not all there.
        """
        metrics = self.path / METRICS
        try:
            clear_drafts(self.path)
            (self.path / SUMMARY).unlink(missing_ok=True)
            with open(self._metrics, "rb", closefd=False) as lines:
                for number, line in enumerate(islice(lines, round_), 1):
                    record = from_line(line, self._names)
                    if record.round != number:
                        raise ValueError(f"round {record.round} where {number} is due")
                    self._count(record)
                    self._size += len(line)
            if self._rounds < round_:
                raise ConfigError(f"{metrics}: ends with round {self._rounds}, but the checkpoint is of round {round_}")
            os.ftruncate(self._metrics, self._size)
        except ValueError as error:
            raise ConfigError(f"{metrics}: line {number}: {error}; it cannot be continued") from None
        except OSError as error:
            raise unwritable(self.path, error, goes_on=True) from None

    @property
    def rounds(self) -> int:
        """How many rounds have been added."""
        return self._rounds

    @property
    def wall_s(self) -> float:
        """Seconds from the first round to now, restarts of the server included."""
        return self._wall_s + (0.0 if self._began is None else time.monotonic() - self._began)

    def begin(
        self,
        config: Config,
        start: Evaluation | None,
        claims: Claims | None = None,
        statistics_bytes: tuple[int, int] = (0, 0),
    ) -> None:
        """Write the resolved config and keep the measures of x^0; the first round follows.

        Args:
            config: resolved.
            start: x^0 as the server measured it; None where it did not.
            claims: what clients claim about x^0, where they were asked.
            statistics_bytes: of asking clients for running statistics of x^0, up and down.
        """
        self._began = time.monotonic()
        with self._or_later(CONFIG):
            replace_text(self.path / CONFIG, config.to_toml())
        with suppress(OSError):  # then the disk is full already
            (self.path / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
        self._start = start, claims
        self._count_bytes(claims, statistics_bytes)

    def add(self, record: RoundRecord) -> None:
        """Append one round to the metrics.

        Raises:
            Unwritten: the disk has been full for so long that memory runs out too.
        """
        self._unwritten += (to_line(record, self._names) + "\n").encode()
        self._count(record)
        with self._or_later(METRICS):
            self._flush()
        if len(self._unwritten) > _MAX_UNWRITTEN:
            wait = f"{len(self._unwritten) >> 20} MiB wait for room on the disk, at most {_MAX_UNWRITTEN >> 20} do"
            fix = f"make room, then `breakwater server --resume {self.path}`"
            raise Unwritten(f"{self.path / METRICS}: {wait}; {fix}")

    def save(self, model: Vector) -> None:
        """Write the model; its file is whole at any time, and after a crash of this process."""
        with self._or_later(MODEL):
            self._save(model)

    def save_best(self, course: Course) -> None:
        """Write the best model so far, if one was measured; as ``save``."""
        with self._or_later(BEST):
            self._save_best(course)

    def _save_best(self, course: Course) -> None:
        if course.best is not None and course.best_x is not None:
            stats = None if course.best_stats is None else course.best_stats.values
            write_model(self.path / BEST, course.best_x, self.form, stats)

    def keep(self, checkpoints: Checkpoints, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint, and before it the metrics that it builds on; return whether that was possible."""
        with self._or_later("a checkpoint"):
            self._flush()
            os.fsync(self._metrics)
            checkpoints.save(checkpoint)
            return True
        return False

    def finish(
        self,
        *,
        status: str,
        seed: int,
        joined_s: float,
        model: Vector | None,
        evaluation: Evaluation | None = None,
        measured_by: MeasuredBy = "server",
        stall: Mapping[str, Any] | None = None,
        starts: int = 1,
        patience_s: float = 0.0,
        task: Mapping[str, Any] | None = None,
        code: Mapping[str, Any] | None = None,
        course: Course | None = None,
    ) -> dict[str, Any]:
        """Write summary and model, and return the summary. Where the disk stays full the summary is written alone.

        Args:
            status: "finished", "diverged", "stalled" or "interrupted".
            seed: the run's seed.
            joined_s: seconds before the first round, in which clients joined.
            model: the last model; None if there is none.
            evaluation: its measure, where it is not the model that was measured last.
            measured_by: whose measure that is.
            stall: of a run that stalled, see ``StalledError.to_dict``.
            starts: how often a server was started for this run.
            patience_s: how long to wait for room on a full disk.
            task: the problem constants, see ``experiment.explain.ProblemConstants``.
            code: which code server and clients run, where they do not all run the same.
            course: what its evaluations have shown, where they may end it or take it back.

        Raises:
            Unwritten: the disk is full, or the folder is gone.
        """
        last, claims = self._start if self._last is None else self._last
        whose = whose_measures(last, claims)
        if evaluation is not None or stall is not None:  # the model is an earlier one than was measured last
            last, claims, whose = evaluation, None, measured_by if evaluation is not None else "none"
        found, start = headline(last, claims), headline(*self._start)
        summary: dict[str, Any] = {
            "status": status,
            "rounds": self._rounds,
            "loss": None,
            "accuracy": None,
            **(measures_to(found) if found else {}),
            "measured_by": whose,
            "start": measures_to(start) if start else None,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "wall_s": round(self.wall_s, 3),
            "joined_s": round(joined_s, 3),
            "rejected": dict(self._rejected),
            "rejected_by_client": {name: dict(counts) for name, counts in sorted(self._rejected_of.items())},
            "seed": seed,
            "starts": starts,
            "lives": starts,  # its former name, for one release
            "versions": versions(),
        }
        failure = {"replies": self._attack_failed, "reason": self._attack_failure} if self._attack_failed else None
        optional: dict[str, Any] = {
            "stall": stall,
            "incomplete_rounds": self._incomplete or None,
            "attack_failure": failure,
        }
        optional |= {"task": task, "code": code, "claims": None if claims is None else claims_to(claims)}
        if course is not None:
            through = f"all {self._rounds} rounds were run" if status == "finished" else None
            optional |= {"ended": through} | course.to_dict()
        if any(self._evaluation_bytes):
            optional["evaluation_bytes"] = dict(zip(("up", "down"), self._evaluation_bytes, strict=True))
        summary |= {key: value for key, value in optional.items() if value is not None}

        def write() -> None:
            self._flush()
            if model is not None:
                self._save(model)
            if course is not None:
                self._save_best(course)
            self._write_summary(summary)

        try:
            self._insist(write, patience_s)
        except Unwritten as error:
            self._leave_summary(summary, str(error))
            raise
        (self.path / _RESERVE).unlink(missing_ok=True)
        self.close()
        return summary

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        replace_text(self.path / SUMMARY, json.dumps(summary, indent=2, default=plain) + "\n")

    def _leave_summary(self, summary: Mapping[str, Any], reason: str) -> None:
        """Write the summary alone where the disk has stayed full, into the room that was kept for it."""
        lost = {"rounds": self._unwritten.count(b"\n"), "reason": reason}
        with suppress(OSError):
            (self.path / _RESERVE).unlink(missing_ok=True)
            self._write_summary({**summary, "unwritten": lost})

    def _count(self, record: RoundRecord) -> None:
        """Add a round to the sums of the summary."""
        self._rounds = record.round
        self._bytes_up += record.bytes_up
        self._bytes_down += record.bytes_down
        self._incomplete += record.incomplete
        for name, reason in record.rejected:
            kind = kind_of(reason)
            if kind == ATTACK_FAILED:
                self._attack_failed += 1
                self._attack_failure = self._attack_failure or reason.partition(": ")[2]
            self._rejected[kind] += 1
            self._rejected_of.setdefault(name, Counter())[kind] += 1
        self._count_bytes(record.claims, record.statistics_bytes)
        if record.evaluation is not None or record.claims is not None or record.diverged:
            self._last = record.evaluation, record.claims

    def _count_bytes(self, claims: Claims | None, statistics_bytes: tuple[int, int]) -> None:
        """Add what an evaluation took at clients."""
        claimed = (0, 0) if claims is None else (claims.bytes_up, claims.bytes_down)
        for place, sizes in enumerate(zip(claimed, statistics_bytes, strict=True)):
            self._evaluation_bytes[place] += sum(sizes)

    def _flush(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: not all of them could be written; what is in the file is whole lines.
        """
        written = 0
        try:
            while written < len(self._unwritten):
                written += os.pwrite(self._metrics, self._unwritten[written:], self._size + written)
        finally:
            whole = self._unwritten.rfind(b"\n", 0, written) + 1
            if whole < written:
                os.ftruncate(self._metrics, self._size + whole)
            self._size += whole
            del self._unwritten[:whole]

    def _save(self, model: Vector) -> None:
        write_model(self.path / MODEL, model, self.form)

    @contextmanager
    def _or_later(self, what: str) -> Iterator[None]:
        """Within: log a failed write once, and its recovery once; the run goes on."""
        try:
            yield
        except OSError as error:
            if what not in self._failing:
                log.error("%s: %s cannot be written: %s; trying again", self.path, what, error.strerror or error)
            self._failing.add(what)
        else:
            if what in self._failing:
                self._failing.discard(what)
                log.warning("%s: %s can be written again", self.path, what)

    def _insist(self, write: Callable[[], None], patience_s: float) -> None:
        """Write what must not be lost, again and again for a while."""
        end = time.monotonic() + patience_s
        while True:
            try:
                write()
            except OSError as error:
                problem = f"{self.path}: the results cannot be written: {error.strerror or error}"
                if time.monotonic() >= end or waiting():
                    raise Unwritten(f"{problem}; fix that, then `breakwater server --resume {self.path}`") from None
                if "results" not in self._failing:
                    self._failing.add("results")
                    log.error("%s; trying again for %g s", problem, patience_s)
                time.sleep(min(1.0, patience_s))
            else:
                return
