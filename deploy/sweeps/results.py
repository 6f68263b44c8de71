"""The results of a sweep: rows of a table, and several seeds together.

A run that diverged has an infinite loss; one that failed or stalled has no numbers. All are rows like any other.
"""

import csv
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploy.sweeps.experiment import Cell, PlannedRun, Target, Tune
from server.monitor.curves import LABELS, LOWER_IS_BETTER, SHARES, Curve, X, curve, spread
from server.run_folder.reader import read_rounds, read_summary
from server.run_folder.record import measures_from
from strategies.strategy import RoundRecord

NOTE = "sweep.json"
"""In a run's folder: which run of the sweep it is."""
MEASURES = ("gap", "loss", "accuracy", "trigger")
"""What a run is judged by; a task has a gap where it knows f*."""
DONE = frozenset({"finished", "diverged"})
"""The states of a run that another attempt would end in again."""
FAILED = frozenset({"failed", "stalled"})
"""The states of a run that shows nothing."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run that has ended.

    Args:
        run: which.
        status: "finished", "diverged", "stalled" or "failed".
        folder: its run folder.
        reason: why it failed or stalled.
        summary: as in the run folder; empty where it failed.
        how: "in process" or "processes".
    """

    run: PlannedRun
    status: str
    folder: Path
    reason: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    how: str = ""

    @property
    def warning(self) -> str:
        """A warning about a run that has ended; "" if there is none."""
        failure = self.summary.get("attack_failure")
        return f"the attack failed in {failure['replies']} replies: {failure['reason']}" if failure else ""

    @property
    def claimed(self) -> bool:
        """Whether its measures are medians of what clients claim."""
        return self.summary.get("measured_by") == "clients"

    @cached_property
    def rounds(self) -> list[RoundRecord]:
        """The rounds of the run folder; none where it failed."""
        return read_rounds(self.folder) if self.status in DONE else []

    def curve(self, x: X, y: str) -> Curve:
        """Return one measure of the run against another."""
        start = measures_from(self.summary.get("start"))
        return curve(self.rounds, x, y, start=start, diverged=self.status == "diverged")

    @cached_property
    def measures(self) -> dict[str, float]:
        """Loss, accuracy and gap at the end, as far as the task has them; infinite where the run diverged. None where
        nobody measures.
        """
        if self.summary.get("measured_by") == "none" and self.status != "diverged":
            return {}
        first, last = measures_from(self.summary.get("start") or self.summary), measures_from(self.summary)
        found = {}
        for name in (name for name in MEASURES if getattr(first, name, None) is not None):
            value = getattr(last, name)
            if name in LOWER_IS_BETTER and (value is None or math.isnan(value) or self.status == "diverged"):
                value = math.inf
            if value is not None and not math.isnan(value):
                found[name] = float(value)
        return found

    def reached(self, target: Target) -> tuple[float, float] | None:
        """Return the round and the bytes up at which a target was first measured; None if it never was."""
        by_round, by_bytes = self.curve("round", target.measure), self.curve("bytes_up", target.measure)
        good = by_round.y <= target.value if target.measure in LOWER_IS_BETTER else by_round.y >= target.value
        if not good.any():
            return None
        first = int(np.argmax(good))
        return float(by_round.x[first]), float(by_bytes.x[first])


def digest(run: PlannedRun) -> str:
    """Return a hash that identifies the config of a run."""
    return hashlib.sha256(run.config.to_toml().encode()).hexdigest()[:16]


def note(run: PlannedRun, how: str) -> str:
    """Return the text of NOTE."""
    about: dict[str, Any] = {"values": dict(run.cell.values), "seed": run.seed, "tuning": run.tuning}
    return json.dumps(about | {"config": digest(run), "how": how}, indent=2)


def read_outcome(run: PlannedRun, folder: Path) -> Outcome | None:
    """Return how a finished run with this config ended; None if it must still run."""
    try:
        noted = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if noted["config"] != digest(run):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = outcome_of(run, folder, str(noted.get("how", "")))
    return found if found is not None and found.status in DONE else None


def outcome_of(run: PlannedRun, folder: Path, how: str) -> Outcome | None:
    """Return how a run ended, from its summary; None without a usable one."""
    summary = read_summary(folder) or {}
    status = summary.get("status")
    if status == "stalled":
        stall = summary.get("stall")
        reason = str(stall.get("text", "")) if isinstance(stall, dict) else ""
        return Outcome(run, status, folder, reason=reason)
    return Outcome(run, status, folder, summary=summary, how=how) if status in DONE else None


