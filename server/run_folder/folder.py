"""The run folder: everything that a run leaves behind.

``config.toml`` as resolved, ``metrics.jsonl`` with one object a round, ``summary.json``, ``model.safetensors`` (from
the first evaluation on), ``curve.png``, ``checkpoints/`` and ``run.json`` (what ``--resume`` needs beside them). JSON
has no NaN or infinity: such numbers are written as null, and a run that diverged says so.

A full disk does not end a run: what cannot be written is kept in memory and tried again after every round.
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from experiment.config import Config
from foundation.errors import ConfigError, Unwritten
from foundation.signals import waiting
from foundation.text import TextError, read_text
from server.monitor.live import finite
from server.run_folder.checkpoints import Checkpoint, Checkpoints, clear_drafts
from strategies.evidence import Evidence
from strategies.method import ATTACK_FAILED, Evaluation, Vector
from strategies.strategy import RoundRecord

log = logging.getLogger("breakwater.server")

METRICS, SUMMARY, MODEL, CURVE, CONFIG, RUN = (
    "metrics.jsonl",
    "summary.json",
    "model.safetensors",
    "curve.png",
    "config.toml",
    "run.json",
)
FROZEN = "frozen."
"""What names of arrays in the model's file begin with that belong to the model and are not trained."""
_RESERVE, _RESERVE_BYTES = ".reserve", 64 << 10
"""A file that keeps room for the summary while the run goes, so that a full disk cannot lose it; and its size."""
_MAX_UNWRITTEN = 64 << 20
"""So many bytes of metrics wait in memory for room on the disk; with more the run ends."""


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """What a server that goes on with a run must know, beside its checkpoints; ``run.json``.

    Args:
        run_id: of the run: clients know by it that they need not prepare again.
        listen: HOST:PORT that was bound, where the clients look for the server.
        data: folder of data files.
        config_dir: folder of the config file.
        tls: folder of the server's certificate.
        lives: how often a server has been started for this run.
        lists: folder of the lists of who may take part, where it is not ``tls``.
    """

    run_id: int
    listen: str
    data: str | None
    config_dir: str | None
    tls: str | None
    lives: int = 1
    lists: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the card of a run folder.

        Raises:
            ConfigError: there is none, or one that cannot be read.
        """
        path = folder / RUN
        try:
            return cls(**json.loads(read_text(path)))
        except FileNotFoundError:
            raise ConfigError(f"--resume {folder}: no run of `breakwater server` is there ({RUN} is missing)") from None
        except TextError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: is damaged: {error}") from None

    def next_life(self) -> Self:
        """Return the card of the next server."""
        return replace(self, lives=self.lives + 1)

    def write(self, folder: Path, config: str) -> None:
        """Write the card and the resolved config.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / CONFIG, config)
            _replace(folder / RUN, json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise unwritable(folder, error, goes_on=self.lives > 1) from None


def unwritable(folder: Path, error: OSError, *, goes_on: bool = False) -> ConfigError:
    """Return what a user is told of a run folder that cannot be used, for a new run or for one that goes on there."""
    mend = f"mend that, then `breakwater server --resume {folder}`" if goes_on else "give --out another folder"
    return ConfigError(f"{folder}: cannot be written: {error.strerror or error}; {mend}")


_claimed: dict[Path, int] = {}
"""The locked metrics file of each folder that this process has claimed and not opened as a RunFolder yet."""


@contextmanager
def claimed(path: Path, *, goes_on: bool) -> Iterator[None]:
    """Within: no other server runs in this folder. The first RunFolder that is opened there within takes over the lock.

    A server claims its folder before it listens or writes anything: one that is started by mistake on a run that is
    going on must not touch what the other one needs.

    Args:
        path: the run folder, absolute; created with its parents.
        goes_on: the run was begun there; else there must be none.

    Raises:
        ConfigError: see RunFolder.
    """
    _claimed[path] = _lock(path, goes_on=goes_on)
    try:
        yield
    finally:
        file = _claimed.pop(path, None)
        if file is not None:  # nothing has come of it
            if not goes_on:
                (path / METRICS).unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path, *, goes_on: bool) -> int:
    """Return the metrics file of a run folder, open and locked by this process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / METRICS).exists() and not goes_on:
            raise ConfigError(f"{path}: holds a run already; give --out another folder or remove it")
        file = os.open(path / METRICS, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ConfigError(f"{path}: another server is running this run") from None
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise unwritable(path, error, goes_on=goes_on) from None
    return file


class RunFolder:
    """Writes one run.

    Args:
        path: created with its parents; must not hold a run already, unless that goes on.
        checkpoint: where a run goes on that was begun here: what was written about later rounds is removed, as they
            will be run again. None for a new one.

    Raises:
        ConfigError: the folder cannot be used, or another server uses it; the message names it and the mend.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint | None = None) -> None:
        self.path = path
        self._rounds = 0
        self._bytes_up = 0
        self._bytes_down = 0
        self._incomplete = self._attack_failed = 0
        self._attack_failure = ""  # the first reason
        self._rejected: Counter[str] = Counter()
        self._rejected_of: dict[str, Counter[str]] = {}
        self._names: dict[int, str] = {}
        self._start: Evaluation | None = None
        self._frozen: dict[str, Any] = {}
        self._layout = ""
        self._last: dict[str, float | None] | None = None
        self._wall_s = 0.0 if checkpoint is None else checkpoint.wall_s  # in the lives before this one
        self._began: float | None = None
        self._unwritten = bytearray()
        self._failing: set[str] = set()  # what could not be written at the last attempt
        goes_on = checkpoint is not None
        claimed = _claimed.pop(path, None)
        self._metrics = _lock(path, goes_on=goes_on) if claimed is None else claimed
        self._size = 0
        try:
            if checkpoint is not None:
                self._go_back(checkpoint.round)
        except OSError as error:
            self.close()
            raise unwritable(path, error, goes_on=goes_on) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Nothing to do yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
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
        clear_drafts(self.path)
        (self.path / SUMMARY).unlink(missing_ok=True)
        with open(self._metrics, "rb", closefd=False) as lines:
            for number, line in enumerate(lines, 1):
                if number > round_:
                    break
                try:
                    told = json.loads(line)
                    if told["round"] != number:
                        raise ValueError(f"round {told['round']} where {number} is due")
                    self._count(told)
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"{self.path / METRICS}: line {number}: {error}; it cannot be continued"
                    ) from None
                self._size += len(line)
        if self._rounds < round_:
            raise ConfigError(
                f"{self.path / METRICS}: ends with round {self._rounds}, but the checkpoint is of round {round_}"
            )
        os.ftruncate(self._metrics, self._size)

    @property
    def rounds(self) -> int:
        """How many rounds have been added."""
        return self._rounds

    @property
    def wall_s(self) -> float:
        """Seconds from the first round to now, in all lives of the server."""
        return self._wall_s + (0.0 if self._began is None else time.monotonic() - self._began)

    def begin(
        self,
        config: Config,
        start: Evaluation,
        frozen: Mapping[str, Any] = {},  # never written to
        layout: str = "",
    ) -> None:
        """Write the resolved config and keep the measure of x^0; the first round follows.

        Args:
            config: resolved.
            start: the measure of x^0.
            frozen: arrays by name that belong to the model beside x; they go into the model's file.
            layout: the names and shapes of what x holds, as JSON, for the file's metadata; "" where there are none.
        """
        self._frozen, self._layout = {f"{FROZEN}{name}": array for name, array in frozen.items()}, layout
        self._began = time.monotonic()
        with self._or_later(CONFIG):
            _replace(self.path / CONFIG, config.to_toml())
        with suppress(OSError):  # then the disk is full already
            (self.path / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
        self._start = start

    def add(self, record: RoundRecord) -> None:
        """Append one round to the metrics.

        Raises:
            Unwritten: the disk has been full for so long that memory runs out too.
        """
        line: dict[str, Any] = {
            "round": record.round,
            "kind": record.kind,
            "cohort": list(record.cohort),
            "accepted": list(record.accepted),
            "rejected": [{"client": name, "reason": reason} for name, reason in record.rejected],
            "clipped": list(record.clipped),
            "lam": finite(record.lam),
            "step_norm": finite(record.step_norm),
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "round_s": round(record.round_s, 6),
        }
        if record.deadline_s is not None:
            line["deadline_s"] = round(record.deadline_s, 3)
        if record.resynced:
            line["resynced"] = list(record.resynced)
        if record.late:
            line["late"] = list(record.late)
        if record.note:
            line["note"] = record.note
        if record.incomplete:
            line["incomplete"] = True
        if record.evidence is not None:
            line |= _evidence(record.evidence)
        named = zip(record.cohort, record.names, strict=False)
        if new := {str(worker): name for worker, name in named if self._names.get(worker) != name}:
            line["names"] = new
        if record.evaluation is not None:
            line |= _measures(record.evaluation)
        self._count(line)
        self._unwritten += (json.dumps(line, default=_plain) + "\n").encode()
        with self._or_later(METRICS):
            self._flush()
        if len(self._unwritten) > _MAX_UNWRITTEN:
            raise Unwritten(
                f"{self.path / METRICS}: {len(self._unwritten) >> 20} MiB wait for room on the disk, at most "
                f"{_MAX_UNWRITTEN >> 20} do; make room, then `breakwater server --resume {self.path}`"
            )

    def save(self, model: Vector) -> None:
        """Write the model, in one step: whoever reads it, or finds it after a crash, finds a whole one."""
        with self._or_later(MODEL):
            self._save(model)

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
        stall: Mapping[str, Any] | None = None,
        lives: int = 1,
        patience_s: float = 0.0,
        task: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write summary and model, and return the summary. Where the disk stays full the summary is written alone.

        Args:
            status: "finished", "diverged", "stalled" or "interrupted".
            seed: the run's seed.
            joined_s: seconds before the first round, in which clients joined.
            model: the last model; None if there is none.
            evaluation: its measure, where it is not the model that was measured last.
            stall: of a run that stalled, see ``StalledError.to_dict``.
            lives: how often a server was started for this run.
            patience_s: how long to wait for room on a full disk.
            task: what the task tells of itself, see ``experiment.explain.TaskFacts``.

        Raises:
            Unwritten: the disk is full, or the folder is gone.
        """
        if evaluation is not None:
            self._last = _measures(evaluation)
        summary: dict[str, Any] = {
            "status": status,
            "rounds": self._rounds,
            "loss": None,
            "accuracy": None,
            **(self._last or (_measures(self._start) if self._start else {})),
            "start": _measures(self._start) if self._start else None,
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "wall_s": round(self.wall_s, 3),
            "joined_s": round(joined_s, 3),
            "rejected": dict(self._rejected),
            "rejected_by_client": {name: dict(counts) for name, counts in sorted(self._rejected_of.items())},
            "seed": seed,
            "lives": lives,
            "versions": versions(),
        }
        if stall is not None:
            summary["stall"] = dict(stall)
        if self._incomplete:
            summary["incomplete_rounds"] = self._incomplete
        if self._attack_failed:
            summary["attack_failure"] = {"replies": self._attack_failed, "reason": self._attack_failure}
        if task is not None:
            summary["task"] = dict(task)

        def write() -> None:
            self._flush()
            if model is not None:
                self._save(model)
            _replace(self.path / SUMMARY, json.dumps(summary, indent=2, default=_plain) + "\n")

        try:
            self._insist(write, patience_s)
        except Unwritten as error:
            self._leave_summary(summary, str(error))
            raise
        (self.path / _RESERVE).unlink(missing_ok=True)
        self.close()
        return summary

    def _leave_summary(self, summary: Mapping[str, Any], reason: str) -> None:
        """Write the summary alone where the disk has stayed full, into the room that was kept for it."""
        lost = {"rounds": self._unwritten.count(b"\n"), "reason": reason}
        with suppress(OSError):
            (self.path / _RESERVE).unlink(missing_ok=True)
            _replace(self.path / SUMMARY, json.dumps({**summary, "unwritten": lost}, indent=2, default=_plain) + "\n")

    def _count(self, line: Mapping[str, Any]) -> None:
        """Keep the sums of the summary up with a line of the metrics."""
        self._rounds = line["round"]
        self._bytes_up += line["bytes_up"]
        self._bytes_down += line["bytes_down"]
        self._incomplete += line.get("incomplete", False)
        self._names |= {int(worker): name for worker, name in line.get("names", {}).items()}
        for entry in line["rejected"]:
            slug = entry["reason"].partition(":")[0]
            if slug == ATTACK_FAILED:
                self._attack_failed += 1
                self._attack_failure = self._attack_failure or entry["reason"].partition(": ")[2]
            self._rejected[slug] += 1
            self._rejected_of.setdefault(entry["client"], Counter())[slug] += 1
        if "loss" in line:
            self._last = {name: line[name] for name in ("loss", "accuracy", "gap") if name in line}

    def _flush(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: not all of them could be written; what is in the file is whole lines.
        """
        try:
            while self._unwritten:
                written = os.pwrite(self._metrics, self._unwritten, self._size)
                self._size += written
                del self._unwritten[:written]
        finally:
            self._cut_at_line()

    def _cut_at_line(self) -> None:
        """Let the file end with a whole line, and take the beginning of the next one back."""
        if not self._unwritten:
            return
        begun = os.pread(self._metrics, 1 << 20, max(0, self._size - (1 << 20)))
        torn = begun[begun.rfind(b"\n") + 1 :]
        if torn:
            self._unwritten[:0] = torn
            self._size -= len(torn)
            os.ftruncate(self._metrics, self._size)

    def _save(self, model: Vector) -> None:
        written = self.path / f".{MODEL}"
        try:
            arrays = {"x": model, **self._frozen}
            metadata = {"layout": self._layout} if self._layout else None
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, written, metadata)
            written.replace(self.path / MODEL)
        except SafetensorError as error:  # its own name for what the system says
            raise OSError(None, str(error)) from error
        finally:
            written.unlink(missing_ok=True)

    @contextmanager
    def _or_later(self, what: str) -> Iterator[None]:
        """Within: what the system refuses to write is told once, and the run goes on; so is the end of the trouble."""
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
                    raise Unwritten(f"{problem}; mend that, then `breakwater server --resume {self.path}`") from None
                if "results" not in self._failing:
                    self._failing.add("results")
                    log.error("%s; trying again for %g s", problem, patience_s)
                time.sleep(min(1.0, patience_s))
            else:
                return


