"""Pictures of runs: accuracy, if there is one, and loss (or the gap, where f* is known) against rounds."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from server.monitor.curves import curve
from strategies.method import Evaluation
from strategies.strategy import RoundRecord

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which colour-blind readers can tell apart too."""

Runs = Mapping[str, tuple[Evaluation | None, Sequence[RoundRecord]]]


class Picture(Figure):
    """A figure that a notebook shows, whether pyplot is in use there or not."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=96)
        return out.getvalue()


def draw(runs: Runs, path: Path, title: str = "") -> None:
    """Write the picture of ``picture`` as a PNG file."""
    picture(runs, title).savefig(path, dpi=120)


def picture(runs: Runs, title: str = "") -> Picture:
    """Draw runs side by side.

    Args:
        runs: by label the measures of x^0, where they are known, and the rounds.
        title: above both panels.
    """
    curves = {
        measure: {label: curve(rounds, "round", measure, start=start) for label, (start, rounds) in runs.items()}
        for measure in ("accuracy", "gap", "loss")
    }
    accurate, known = (any(c.x.size for c in curves[measure].values()) for measure in ("accuracy", "gap"))
    measure = "gap" if known else "loss"
    figure = Picture(figsize=(10 if accurate else 5.5, 4), layout="constrained")
    panels = figure.subplots(1, 2 if accurate else 1, squeeze=False)[0]
    for axes, name, scale in zip(panels[::-1], (measure, "accuracy"), (1.0, 100.0), strict=False):
        for (label, c), colour in zip(curves[name].items(), COLOURS * len(runs), strict=False):
            if c.x.size:
                axes.plot(c.x, scale * c.y, label=label, color=colour, marker="o", markersize=3, linewidth=1.6)
        axes.set_xlabel("round")
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left, right = panels[0], panels[-1]
    if accurate:
        left.set(ylabel="accuracy (%)", ylim=(0, 102))
    right.set_ylabel("f(x) \N{MINUS SIGN} f*" if measure == "gap" else "loss")
    if any((line.get_ydata() > 0).any() for line in right.lines):
        right.set_yscale("log", nonpositive="mask")
    if len(runs) > 1:
        left.legend(frameon=False)
    figure.suptitle(title)
    return figure
