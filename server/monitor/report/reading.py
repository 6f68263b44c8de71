"""Run folders as a report reads them: what is needed of many rounds, and what became of the run.

A folder may be of a run that is under way, or that was killed: then there is no summary, and everything is what the
metrics tell. Lines that a crash cut off are left out, and so are keys that an older folder does not have.
"""

import fcntl
import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment.config import Config, parse
from experiment.explain import TaskFacts
from foundation.errors import ConfigError
from foundation.text import TextError, read_text
from server.monitor.curves import X
from server.monitor.suspects import Suspect, tally
from server.run_folder.folder import CONFIG, METRICS, SUMMARY, each_round

KEPT = ("round", "kind", "bytes_up", "bytes_down", "round_s", "loss", "accuracy", "gap", "note", "incomplete")
"""What is kept of a round; of 100,000 rounds the rest would take gigabytes."""
LOG = Path("logs") / "server.log"


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Args:
        path: the folder.
        text: ``config.toml``; "" if there is none.
        config: the same, None where this version cannot read it.
        tree: the same as plain tables, {} where it is no TOML.
        summary: as the server wrote it; None for a run that has not ended in order.
        rounds: of each round the keys of ``KEPT`` that it has.
        suspects: the clients, most suspicious first.
        rejected: how often a reply was rejected, by reason.
        going: a server is running it right now.
    """

    path: Path
    text: str
    config: Config | None
    tree: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    rounds: Sequence[Mapping[str, Any]]
    suspects: Sequence[Suspect]
    rejected: Mapping[str, int] = field(default_factory=dict)
    going: bool = False

    @property
    def status(self) -> str:
        """How it ended: as its summary says; without one "going", or "killed" where no server runs it any more."""
        if self.summary is not None:
            return str(self.summary.get("status", "finished"))
        return "going" if self.going else "killed"

    @property
    def start(self) -> Mapping[str, Any] | None:
        """The measures of x^0; None where the summary is not there."""
        return None if self.summary is None else self.summary.get("start")

    @property
    def planned(self) -> int | None:
        """How many rounds the config wants."""
        return None if self.config is None else self.config.strategy.rounds

    @property
    def task(self) -> TaskFacts | None:
        """What the task told of itself; None where the summary does not say."""
        try:
            return TaskFacts.read((self.summary or {})["task"])
        except (KeyError, ValueError, TypeError):
            return None

    def last(self, measure: str) -> float | None:
        """Return the last value of "loss", "accuracy" or "gap"; None where there is none, or it was not finite."""
        for source in (self.summary or {}, *reversed(self.rounds)):
            if measure in source:
                value = source[measure]
                return None if value is None else float(value)
        return None

    def total(self, what: X) -> float:
        """Return the rounds, or the bytes or seconds that they took together."""
        if what == "round":
            return float(self.rounds[-1]["round"]) if self.rounds else 0.0
        key = "round_s" if what == "seconds" else what
        return float(sum(record.get(key) or 0 for record in self.rounds))

    def log_tail(self, lines: int) -> list[str] | None:
        """Return the end of the server's log; None where there is none."""
        try:
            with open(self.path / LOG, "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - (256 << 10)))
                return log.read().decode("utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            return None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within: the rounds of a run folder are read and worked on.

    Raises:
        ConfigError: there are none, or they cannot be read; one line.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{path}: no run is there ({METRICS} is missing)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path / METRICS}: is no metrics file of a run: {error!r}") from None


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: it holds no run, or cannot be read; one line.
    """
    rejected: Counter[str] = Counter()
    rounds: list[dict[str, Any]] = []

    def seen() -> Iterator[Mapping[str, Any]]:
        for record in each_round(path):
            rounds.append({key: record[key] for key in KEPT if key in record})
            for entry in record.get("rejected", ()):
                rejected[str(entry["reason"]).partition(":")[0]] += 1
            yield record

    with readable(path):
        text = _text(path / CONFIG)
        config = _config(text)
        suspects = tally(seen(), None if config is None else config.federation.byzantine)
        summary = _summary(path / SUMMARY)
        going = summary is None and _locked(path / METRICS)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        tree = {}
    return Run(path, text, config, tree, summary, rounds, suspects, rejected, going)


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders that are, or lie within, some folders; each once, in order of path below each.

    Raises:
        ConfigError: a folder is not there, or holds none; one line.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; give a run folder, or one that holds run folders")
        here = [Path(top) for top, _, files in os.walk(path) if METRICS in files]
        if not here:
            raise ConfigError(f"{path}: no run is there, nor in the folders below it ({METRICS} is missing)")
        if path in here:
            here = [path]
        for folder in sorted(here):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _config(text: str) -> Config | None:
    try:
        return parse(text) if text else None
    except ConfigError:
        return None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (FileNotFoundError, TextError):
        return ""


def _summary(path: Path) -> dict[str, Any] | None:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return summary if isinstance(summary, dict) else None


def _locked(path: Path) -> bool:
    """Return whether a server holds the metrics file, see ``server.run_folder.folder.RunFolder``."""
    with open(path, "rb") as metrics:
        try:
            fcntl.flock(metrics, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
