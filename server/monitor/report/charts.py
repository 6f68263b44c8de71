"""The charts of a report: matplotlib draws them, as SVG elements for the page.

They are drawn for a phone, about 420 CSS pixels wide, and any number of them fit side by side on a desktop. Colours are
the page's own (``var(--c0)``, ``currentColor``), so that light and dark pages need one drawing only. The same runs
give the same text: no dates, no random names.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from foundation.text import escaped
from server.monitor.curves import Numbers

WIDTH, HEIGHT = 420, 256
"""Of a chart, in its own units; a phone shows it at 0.8 to 0.9 of that."""
FONT = 11.5
"""Size of all text, in the same units: nothing comes out below 9 CSS pixels on a phone of 360."""
COLOURS = 6
"""How many the page defines, as ``--c0`` ..; beyond them the line style differs."""
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
DASHES = ("", "7 3", "1.8 2.2", "8 3 1.8 3")
"""The same styles as SVG has them, for the legend in the page."""
MOST_LINES = COLOURS * len(STYLES)
"""More lines than that cannot be told apart."""
MARKED = 40
"""With no more points than that each gets a mark."""
DOTS = 240
"""With more rounds of a kind than that, stretches of rounds are drawn in place of each."""
LOG_FROM = 20.0
"""The ratio of the largest to the least value from which a loss is drawn on a log scale."""

_INK, _GRID, _SERIES = "#010203", "#010204", "#0102{:02x}"  # stand for the page's colours until the SVG is written
_LEGEND: Any = {"frameon": False, "borderpad": 0, "handlelength": 1.6, "columnspacing": 1.2}
_RC: Any = {
    "svg.fonttype": "none",  # the page's own font; that of the measurements is wider than most
    "svg.hashsalt": "breakwater",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "text.parse_math": False,
}


@dataclass(frozen=True, eq=False)
class Line:
    """A curve, and the range around it where it shows several runs.

    Args:
        x: ascending, shape (points,).
        y: same shape; infinite from where a run had diverged.
        slot: which colour and style.
        low: the lowest of the runs; None for one run.
        high: the highest.
    """

    x: Numbers
    y: Numbers
    slot: int = 0
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Scale:
    """An axis.

    Args:
        label: what is measured, with its unit.
        unit: in which the data are divided by.
        log: a logarithmic scale.
        limits: of the axis, in its unit; None to fit the data.
        whole: ticks at whole numbers alone.
    """

    label: str
    unit: float = 1.0
    log: bool = False
    limits: tuple[float, float] | None = None
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Dots:
    """One value a round, of rounds of one kind.

    Args:
        label: of the kind.
        x: the rounds, ascending.
        y: the values.
        slot: which colour.
    """

    label: str
    x: Numbers
    y: Numbers
    slot: int


def rounds_scale() -> Scale:
    return Scale("round", whole=True)


def from_zero(scale: Scale, most: float) -> Scale:
    """Return the axis from 0 to this, with a little room."""
    most = most / scale.unit or 1.0
    return replace(scale, limits=(-0.02 * most, 1.03 * most))


def bytes_scale(label: str, most: float, *, log: bool = False) -> Scale:
    """Return an axis of bytes, in the unit that suits the largest of them."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    unit, name = next((each for each in units if most >= each[0]), units[-1])
    return Scale(f"{label} ({name})", unit, log)


def seconds_scale(label: str, most: float, *, log: bool = False) -> Scale:
    """Return an axis of time, in the unit that suits the longest."""
    for unit, name, least in ((3600.0, "h", 7200.0), (60.0, "min", 600.0), (1.0, "s", 0.5)):
        if most >= least:
            return Scale(f"{label} ({name})", unit, log)
    return Scale(f"{label} (ms)", 1e-3, log)


def wants_log(values: Numbers, ratio: float = LOG_FROM) -> bool:
    """Return whether positive values are too far apart for a linear scale; infinite ones are left out."""
    known = values[np.isfinite(values)]
    known = known[known > 0]
    return bool(known.size > 1 and known.max() / known.min() > ratio)


