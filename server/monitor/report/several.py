"""Several runs on one page: those that differ in the seed alone are one line with a band, settings name the lines."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np
import tomli_w

from experiment.explain import title
from foundation.units import duration, size
from server.monitor.curves import LABELS, Band, X, band, spread
from server.monitor.report import charts
from server.monitor.report.charts import Line
from server.monitor.report.reading import Run
from server.monitor.report.single import drawn, figure, scale_of, shown
from server.monitor.report.templates import NONE, page
from server.run_folder import REPORT

POINTS = 6000
"""All lines of a chart have about this many points together."""
MOST_ROWS = 400
"""At most this many runs are in the table of single runs."""
_CLAIMED = " (claimed)"
"""After a measure that is the median of what clients claim."""
_COSTS: tuple[X, ...] = ("bytes_up", "bytes_down", "seconds")
_SEEDS = ("federation.seed", "federation.server_seed")
Settings = Mapping[str, Any]
"""Value by "section.key"."""


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are the same experiment with different seeds.

    Args:
        label: the settings that tell it from the other groups.
        runs: its runs.
    """

    label: str
    runs: Sequence[Run]


def document(runs: Sequence[Run], place: Path) -> str:
    """Return the page.

    Args:
        runs: at least one.
        place: the folder that the page will be in, for the links to the single reports.
    """
    groups = grouped(runs)
    first = groups[: charts.MOST_LINES]
    titles = {title(run.config) for run in runs if run.config is not None}
    measures = [measure for measure in LABELS if any(run.has(measure) for run in runs)]

    return page(
        "several",
        heading=titles.pop() if len(titles) == 1 else f"{len(groups)} settings side by side",
        runs=runs,
        groups=groups,
        drawn=first,
        swatches=[charts.swatch(slot) for slot in range(len(first))],
        several_seeds=any(len(group.runs) > 1 for group in groups),
        diverged=any(run.status == "diverged" for group in first for run in group.runs),
        curves=list(comparison_curves(first)),
        finals=finals(groups, measures),
        labels=[("", LABELS[measure]) for measure in measures],
        rows=[_row(group, run, measures, place) for group in groups for run in group.runs],
        most_rows=MOST_ROWS,
        common=_common(groups),
    )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Group the runs by their configs without the seeds; keep their order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = _settings(run)
        key = repr(sorted(settings.items())) if settings else str(run.path)
        found.setdefault(key, []).append(run)
    members = list(found.values())
    labels = _labels([_settings(group[0]) for group in members])
    others = [str(group[0].path) if len(members) > 1 else "all runs" for group in members]
    return [Group(label or other, group) for label, other, group in zip(labels, others, members, strict=True)]


