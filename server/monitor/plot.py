"""Pictures of runs: accuracy, if there is one, and loss (or the gap, where f* is known) against rounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""


def draw(runs: Mapping[str, tuple[Mapping[str, Any], list[dict[str, Any]]]], path: Path, title: str = "") -> None:
    """Draw runs side by side.

    Args:
        runs: for each label the run's summary and its rounds, as the run folder holds them.
        path: the PNG to write.
        title: above both panels.
    """
    measures = [line for summary, rounds in runs.values() for line in (summary.get("start") or {}, summary, *rounds)]
    accurate = any(line.get("accuracy") is not None for line in measures)
    figure = Figure(figsize=(10 if accurate else 5.5, 4), layout="constrained")
    panels = figure.subplots(1, 2 if accurate else 1, squeeze=False)[0]
    left, right = panels[0], panels[-1]
    measure = "gap" if any("gap" in (summary.get("start") or {}) for summary, _ in runs.values()) else "loss"
    for (label, (summary, rounds)), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        points = [{"round": 0, **(summary.get("start") or {})}, *(r for r in rounds if "loss" in r)]
        if accurate:
            _line(left, points, "accuracy", 100.0, label, colour)
        _line(right, points, measure, 1.0, label, colour)
    if accurate:
        left.set(xlabel="round", ylabel="accuracy (%)", ylim=(0, 102))
    right.set(xlabel="round", ylabel="f(x) \N{MINUS SIGN} f*" if measure == "gap" else "loss")
    if any(line.get_ydata().size and (line.get_ydata() > 0).any() for line in right.lines):
        right.set_yscale("log", nonpositive="mask")
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        left.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _line(axes: Axes, points: list[dict[str, Any]], key: str, scale: float, label: str, colour: str) -> None:
    known = [(p["round"], p[key] * scale) for p in points if p.get(key) is not None]
    if known:
        rounds, values = zip(*known, strict=True)
        axes.plot(rounds, values, label=label, color=colour, marker="o", markersize=3, linewidth=1.6)