def choose(outcomes: Iterable[Outcome], tune: Tune) -> dict[Cell, str]:
    """Return the best value of the tuned axis, by the combination of the others; none where all runs failed."""
    groups: dict[Cell, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        if outcome.status not in FAILED:
            cell = outcome.run.cell
            groups[cell.without(tune.axis)][dict(cell.values)[tune.axis]].append(_rank(outcome, tune))
    return {
        rest: min(values, key=lambda value: tuple(np.median(np.array(values[value]), axis=0)))
        for rest, values in groups.items()
    }


def _rank(outcome: Outcome, tune: Tune) -> tuple[float, float]:
    """Return the rank of a run; lower is better."""
    end = outcome.measures.get(tune.measure) if outcome.status == "finished" else None
    last = math.inf if end is None else end if tune.measure in LOWER_IS_BETTER else -end
    if tune.reach is None:
        return (last, 0.0)
    at = outcome.reached(Target(measure=tune.measure, value=tune.reach))
    return (math.inf if at is None else at[0], min(last, 1e308))


def row(outcome: Outcome, targets: Sequence[Target]) -> dict[str, Any]:
    """Return a run as a row of table.csv."""
    run, summary = outcome.run, outcome.summary
    found: dict[str, Any] = dict(run.cell.values) | {"seed": run.seed, "status": outcome.status}
    found |= {"rounds": summary.get("rounds"), **{name: outcome.measures.get(name) for name in MEASURES}}
    found["measured_by"] = "clients" if outcome.claimed else None
    found |= {name: summary.get(name) for name in ("bytes_up", "bytes_down")} | {"seconds": summary.get("wall_s")}
    for target in targets:
        at = outcome.reached(target) if outcome.status in DONE else None
        found[f"rounds to {target.name}"] = None if at is None else int(at[0])
        found[f"bytes_up to {target.name}"] = None if at is None else int(at[1])
    found["rejected"] = sum(summary.get("rejected", {}).values()) if summary else None
    return found | {"how": outcome.how, "folder": run.folder, "reason": outcome.reason, "warning": outcome.warning}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV; columns of measures, whose they are, reasons and warnings are omitted where all are empty."""
    columns = dict.fromkeys(key for each in rows for key in each)
    for name in (*MEASURES, "measured_by", "reason", "warning"):
        if not any(each.get(name) not in (None, "") for each in rows):
            columns.pop(name, None)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in each.items()} for each in rows)
    return out.getvalue()


def summaries(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Return one row for each combination: median, lowest and highest over the seeds of every number.

    A target that not all seeds reached has the median of those that did, and their number.
    """
    groups: dict[Cell, list[dict[str, Any]]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.run.cell].append(row(outcome, targets))
    numbers = [*MEASURES, "rounds", "bytes_up", "bytes_down", "seconds"]
    numbers += [f"{what} to {target.name}" for target in targets for what in ("rounds", "bytes_up")]
    table = []
    for cell, rows in groups.items():
        line: dict[str, Any] = dict(cell.values) | {"runs": len(rows)}
        for status in ("finished", "diverged", "stalled", "failed"):
            line[status] = sum(each["status"] == status for each in rows)
        line["attack failed"] = sum(bool(each["warning"]) for each in rows)
        for name in numbers:
            values = [float(each[name]) for each in rows if each.get(name) is not None]
            if name in MEASURES and not values:
                continue
            for which, value in zip(("median", "min", "max"), spread(values) if values else (None,) * 3, strict=True):
                line[f"{name} {which}"] = value
            if " to " in name:
                line[f"{name} n"] = len(values)
        table.append(line)
    return table


def as_markdown(
    title: str, axes: Sequence[str], outcomes: Sequence[Outcome], targets: Sequence[Target], preface: Sequence[str]
) -> str:
    """Return the summary rows as a page for people.

    Args:
        title: heading.
        axes: names of the axes, the first columns.
        outcomes: of all runs.
        targets: to report.
        preface: lines above the table.
    """
    table = summaries(outcomes, targets)
    measures = [m for m in MEASURES if any(f"{m} median" in line for line in table)]
    if "gap" in measures:
        measures.remove("loss")
    heads = [
        *axes,
        *(LABELS[m] for m in measures),
    ]
    for target in targets:
        heads += [f"rounds to {target.name}", "MB up to it"]
    heads += ["MB up", "seconds", "runs"]
    rule = ["---"] * len(axes) + ["---:"] * (len(heads) - len(axes))
    claimed = ["", "Loss and accuracy are medians of what clients claim."] if any(o.claimed for o in outcomes) else []
    lines = [f"# {title}", "", *preface, *claimed, "", _line(heads), _line(rule)]
    for each in table:
        cells = [str(each.get(axis, "")) for axis in axes]
        cells += [_spread(each, measure) for measure in measures]
        for target in targets:
            n, runs = each.get(f"rounds to {target.name} n", 0), each["runs"]
            some = f" ({n} of {runs})" if 0 < n < runs else ""
            cells.append(_spread(each, f"rounds to {target.name}") + some if n else "never")
            cells.append(_spread(each, f"bytes_up to {target.name}") if n else "")
        states = [f"{each[status]} {status}" for status in ("diverged", "stalled", "failed") if each[status]]
        if each["attack failed"]:
            states.append(f"the attack failed in {each['attack failed']}")
        cells += [_spread(each, "bytes_up"), _spread(each, "seconds"), ", ".join([str(each["runs"]), *states])]
        lines.append(_line(cells))
    notes = {s.capitalize(): [(o, o.reason) for o in outcomes if o.status == s] for s in ("failed", "stalled")}
    attack_failed = "The attack failed, so that these runs do not show what the method withstands"
    for heading, found in (notes | {attack_failed: [(o, o.warning) for o in outcomes if o.warning]}).items():
        if found:
            lines += ["", f"{heading}:", "", *(f"- {o.run.label}: {_escaped(w)} (`{o.run.folder}`)" for o, w in found)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _spread(line: Mapping[str, Any], name: str) -> str:
    """Return the median, and the range where the seeds differ."""
    middle, low, high = (line.get(f"{name} {which}") for which in ("median", "min", "max"))
    if middle is None or low is None or high is None:
        return ""
    shown, lowest, highest = (number(value, name) for value in (middle, low, high))
    return shown if lowest == highest else f"{shown} ({lowest} to {highest})"


def number(value: float, name: str) -> str:
    """Return a number of that kind for people: 3.1e-09, 95.2 %, 1.2 (MB)."""
    if math.isinf(value):
        return "diverged"
    kind = name.split()[0]
    if kind == "gap":
        return f"{value:.1e}"
    if kind in SHARES:
        return f"{100 * value:.1f} %"
    if kind.startswith("bytes"):
        return f"{value / 1e6:.3g}"
    return f"{value:.0f}" if kind in ("rounds", "seconds") and value >= 10 else f"{value:.3g}"
