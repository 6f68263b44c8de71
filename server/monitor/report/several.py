"""Several runs on one page: those that differ in the seed alone are one line with a band, settings name the lines."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np
import tomli_w

from experiment.explain import title
from foundation.units import duration, size
from server.monitor import curves as bands
from server.monitor.curves import X
from server.monitor.report import REPORT, charts, markup
from server.monitor.report.charts import Line
from server.monitor.report.markup import safe
from server.monitor.report.reading import Run
from server.monitor.report.single import AGAINST, GAP, NONE, measure_scale, scale_of, shown

_BANDS = (
    "Lines are medians over the seeds, shades reach from the lowest to the highest. A line ends where the first seed "
    "ends, those left out that did not come half as far as the others."
)
POINTS = 6000
"""All lines of a chart have about so many points together."""
MOST_ROWS = 400
"""So many runs are in the table of single runs."""
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

    def finals(self, measure: str) -> list[float | None]:
        """Return the last value of each run that was measured; None where it was not finite."""
        return [run.last(measure) for run in self.runs if _has(run, measure)]


def document(runs: Sequence[Run], place: Path) -> str:
    """Return the page.

    Args:
        runs: at least one.
        place: the folder that the page will be in, for the links to the single reports.
    """
    groups = grouped(runs)
    heads = {title(run.config) for run in runs if run.config is not None}
    head = heads.pop() if len(heads) == 1 else f"{len(groups)} settings side by side"
    seeds = "" if len(runs) == len(groups) else ", some with several seeds"
    body = [
        f"<h1>{safe(head)}</h1>",
        f'<p class="soft">{len(runs)} runs of {len(groups)} setting{"s" if len(groups) > 1 else ""}{seeds}.</p>',
        markup.section("curves", "How they went", *_curves(groups)),
        markup.section("finals", "Where they ended", *_finals(groups)),
        markup.section("runs", "Each run", *_each(groups, place)),
        markup.section("config", "What they have in common", *_common(groups)),
    ]
    return markup.page(f"Breakwater report: {head}", filter(None, body))


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the runs by what their configs say beside the seed, in the order in which they came."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = _settings(run)
        key = repr(sorted(settings.items())) if settings else str(run.path)
        found.setdefault(key, []).append(run)
    members = list(found.values())
    labels = _labels([_settings(group[0]) for group in members])
    return [
        Group(label or str(group[0].path), group) if len(members) > 1 else Group(label or "all runs", group)
        for label, group in zip(labels, members, strict=True)
    ]


def _settings(run: Run) -> Settings:
    """Return what a config says, by section and key, without its seeds."""
    flat = {}
    for section, values in run.tree.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if section == "federation" and key in ("seed", "server_seed"):
                continue
            flat[f"{section}.{key}"] = value
    return flat


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Return for each of several settings, in words, what tells it from the others.

    Another kind in a section has other keys, which the kind stands for: a key is told where groups of one kind differ.
    """

    def kind(each: Settings, key: str) -> object:
        return repr(each.get(f"{key.partition('.')[0]}.kind"))

    differing = []
    for key in dict.fromkeys(key for each in settings for key in each):
        by_kind: dict[object, set[str]] = {}
        for each in settings:
            whose = "" if key.endswith(".kind") else kind(each, key)
            by_kind.setdefault(whose, set()).add(repr(each.get(key)))
        if any(len(values) > 1 for values in by_kind.values()):
            differing.append(key)
    short = [_short(key, differing) for key in differing]
    return [
        ", ".join(
            f"{word} {_value(each[key])}".strip() if key in each else f"no {key.partition('.')[0]}"
            for key, word in zip(differing, short, strict=True)
            if key in each or key.endswith(".kind")
        )
        for each in settings
    ]


def _short(key: str, keys: Sequence[str]) -> str:
    """Return a key without its section, where that is clear; nothing for a kind, whose value says enough."""
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


