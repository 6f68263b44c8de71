"""Run folders as a report reads them: what is needed of many rounds, and how the run ended.

A folder may be of a run that is under way, or that was killed: then there is no summary, and everything comes from the
metrics. Lines that a crash cut off are left out, and so are keys that an older folder does not have.
"""

import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment.config import Config, parse
from experiment.explain import ProblemConstants
from foundation.errors import ConfigError
from foundation.files import is_locked
from foundation.text import TextError, read_text
from server.monitor.curves import Curve, X, curve
from server.monitor.suspects import Suspect, tally
from server.run_folder import CONFIG, METRICS
from server.run_folder.reader import each_round, read_summary
from server.run_folder.record import finite, kind_of, measures_from
from strategies.claims import Claims
from strategies.method import Evaluation
from strategies.strategy import RoundRecord

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
        rounds: without the fields about single clients, which would take gigabytes for 100,000 rounds.
        suspects: the clients, most suspicious first.
        rejected: how often a reply was rejected, by reason.
        going: a server is running it right now.
        claims: what clients claimed when they were last asked, and the round of it; None where they never were.
    """

    path: Path
    text: str
    config: Config | None
    tree: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    rounds: Sequence[RoundRecord]
    suspects: Sequence[Suspect]
    rejected: Mapping[str, int] = field(default_factory=dict)
    going: bool = False
    claims: tuple[int, Claims] | None = None

    @property
    def status(self) -> str:
        """How it ended, from its summary; without one "going", or "killed" where no server runs it any more."""
        if self.summary is not None:
            return str(self.summary.get("status", "finished"))
        return "going" if self.going else "killed"

    @property
    def start(self) -> Evaluation | None:
        """The measures of x^0; None where the summary is not there."""
        return measures_from((self.summary or {}).get("start"))

    @property
    def planned(self) -> int | None:
        """How many rounds the config wants."""
        return None if self.config is None else self.config.strategy.rounds

    @property
    def task(self) -> ProblemConstants | None:
        """The problem constants of the task; None where the summary has none."""
        try:
            return ProblemConstants.read((self.summary or {})["task"])
        except (KeyError, ValueError, TypeError):
            return None

    def curve(self, x: X, measure: str) -> Curve:
        """Return the curve of "loss", "accuracy" or "gap"."""
        return curve(self.rounds, x, measure, start=self.start, diverged=self.status == "diverged")

    def has(self, measure: str) -> bool:
        """Return whether "loss", "accuracy" or "gap" was measured."""
        found = (self.start, *(record.headline for record in self.rounds))
        return any(getattr(evaluation, measure, None) is not None for evaluation in found)

    def last(self, measure: str) -> float | None:
        """Return the last value of "loss", "accuracy" or "gap"; None where there is none, or it was not finite."""
        found = (measures_from(self.summary), *(record.headline for record in reversed(self.rounds)))
        values = (getattr(evaluation, measure, None) for evaluation in found)
        return finite(next((value for value in values if value is not None), None))

    @property
    def claimed(self) -> bool:
        """Whether its loss and accuracy are medians of what clients claim, and not measured by the server."""
        return any(record.measured_by == "clients" for record in self.rounds) and not any(
            record.measured_by == "server" for record in self.rounds
        )

    def total(self, what: X) -> float:
        """Return the number of rounds, or the bytes or seconds that they took together."""
        if what == "round":
            return float(self.rounds[-1].round) if self.rounds else 0.0
        return float(sum(getattr(record, "round_s" if what == "seconds" else what) for record in self.rounds))

    def log_tail(self, lines: int) -> list[str] | None:
        """Return the end of the server's log; None where there is none."""
        try:
            with open(self.path / LOG, "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - (256 << 10)))
                return log.read().decode("utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            return None


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: it holds no run, or cannot be read; one line.
    """
    rejected: Counter[str] = Counter()
    rounds: list[RoundRecord] = []

    claims: list[tuple[int, Claims]] = []  # the last ones

    def seen() -> Iterator[RoundRecord]:
        for record in each_round(path):
            rejected.update(kind_of(reason) for _, reason in record.rejected)
            light = replace(record, cohort=(), accepted=(), rejected=(), clipped=(), names=(), evidence=None)
            if record.claims is not None:
                claims[:] = [(record.round, record.claims)]
                light = replace(light, claims=replace(record.claims, clients={}, missing={}))
            rounds.append(light)
            yield record

    text = _text(path / CONFIG)
    tree, config = {}, None
    with suppress(tomllib.TOMLDecodeError, ConfigError):
        tree = tomllib.loads(text)
        config = parse(text) if text else None
    suspects = tally(seen(), None if config is None else config.federation.byzantine)
    summary = read_summary(path)
    going = summary is None and is_locked(path / METRICS)
    last = claims[0] if claims else None
    return Run(path, text, config, tree, summary, rounds, suspects, rejected, going, last)


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


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (FileNotFoundError, TextError):
        return ""