def thinned(x: Numbers, y: Numbers, most: int) -> tuple[Numbers, Numbers]:
    """Return at most about ``most`` of the points: the extremes of each stretch, the first and the last."""
    if x.size <= most:
        return x, y
    cuts = np.linspace(0, x.size, max(1, most // 2) + 1).astype(int)
    kept = {0, x.size - 1}
    for a, b in pairwise(cuts):
        if not np.isnan(part := y[a:b]).all():
            kept |= {a + int(np.nanargmin(part)), a + int(np.nanargmax(part))}
    order = np.array(sorted(kept))
    return x[order], y[order]


def curves(lines: Sequence[Line], x: Scale, y: Scale, name: str, about: str) -> str:
    """Draw curves.

    Args:
        lines: at most ``MOST_LINES``.
        x: the horizontal axis.
        y: the vertical axis.
        name: begins the ids inside the SVG; no other chart of the page may have it.
        about: a description for screen readers.

    Returns:
        An ``<svg>`` element.
    """

    def paint(axes: Axes) -> None:
        top, bottom = _span([v for line in lines for v in (line.y, line.low, line.high) if v is not None], y)
        for line in lines:
            style = STYLES[(line.slot % COLOURS + line.slot // COLOURS) % len(STYLES)] if len(lines) > 1 else "-"
            colour, xs = _SERIES.format(0x10 + line.slot % COLOURS), line.x / x.unit
            ys = np.where(np.isfinite(line.y), line.y, np.nan) / y.unit
            if y.log:
                ys = np.where(ys > 0, ys, np.nan)
            if line.low is not None and line.high is not None:
                low, high = (np.clip(v / y.unit, bottom, top) for v in (line.low, line.high))
                axes.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
            epoch = "o" if np.isfinite(ys).sum() <= MARKED else ""
            axes.plot(xs, ys, color=colour, linestyle=style, linewidth=1.8, marker=epoch, markersize=3.4)
            if np.isinf(line.y).any():  # the run had diverged: where its curve ends
                known = np.flatnonzero(np.isfinite(ys))
                if known.size:
                    axes.plot(xs[known[-1]], ys[known[-1]], color=colour, marker="x", markersize=8, markeredgewidth=2)
        if top > bottom:
            axes.set_ylim(bottom, top)

    return _svg(paint, x, y, name, about)


def per_round(kinds: Sequence[Dots], x: Scale, y: Scale, name: str, about: str) -> str:
    """Draw what each round took: dots, or where there are many their median and range over stretches of rounds.

    Args:
        kinds: the rounds of each kind.
        x: the horizontal axis.
        y: the vertical axis, with limits; what lies above them is marked at the edge.
        name: begins the ids inside the SVG; no other chart of the page may have it.
        about: a description for screen readers.

    Returns:
        An ``<svg>`` element.
    """

    def paint(axes: Axes) -> None:
        for order, dots in enumerate(kinds):
            colour, ys = _SERIES.format(0x10 + dots.slot % COLOURS), dots.y / y.unit
            epoch = "os^Dvx"[order % 6]
            if dots.x.size <= DOTS:
                axes.plot(dots.x, ys, color=colour, marker=epoch, markersize=3.4, linestyle="", label=dots.label)
            else:
                middle, median, low, high = _stretches(dots.x, ys, 120)
                axes.fill_between(middle, low, high, color=colour, alpha=0.3, linewidth=0)
                style = STYLES[order % len(STYLES)]
                axes.plot(middle, median, color=colour, linestyle=style, linewidth=1.8, label=dots.label)
            if y.limits is not None:
                above = np.flatnonzero(ys > y.limits[1])
                above = above[np.argsort(-ys[above], kind="stable")][:12]
                edge = np.full(above.size, y.limits[1])
                axes.plot(dots.x[above], edge, color=colour, marker=6, markersize=7, linestyle="", clip_on=False)
        if len(kinds) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1.01, 1.0), ncols=len(kinds), labelcolor=_INK, **_LEGEND)

    return _svg(paint, x, y, name, about, room=20 if len(kinds) > 1 else 0)


def robust_limits(values: Sequence[Numbers]) -> tuple[tuple[float, float], bool]:
    """Return limits that no single value stretches, and whether they want a log scale.

    Args:
        values: those of each kind of round; the bulk of each kind lies within.
    """
    tops, typical = [], []
    for part in values:
        known = part[np.isfinite(part)]
        if known.size == 0:
            continue
        low, median, high = np.percentile(known, (25, 50, 75))
        fence = max(high + 3 * (high - low), 1.5 * median)
        tops.append(min(float(known.max()), fence) if known.size >= 4 else float(known.min()))
        typical.append(float(median))
    if not tops or max(tops) <= 0:
        return (0.0, 1.0), False
    top, least = max(tops), min((v for v in typical if v > 0), default=max(tops))
    if top / least > 30:
        return (least / 3, 1.6 * top), True
    return (0.0, 1.12 * top), False


def swatch(slot: int) -> str:
    """Return a piece of a line as the legend of a page shows it."""
    dash = DASHES[(slot % COLOURS + slot // COLOURS) % len(DASHES)]
    broken = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<path d="M1 5H33" style="stroke: var(--c{slot % COLOURS})" stroke-width="2.6"{broken}/>'
    return f'<svg class="swatch" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">{path}</svg>'


def _span(values: Sequence[Numbers], y: Scale) -> tuple[float, float]:
    """Return the top and the bottom of what is finite, with a little room."""
    if y.limits is not None:
        return y.limits[1], y.limits[0]
    everything = np.concatenate([*values, np.empty(0)]) / y.unit
    known = everything[np.isfinite(everything)]
    if y.log:
        known = known[known > 0]
    if known.size == 0:
        return 1.0, 0.0 if not y.log else 0.1
    low, high = float(known.min()), float(known.max())
    if y.log:
        top, bottom = np.log10(high), np.log10(low)
        room = max(0.05 * (top - bottom), 0.08)
        return float(10 ** min(top + room, 300)), float(10 ** max(bottom - room, -300))
    high, low = min(high, 1e300), max(low, -1e300)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return high + room, low - room


def _stretches(x: Numbers, y: Numbers, count: int) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return middle, median, least and greatest of equal stretches."""
    cuts = np.linspace(0, x.size, count + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(cuts) if b > a]
    rows = [(x[p].mean(), np.median(y[p]), y[p].min(), y[p].max()) for p in parts]
    middle, median, low, high = np.array(rows, dtype=np.float64).T
    return middle, median, low, high


def _svg(paint: Callable[[Axes], None], x: Scale, y: Scale, name: str, about: str, room: int = 0) -> str:
    """Make a figure, let it be painted, and return it as an element for a page."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        left, right, bottom, top = 58, 14, 42, 12 + room
        wide, high = (WIDTH - left - right) / WIDTH, (HEIGHT - bottom - top) / HEIGHT
        axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, wide, high))
        axes.patch.set_visible(False)
        axes.grid(visible=True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        paint(axes)
        axes.set_xlabel(x.label, color=_INK)
        axes.set_ylabel(y.label, color=_INK)
        axes.tick_params(colors=_INK, labelcolor=_INK, length=3)
        _ticks(axes, x, "x")
        _ticks(axes, y, "y")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, about)


def _ticks(axes: Axes, scale: Scale, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if scale.log:
        axes.set_yscale("log", nonpositive="mask")
    if scale.limits is not None:
        (axes.set_xlim if which == "x" else axes.set_ylim)(*scale.limits)
    if scale.log:
        low, high = axes.get_ylim()
        axis.set_major_locator(FixedLocator(_decades(low, high)))
        plain = low >= 1e-3 and high <= 1e5
        axis.set_major_formatter(FuncFormatter(_number if plain else _power))
    else:
        axis.set_major_locator(MaxNLocator(nbins=5, integer=scale.whole, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(_number))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _decades(low: float, high: float) -> list[float]:
    """Return the ticks of a log axis: some powers of ten, and where they are few 2 and 5 times them."""
    bottom, top = math.log10(low), math.log10(high)
    factors = (1.0,) if top - bottom > 2 else (1.0, 2.0, 5.0)
    step = math.ceil((top - bottom) / 6)
    powers = [10.0**k for k in range(math.floor(bottom), math.ceil(top) + 1) if k % step == 0]
    return [factor * power for power in powers for factor in factors if low <= factor * power <= high]


def _power(value: float, _: int | None = None) -> str:
    """Return 1e-3: short, and legible where a small superscript is not."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _number(value: float, _: int | None = None) -> str:
    if abs(value) >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")


def _inline(text: str, name: str, about: str) -> str:
    """Make matplotlib's file an element: unique ids, the page's colours and font, short numbers."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    begin = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(escaped(about))}">'
    text = begin + text[text.index(">") + 1 :]
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    for slot in range(COLOURS):
        text = text.replace(_SERIES.format(0x10 + slot), f"var(--c{slot})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-size: ([\d.]+)px; font-family: [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = re.sub(r"<g([^>]*)>\n((?:<use [^>]*/>\n)+)</g>", _shared_style, text)
    return text.replace("<defs>\n</defs>\n", "").strip()


def _shared_style(found: re.Match[str]) -> str:
    """Move the style of a group of marks to the group, where all marks have the same."""
    styles = set(re.findall(r' style="([^"]*)"', found[2]))
    if len(styles) != 1:
        return found[0]
    marks = re.sub(r' style="[^"]*"', "", found[2])
    return f'<g{found[1]} style="{styles.pop()}">\n{marks}</g>'