def _has(run: Run, measure: str) -> bool:
    return any(measure in record for record in run.rounds) or (run.start or {}).get(measure) is not None


def _measures(groups: Iterable[Group]) -> list[str]:
    """Return what there is to draw, the objective first; the gap only where every run that was measured knows it."""
    runs = [run for group in groups for run in group.runs if _has(run, "loss")]
    objective = "gap" if all(_has(run, "gap") for run in runs) else "loss"
    return [measure for measure in (objective, "accuracy") if any(_has(run, measure) for run in runs)]


def _curves(groups: Sequence[Group]) -> Iterator[str]:
    drawn = groups[: charts.MOST_LINES]
    measures = _measures(drawn)
    if not measures:
        yield "<p>No model was measured.</p>"
        return
    items = "".join(f"<li>{charts.swatch(slot)}{safe(group.label, 200)}</li>" for slot, group in enumerate(drawn))
    yield f'<ul class="legend">{items}</ul>'
    if any(len(group.runs) > 1 for group in drawn):
        yield f"<p><small>{_BANDS}</small></p>"
    if len(groups) > len(drawn):
        yield f"<p>The first {len(drawn)} of {len(groups)} settings are drawn; the tables have all.</p>"
    yield markup.against()
    figures = []
    for measure in measures:
        for key, x in AGAINST:
            found = [_band(group, x, measure) for group in drawn]
            everything = np.concatenate([values for b in found for values in (b.median, b.low, b.high)])
            y = measure_scale(measure, everything)
            xs = scale_of(x, max((float(b.x[-1]) for b in found if b.x.size), default=1.0))
            lines = [_line(b, slot, max(60, POINTS // len(drawn))) for slot, b in enumerate(found) if b.x.size]
            about = f"{y.label} against {xs.label}, {len(lines)} lines"
            svg = charts.curves(lines, xs, y, f"{measure}-{key}", about)
            figures.append(markup.figure(svg, f"<b>{escape(y.label)}</b> against {escape(xs.label)}", f"x-{key}"))
    yield f'<div class="grid">{"".join(figures)}</div>'
    if any(run.status == "diverged" for group in drawn for run in group.runs):
        yield "<p><small>A cross marks the last finite value of a line whose runs diverged.</small></p>"


def _band(group: Group, x: X, measure: str) -> bands.Band:
    curves = [
        bands.curve(run.rounds, x, measure, start=run.start, diverged=run.status == "diverged") for run in group.runs
    ]
    band = bands.band(curves, log=measure == "gap")
    ends = [float(c.x[-1]) for c in curves if c.x.size and not c.holds]
    if not ends:
        return band
    # Where seeds end one after the other, a median of those left would jump. One that was cut short does not count.
    there = band.x <= min(end for end in ends if end >= 0.5 * max(ends))
    return bands.Band(band.x[there], band.median[there], band.low[there], band.high[there], band.runs[there])


def _line(band: bands.Band, slot: int, points: int) -> Line:
    """Return a band as a line, with fewer points where it has very many."""
    if band.runs.max() == 1:
        return Line(*charts.thinned(band.x, band.median, min(points, 500)), slot)
    at = np.unique(np.linspace(0, band.x.size - 1, min(points, 300, band.x.size)).astype(int))
    return Line(band.x[at], band.median[at], slot, band.low[at], band.high[at])


def _finals(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the table of medians over seeds."""
    measures = [m for m in ("accuracy", "gap", "loss") if any(_has(run, m) for g in groups for run in g.runs)]
    heads = [
        ("text", "settings"),
        ("", "seeds"),
        ("text", "ended"),
        ("", "rounds"),
        *(("", GAP if measure == "gap" else measure) for measure in measures),
        ("", "bytes up"),
        ("", "bytes down"),
        ("", "time in rounds"),
        ("", "rejected"),
    ]
    rows = []
    for slot, group in enumerate(groups):
        began = [run for run in group.runs if run.rounds] or group.runs
        drawn = charts.swatch(slot) if slot < charts.MOST_LINES else ""
        rows.append(
            [
                f"{drawn}{safe(group.label, 200)}",
                str(len(group.runs)),
                _statuses(group.runs),
                _median([float(len(run.rounds)) for run in began], lambda v: f"{v:,.0f}"),
                *(_over_seeds(measure, group.finals(measure)) for measure in measures),
                _median([run.total("bytes_up") for run in began], lambda v: size(int(v))),
                _median([run.total("bytes_down") for run in began], lambda v: size(int(v))),
                _median([run.total("seconds") for run in began], duration),
                _median([float(sum(run.rejected.values())) for run in began], lambda v: f"{v:,.0f}"),
            ]
        )
    several = any(len(group.runs) > 1 for group in groups)
    yield markup.table(
        "Medians over the seeds; in brackets the lowest and the highest" if several else "The last values", heads, rows
    )


def _median(values: Sequence[float], words: Any) -> str:
    return str(words(median(values)))


def _statuses(runs: Sequence[Run]) -> str:
    """Return how runs ended: one word where it is the same for all."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    if len(counts) == 1:
        return safe(next(iter(counts)), 40)
    return ", ".join(f"{count} {safe(status, 40)}" for status, count in sorted(counts.items()))


def _over_seeds(measure: str, values: Sequence[float | None]) -> str:
    """Return median and range; what is not finite is the worst."""
    if not values:
        return NONE
    worst = -np.inf if measure == "accuracy" else np.inf
    known = sorted(worst if value is None else value for value in values)

    def told(value: float) -> str:
        return shown(measure, value) if np.isfinite(value) else "not finite"

    middle = known[(len(known) - 1) // 2 : len(known) // 2 + 1]
    centre = told(sum(middle) / len(middle))
    return centre if len(known) == 1 else f"{centre} <small>[{told(known[0])}, {told(known[-1])}]</small>"


def _each(groups: Sequence[Group], place: Path) -> Iterator[str]:
    """Yield the table of single runs, with links to their reports."""
    measures = [m for m in ("accuracy", "gap", "loss") if any(_has(run, m) for g in groups for run in g.runs)]
    rows = []
    for group in groups:
        for run in group.runs:
            where = safe(os.path.relpath(run.path.absolute(), place), 200)
            if (run.path / REPORT).exists():
                link = quote(os.path.relpath(run.path.absolute() / REPORT, place))
                where = f'<a href="{escape(link)}">{where}</a>'
            federation = run.tree.get("federation")
            seed = federation.get("seed", NONE) if isinstance(federation, dict) else NONE
            rows.append(
                [
                    where,
                    safe(group.label, 200),
                    safe(seed, 30),
                    safe(run.status, 40),
                    f"{len(run.rounds):,}",
                    *(shown(measure, run.last(measure)) for measure in measures),
                ]
            )
    heads = [
        ("text", "run folder"),
        ("text", "settings"),
        ("", "seed"),
        ("text", "ended"),
        ("", "rounds"),
        *(("", GAP if measure == "gap" else measure) for measure in measures),
    ]
    more = len(rows) - MOST_ROWS
    caption = "Run folders" + (f"; {more} more are left out" if more > 0 else "")
    yield markup.table(caption, heads, rows[:MOST_ROWS])


def _common(groups: Sequence[Group]) -> Iterator[str]:
    """Yield the settings that all runs share."""
    settings = [_settings(group.runs[0]) for group in groups]
    if not all(settings):
        yield "<p>Not every run folder has a config.toml that can be read.</p>"
        return
    tree: dict[str, dict[str, Any]] = {}
    for key, value in settings[0].items():
        if all(repr(each.get(key)) == repr(value) for each in settings):
            section, _, last = key.partition(".")
            tree.setdefault(section, {})[last] = value
    text = tomli_w.dumps(tree)
    yield markup.preformatted(text, "settings of all runs") if text else "<p>No setting.</p>"