def _settings(run: Run, *, seeds: bool = False) -> Settings:
    """Return the values of a config by section and key; with its seeds where ``seeds`` is true."""
    sections = {section: values for section, values in run.tree.items() if isinstance(values, dict)}
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {key: value for key, value in flat.items() if seeds or key not in _SEEDS}


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Return a label for each of several settings: the values in which it differs from the others.

    A section of another kind has other keys: its kind is the label. Keys in which groups
    of one kind differ are named.
    """

    differing = []
    for key in dict.fromkeys(key for each in settings for key in each):
        by_kind: dict[str, set[str]] = {}
        for each in settings:
            kind = "" if key.endswith(".kind") else repr(each.get(f"{key.partition('.')[0]}.kind"))
            by_kind.setdefault(kind, set()).add(repr(each.get(key)))
        if any(len(values) > 1 for values in by_kind.values()):
            differing.append(key)
    short = {key: _short(key, differing) for key in differing}

    def words(each: Settings) -> Iterator[str]:
        for key, word in short.items():
            if key in each:
                yield f"{word} {_value(each[key])}".strip()
            elif key.endswith(".kind"):
                yield f"no {key.partition('.')[0]}"

    return [", ".join(words(each)) for each in settings]


def _short(key: str, keys: Sequence[str]) -> str:
    """Return a key without its section, where that is clear; nothing for a kind, whose value is clear."""
    last = key.partition(".")[2]
    if last == "kind":
        return ""
    return last if sum(other.partition(".")[2] == last for other in keys) == 1 else key


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(str(v.get("kind", v)) if isinstance(v, dict) else str(v) for v in value) + "]"
    return "none" if value is None else str(value)


def comparison_curves(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Yield the curves, those of the objective first; the gap only where every run that was measured knows it."""
    for measure, key, x in drawn([run for group in groups for run in group.runs if run.has("loss")]):
        bands = [_band(group, x, measure) for group in groups]
        values = np.concatenate([part for b in bands for part in (b.median, b.low, b.high)])
        xs = scale_of(x, max((float(b.x[-1]) for b in bands if b.x.size), default=1.0))
        lines = [_line(b, slot, max(60, POINTS // len(groups))) for slot, b in enumerate(bands) if b.x.size]
        yield figure(lines, measure, key, xs, values, f", {len(lines)} lines")


def _band(group: Group, x: X, measure: str) -> Band:
    curves = [run.curve(x, measure) for run in group.runs]
    whole = band(curves, log=measure == "gap")
    ends = [float(c.x[-1]) for c in curves if c.x.size and not c.holds]
    if not ends:
        return whole
    # Where seeds end one after the other, a median of those left would jump. One that was cut short does not count.
    return whole.part(whole.x <= min(end for end in ends if end >= 0.5 * max(ends)))


def _line(whole: Band, slot: int, points: int) -> Line:
    """Return a band as a line, with fewer points where it has very many."""
    if whole.runs.max() == 1:
        return Line(*charts.thinned(whole.x, whole.median, min(points, 500)), slot)
    some = whole.part(np.unique(np.linspace(0, whole.x.size - 1, min(points, 300, whole.x.size)).astype(int)))
    return Line(some.x, some.median, slot, some.low, some.high)


def finals(groups: Sequence[Group], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Return where the runs of each group ended; see ``_final``."""
    return [_final(group, measures) for group in groups]


def _final(group: Group, measures: Iterable[str]) -> dict[str, Any]:
    """Return where the runs of a group ended: medians over the seeds."""
    began = [run for run in group.runs if run.rounds] or group.runs
    statuses = Counter(run.status for run in group.runs)
    single = len(statuses) == 1
    rounds, rejected = median(len(run.rounds) for run in began), median(sum(run.rejected.values()) for run in began)
    up, down, seconds = (median(run.total(x) for run in began) for x in _COSTS)

    return {
        "label": group.label,
        "seeds": len(group.runs),
        "ended": ", ".join(status if single else f"{n} {status}" for status, n in sorted(statuses.items())),
        "rounds": f"{rounds:,.0f}",
        "measures": [_over_seeds(each, [run for run in group.runs if run.has(each)]) for each in measures],
        "costs": [size(up), size(down), duration(seconds), f"{rejected:,.0f}"],
    }


def _over_seeds(measure: str, runs: Sequence[Run]) -> tuple[str, str | None, str | None]:
    """Return median, lowest and highest; what is not finite is the worst. The range is None for a single value."""
    if not runs:
        return NONE, None, None
    worst, values = -np.inf if measure == "accuracy" else np.inf, [run.last(measure) for run in runs]
    found = spread([worst if value is None else value for value in values])
    middle, low, high = (shown(measure, value) if np.isfinite(value) else "not finite" for value in found)
    middle += _CLAIMED * any(run.claimed for run in runs)
    return (middle, low, high) if len(values) > 1 else (middle, None, None)


def _row(group: Group, run: Run, measures: Iterable[str], place: Path) -> dict[str, Any]:
    """Return a single run, with the link to its report."""
    folder = os.path.relpath(run.path.absolute(), place)
    return {
        "folder": folder,
        "link": quote(os.path.join(folder, REPORT)) if (run.path / REPORT).exists() else "",
        "label": group.label,
        "seed": _settings(run, seeds=True).get("federation.seed", NONE),
        "ended": run.status,
        "rounds": len(run.rounds),
        "measures": [shown(measure, run.last(measure)) + _CLAIMED * run.claimed for measure in measures],
    }


def _common(groups: Sequence[Group]) -> str | None:
    """Return the settings that all runs share, as TOML; None where a config cannot be read."""
    settings = [_settings(group.runs[0]) for group in groups]
    if not all(settings):
        return None
    tree: dict[str, dict[str, Any]] = {}
    for key, value in settings[0].items():
        if all(repr(each.get(key)) == repr(value) for each in settings):
            section, _, last = key.partition(".")
            tree.setdefault(section, {})[last] = value
    return tomli_w.dumps(tree)
