"""Pictures of a sweep: panels of curves, each the median over the seeds with the range as a band.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a second thing that is varied has line styles.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, NullFormatter

from deploy.sweeps.experiment import ExperimentFile, Figure, Target, Value
from deploy.sweeps.results import DONE, Outcome
from server.monitor.curves import LABELS, LOWER_IS_BETTER, SHARES, Numbers, X, band, spread
from server.monitor.plot import COLOURS

STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
X_LABELS = {"round": "round", "bytes_up": "MB up", "bytes_down": "MB down", "seconds": "seconds"}
MEGA = {"bytes_up": 1e-6, "bytes_down": 1e-6}
PANEL_IN = (3.1, 2.5)
"""Width and height of a panel, inches."""
DPI = 120
_FLOOR = 1e-15
"""A gap below is the rounding of f*; log scales end here."""
_MOST = 1e3
"""A curve that diverges leaves the picture at this multiple of the highest start."""
_OFF = 1e100
"""In place of infinity in a band, and of numbers that are too large for scales."""


def draw_all(file: ExperimentFile, outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Draw every figure of the file for which there are runs; return the PNGs."""
    pictures = []
    for figure in file.figures:
        chosen = [o for o in outcomes if o.run.cell.has(figure.where) and o.status in DONE]
        if chosen:
            pictures.append(out / f"{figure.name}.png")
            _Picture(figure, file.axes, chosen).draw(pictures[-1])
    return pictures


