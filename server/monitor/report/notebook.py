"""Runs as a notebook shows them: the main numbers and the curves, as a piece of HTML.

It has no scripts and asks for nothing from the network; whatever clients chose, such as their names, is escaped.
"""

from collections.abc import Sequence

from experiment.explain import title
from server.monitor.curves import LABELS
from server.monitor.report import charts
from server.monitor.report.reading import Run
from server.monitor.report.several import MOST_ROWS, comparison_curves, finals, grouped
from server.monitor.report.single import run_curves, status_line, tiles
from server.monitor.report.templates import page

_AGAINST = "round"


def of_run(run: Run) -> str:
    """Return one run as HTML: how it ended, its numbers, and its curves against rounds."""
    return page(
        "run-fragment",
        heading=run.path.absolute().name if run.config is None else title(run.config),
        status=status_line(run),
        ended=run.status,
        folder=run.path,
        tiles=list(tiles(run)),
        figures=[figure for figure in run_curves(run) if figure["against"] == _AGAINST],
    )


def of_several(runs: Sequence[Run]) -> str:
    """Return several runs as HTML: one line of the charts and one row of a table for each setting."""
    groups = grouped(runs)
    drawn = groups[: charts.MOST_LINES]
    measures = [measure for measure in LABELS if any(run.has(measure) for run in runs)]
    return page(
        "runs-fragment",
        legend=[(charts.swatch(slot), group.label) for slot, group in enumerate(drawn)],
        figures=[figure for figure in comparison_curves(drawn) if figure["against"] == _AGAINST],
        finals=finals(groups[:MOST_ROWS], measures),
        labels=[LABELS[measure] for measure in measures],
    )