def _replace(path: Path, text: str) -> None:
    """Write a text in one step."""
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    names = ("breakwater", "flwr", "grpcio", "numba", "numpy", "scipy", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def each_round(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rounds of a run folder, one dictionary each; a last line cut off by a crash is left out.

    Raises:
        OSError: the metrics cannot be read.
        TypeError: a line is JSON, but no round.
    """
    with (folder / METRICS).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                return
            if not isinstance(told, dict):
                raise TypeError(f"{line[:40]!r} is no round")
            yield told


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run folder all at once, see ``each_round``."""
    return list(each_round(folder))


def _measures(evaluation: Evaluation) -> dict[str, float | None]:
    """Return measures as JSON has them; those that the task has not are left out."""
    measures = {"loss": finite(evaluation.loss)}
    for name, value in (("accuracy", evaluation.accuracy), ("gap", evaluation.gap)):
        if value is not None:
            measures[name] = finite(value)
    return measures


def _plain(value: object) -> Any:
    """Return a number of another type as JSON has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _evidence(evidence: Evidence) -> dict[str, Any]:
    """Return the evidence with the digits that it deserves."""
    told = {
        "distance": [None if v is None else float(f"{v:.3g}") for v in evidence.distance],
        "cosine": [None if v is None else round(v, 4) for v in evidence.cosine],
        "kept": [None if v is None else float(f"{v:.3g}") for v in evidence.kept],
        "weight": [None if v is None else float(f"{v:.3g}") for v in evidence.weight],
        "same": [list(group) for group in evidence.same],
    }
    return {name: values for name, values in told.items() if values}