class _Picture:
    """One figure.

    Args:
        figure: what it shows.
        axes: of the experiment.
        outcomes: the runs in it.
    """

    def __init__(self, figure: Figure, axes: Mapping[str, Value], outcomes: Sequence[Outcome]) -> None:
        self._figure = figure
        self._outcomes = outcomes
        self._there = {axis: [v for v in values if _with(outcomes, axis, v)] for axis, values in axes.items()}
        self._y = figure.y if any(figure.y in o.measures for o in outcomes) else "loss"
        self._ends = figure.x in axes  # where runs end, and not how they got there
        cost = self._ends and figure.reach is not None and self._y == figure.y
        self._target = Target(measure=figure.y, value=figure.reach or 0.0) if cost else None
        self._log = self._target is not None or self._y in LOWER_IS_BETTER
        self._scale = MEGA.get(figure.cost, 1.0) if self._target else 100.0 if self._y in SHARES else 1.0

    def draw(self, path: Path) -> None:
        figure = self._figure
        columns, rows, lines, styles = (self._values(name) for name in figure.axes.values())
        width, height = PANEL_IN
        below = 0.35 if lines != [None] or styles != [None] else 0.0
        above = 0.4 if figure.title else 0.1
        size = max(width * len(columns), 4.6), height * len(rows) + below + above
        canvas = Canvas(figsize=size, layout="constrained")
        grid = canvas.subplots(len(rows), len(columns), squeeze=False, sharey=True)
        for i, down in enumerate(rows):
            for j, across in enumerate(columns):
                panel = cast(Axes, grid[i, j])
                here = _with(_with(self._outcomes, figure.rows, down), figure.panels, across)
                for (k, line), (m, style) in product(enumerate(lines), enumerate(styles)):
                    group = _with(_with(here, figure.lines, line), figure.styles, style)
                    self._plot(panel, group, k, m, len(lines))
                named = ((figure.panels, across), (figure.rows, down))
                panel.set_title(",  ".join(f"{name}: {value}" for name, value in named if value), fontsize=9)
                panel.set_xlabel(X_LABELS.get(figure.x, figure.x) if i == len(rows) - 1 else "", fontsize=9)
                panel.set_ylabel(self._y_label() if j == 0 else "", fontsize=9)
                self._dress(panel)
        self._limit([cast(Axes, panel) for panel in grid.flat])
        self._legend(canvas, lines, styles)
        if figure.title:
            canvas.suptitle(figure.title, fontsize=10)
        canvas.savefig(path, dpi=DPI, metadata={"Software": None})

    def _values(self, axis: str | None) -> Sequence[str | None]:
        return [None] if axis is None else self._there[axis]

    def _y_label(self) -> str:
        figure = self._figure
        if self._target is None:
            return LABELS[self._y] + " (%)" * (self._y in SHARES) + " at the end" * self._ends
        what = "rounds" if figure.cost == "round" else "MB up"
        return f"{what} to {LABELS[self._y]} = {self._target.value:g}"

    def _plot(self, panel: Axes, group: Sequence[Outcome], k: int, m: int, count: int) -> None:
        """Draw the runs that differ in nothing but the seed, and perhaps in x: colour k of ``count``, style m."""
        look: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[m % len(STYLES)]}
        look["linewidth"] = 1.2 + (count - 1 - k) * (1.8 if count == 2 else 0.9)  # so that hidden lines remain visible
        x = self._figure.x
        if not self._ends:
            shown = band([outcome.curve(cast(X, x), self._y) for outcome in group], log=self._log)
            whole = shown.runs == shown.runs.max(initial=0)  # where the first run ends, the median would jump
            at = shown.x[whole] * MEGA.get(x, 1.0)
            self._band(panel, at, shown.median[whole], shown.low[whole], shown.high[whole], look)
            return
        numbers = _numbers(self._there[x])
        ends = []
        for place, value in enumerate(self._there[x]):
            measured = [v for o in _with(group, x, value) if (v := self._end(o)) is not None]
            if measured:
                ends.append((float(place) if numbers is None else numbers[place], *spread(measured)))
        if ends:
            look |= {"marker": MARKERS[k % len(MARKERS)], "markersize": 4}
            at, median, low, high = np.array(ends).T
            self._band(panel, at, median, low, high, look)

    def _end(self, outcome: Outcome) -> float | None:
        """Return the value of a run at its end, or what it took to reach the target."""
        if self._target is None:
            return outcome.measures.get(self._y)
        at = outcome.reached(self._target)
        return math.inf if at is None else at[self._figure.cost == "bytes_up"]

    def _band(
        self, panel: Axes, x: Numbers, median: Numbers, low: Numbers, high: Numbers, look: Mapping[str, Any]
    ) -> None:
        floor = _FLOOR if self._log else -np.inf
        median, low, high = (np.clip(self._scale * v, floor, _OFF) for v in (median, low, high))
        panel.plot(x, np.where(median < _OFF, median, np.nan), **look)
        panel.fill_between(x, low, high, where=low < _OFF, color=look["color"], alpha=0.18, linewidth=0)

    def _dress(self, panel: Axes) -> None:
        """Set scales, ticks and grid."""
        if self._log:
            panel.set_yscale("log", nonpositive="mask")
            if self._target is not None:  # a decade or two: plain numbers
                panel.yaxis.set_major_formatter(_Plain())
                panel.yaxis.set_minor_formatter(_Plain())
        if self._ends:
            values = self._there[self._figure.x]
            numbers = _numbers(values)
            if numbers is None:
                panel.set_xticks(range(len(values)), values)
            elif min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
                panel.set_xscale("log")
                if max(numbers) / min(numbers) < 1000:  # one or two decades have too few default ticks
                    panel.set_xticks(numbers, values)
                    panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(which="both", labelsize=8)
        panel.grid(visible=True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)

    def _limit(self, panels: Sequence[Axes]) -> None:
        """Set the range of y for all panels: the given one, or one in which diverging runs do not flatten the rest."""
        if self._figure.limits is not None and self._y == self._figure.y:
            panels[0].set_ylim(*self._figure.limits)
        elif not self._log:
            panels[0].set_ylim(0, 102)
        else:
            curves = [np.asarray(line.get_ydata(), dtype=float) for panel in panels for line in panel.lines]
            curves = [c[np.isfinite(c) & (c > 0)] for c in curves]
            curves = [c for c in curves if c.size]
            if curves:
                most = math.inf if self._ends else _MOST * max(c[0] for c in curves)
                panels[0].set_ylim(min(c.min() for c in curves) / 2, 2 * min(max(c.max() for c in curves), most))

    def _legend(self, canvas: Canvas, lines: Sequence[str | None], styles: Sequence[str | None]) -> None:
        """Explain colours and styles below the panels."""
        handles = []
        for k, name in enumerate(self._named(self._figure.lines, lines)):
            mark: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "markersize": 4} if self._ends else {}
            handles.append(Line2D([], [], color=COLOURS[k % len(COLOURS)], label=name, **mark))
        for m, name in enumerate(self._named(self._figure.styles, styles)):
            handles.append(Line2D([], [], color="0.3", linestyle=STYLES[m % len(STYLES)], label=name))
        if handles:
            columns = min(len(handles), 5)
            canvas.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)

    @staticmethod
    def _named(axis: str | None, values: Sequence[str | None]) -> list[str]:
        return [f"{axis}: {value}" for value in values if value is not None]


class _Plain(LogFormatter):
    """Ticks of a log axis as plain numbers: 0.6 and not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of the tick at x; empty if there is no room for it."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def _with(outcomes: Sequence[Outcome], axis: str | None, value: str | None) -> list[Outcome]:
    """Return the runs with this value; all without an axis or a value."""
    if axis is None or value is None:
        return list(outcomes)
    return [outcome for outcome in outcomes if outcome.run.cell.has({axis: value})]


def _numbers(values: Sequence[str]) -> list[float] | None:
    """Return the values as numbers, if they are."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None
