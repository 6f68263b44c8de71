"""The report of one run: what it was, how it went, what it cost, who stands out, and the end of its log."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiment.explain import sentences, title
from foundation.text import escaped
from foundation.units import duration, size
from server.monitor.curves import LABELS, SHARES, Numbers, X
from server.monitor.report import charts
from server.monitor.report.charts import Dots, Line, Scale
from server.monitor.report.reading import Run
from server.monitor.report.templates import NONE, page
from server.monitor.suspects import STATEMENT
from server.run_folder.record import CLAIMED
from strategies.claims import Claim
from strategies.strategy import RoundRecord

POINTS = 500
"""About this many points of a curve are drawn at most."""
MOST_CLIENTS = 100
"""At most this many clients are in the table, the most suspicious ones."""
LOG_LINES = 50
AGAINST: tuple[tuple[str, X], ...] = (("round", "round"), ("bytes", "bytes_up"), ("seconds", "seconds"))
"""The horizontal axes: the word in the page, and the name in ``server.monitor.curves``."""

_TEXTS = ("client", "because", "rejected")
_ALWAYS = ("client", "sampled", "replied", "accepted", "late", "rejected", "clipped")
"""Columns of the table of clients that are there even where they are empty."""
_COLUMNS = (
    *("client", "score", "because", "sampled", "replied", "accepted", "late", "rejected", "clipped"),
    *("kept", "distance", "cosine", "weight", "same"),
)


def document(run: Run) -> str:
    """Return the page of a run."""
    summary = run.summary or {}
    failure, versions = summary.get("attack_failure"), summary.get("versions")
    starts = summary.get("starts", summary.get("lives"))
    clients = run.suspects[:MOST_CLIENTS]
    filled = {head for head in _COLUMNS if any(getattr(each, head, None) not in (None, 0, "") for each in clients)}
    heads = [head for head in _COLUMNS if head in _ALWAYS or head in filled]
    kinds = _by_kind(run.rounds)
    return page(
        "single",
        run=run,
        heading=run.path.absolute().name if run.config is None else title(run.config),
        folder=run.path.absolute(),
        status=status_line(run),
        failure={"replies": "?", "reason": "", **failure} if isinstance(failure, dict) else None,
        incomplete=[record.round for record in run.rounds if record.incomplete],
        tiles=list(tiles(run)),
        sentences=None if run.config is None else sentences(run.config, run.task),
        curves=list(run_curves(run)),
        costs=list(_costs(kinds)),
        stretched=any(len(records) > charts.DOTS for records in kinds.values()),
        clients=clients,
        columns=[("text" if head in _TEXTS else "", head) for head in heads],
        statement=STATEMENT,
        claims=_claims(run),
        claimed=run.claimed,
        log=run.log_tail(LOG_LINES),
        versions=versions if isinstance(versions, dict) else None,
        other_code=_other_code(summary.get("code")),
        starts=starts if isinstance(starts, int) else 1,
    )


def _other_code(code: Any) -> dict[str, Any]:
    """Return which code those clients run that do not run the server's, by name."""
    clients = code.get("clients") if isinstance(code, dict) else None
    return dict(list(clients.items())[:MOST_CLIENTS]) if isinstance(clients, dict) else {}


def _claims(run: Run) -> dict[str, Any] | None:
    """Return what clients claimed when they were last asked, for the page; None where they never were."""
    if run.claims is None:
        return None
    round_, claims = run.claims
    figures = {name: getattr(claims, name) for name in CLAIMED}
    named = {name: Claim(math.nan) for name in claims.missing} | dict(claims.clients)
    rows = [
        (name, *(shown(each, getattr(claim, each)) for each in CLAIMED), claim.samples, claims.missing.get(name, ""))
        for name, claim in sorted(named.items())[:MOST_CLIENTS]
    ]
    return {
        "round": round_,
        "shortage": claims.shortage,
        "figures": [
            (name, shown(name, found.median), *(shown(name, end) for end in (found.low, found.high)))
            for name, found in figures.items()
            if found is not None
        ],
        "rows": rows,
        "more": len(named) - len(rows),
    }


def scale_of(x: X, most: float) -> Scale:
    """Return the horizontal axis for curves that go up to this."""
    if x == "seconds":
        return charts.from_zero(charts.seconds_scale("time in rounds", most), most)
    scale = charts.rounds_scale() if x == "round" else charts.bytes_scale("bytes up, all clients", most)
    return charts.from_zero(scale, most)


def measure_scale(measure: str, values: Numbers) -> Scale:
    """Return the vertical axis of a measure that takes these values."""
    if measure in SHARES:
        return Scale(f"{LABELS[measure]} (%)", 0.01, limits=(0.0, 102.0))
    return Scale(LABELS[measure], log=charts.wants_log(values, 5.0 if measure == "gap" else 20.0))


def shown(measure: str, value: float | None) -> str:
    """Return a measure for people."""
    if value is None or math.isnan(value):
        return NONE
    if measure in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.2e}" if measure == "gap" else f"{value:.4g}"


def drawn(runs: Sequence[Run]) -> Iterator[tuple[str, str, X]]:
    """Yield measure and axis of each chart: the objective first; its gap only if every run that was measured knows it.

    The axis is given twice: as the page names it, and as ``server.monitor.curves`` does.
    """
    known = [run for run in runs if run.has("loss")]
    for measure in ("gap" if known and all(run.has("gap") for run in known) else "loss", "accuracy", "trigger"):
        for key, x in AGAINST if any(run.has(measure) for run in runs) else ():
            yield measure, key, x


def figure(lines: Sequence[Line], measure: str, key: str, x: Scale, values: Numbers, about: str) -> dict[str, str]:
    """Return a chart of a measure that takes these values, for the page."""
    y = measure_scale(measure, values)
    svg = charts.curves(lines, x, y, f"{measure}-{key}", f"{y.label} against {x.label}{about}")
    return {"against": key, "x": x.label, "y": y.label, "svg": svg}


def status_line(run: Run) -> str:
    """Return how the run ended, in words."""
    last = run.rounds[-1].round if run.rounds else 0
    of = f" of {run.planned:,}" if run.planned is not None else ""
    known = {
        "finished": f"Finished: all {last:,} rounds.{_worse(run)}",
        "diverged": f"Diverged in round {last:,}{of}: the model or the loss is no longer finite.",
        "stalled": f"Stalled after round {last:,}{of}.{_stall(run)}",
        "going": f"Still running: round {last:,}{of} when this page was written.",
        "killed": f"Terminated unexpectedly after round {last:,}{of}: the server was killed, or the machine went down.",
    }
    return known.get(run.status, f"{run.status[:1].upper()}{run.status[1:200]} after round {last:,}{of}.")


def _stall(run: Run) -> str:
    """Say why a run stalled, and of which round its model is."""
    stall = (run.summary or {}).get("stall")
    if not isinstance(stall, dict):
        return ""
    why = str(stall.get("text", "")).removeprefix("stalled: ")[:600]
    return f" {why[:1].upper()}{why[1:]}. The model is that of round {str(stall.get('model_of', '?'))[:20]}."


def _worse(run: Run) -> str:
    """Return a sentence if the run ended worse than it began; else ""."""
    for measure in ("gap", "loss"):
        first, last = getattr(run.start, measure, None), run.last(measure)
        if first is not None and last is not None:
            grew = f" But {LABELS[measure]} grew, from {shown(measure, first)} to {shown(measure, last)}."
            return grew if last > first else ""
    return ""


def tiles(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the numbers at the top."""
    yield "rounds", f"{run.total('round'):,.0f}"
    wall_s = (run.summary or {}).get("wall_s")
    in_rounds = "time in rounds", duration(run.total("seconds"))
    yield in_rounds if wall_s is None else ("time", duration(float(wall_s)))
    for measure, label in LABELS.items():
        if any(getattr(record.headline, measure, None) is not None for record in run.rounds):
            value = run.last(measure)
            yield (
                label + " (claimed)" * run.claimed,
                "not finite" if value is None and run.status == "diverged" else shown(measure, value),
            )
    yield "bytes up", size(run.total("bytes_up"))
    yield "bytes down", size(run.total("bytes_down"))
    yield "replies rejected", f"{sum(run.rejected.values()):,}"
    if incomplete := sum(record.incomplete for record in run.rounds):
        yield "incomplete rounds", f"{incomplete:,}"


def run_curves(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the curves against rounds, bytes and seconds, those of the objective first."""
    for measure, key, x in drawn([run]):
        c = run.curve(x, measure)
        known = c.y[np.isfinite(c.y)]
        ends = " to ".join(shown(measure, float(each)) for each in known[[0, -1]]) if known.size else "nothing finite"
        line = Line(*charts.thinned(c.x, c.y, POINTS))
        yield figure([line], measure, key, scale_of(x, run.total(x)), c.y, f": from {ends}")


def _by_kind(rounds: Sequence[RoundRecord]) -> dict[str, list[RoundRecord]]:
    """Return the rounds of each kind, the most frequent one first."""
    kinds: dict[str, list[RoundRecord]] = {}
    for record in rounds:
        kinds.setdefault(record.kind, []).append(record)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _costs(kinds: Mapping[str, list[RoundRecord]]) -> Iterator[dict[str, Any]]:
    """Yield what each round took, by kind of round."""
    costs = {"bytes_up": "bytes up in a round", "bytes_down": "bytes down in a round", "round_s": "time of a round"}
    for key, label in costs.items() if kinds else ():
        columns = [(escaped(kind[:80]), _column(each, "round"), _column(each, key)) for kind, each in kinds.items()]
        dots = [Dots(*column, slot) for slot, column in enumerate(columns)]
        (low, top), log = charts.robust_limits([d.y for d in dots])
        scale = (charts.seconds_scale if key == "round_s" else charts.bytes_scale)(label, top, log=log)
        scale = replace(scale, limits=(low / scale.unit, top / scale.unit))
        medians = "; ".join(f"{d.label} {_amount(key, float(np.median(d.y)))}" for d in dots)
        most, where = max((float(d.y.max()), int(d.x[d.y.argmax()])) for d in dots)
        about = f"{label}, median: {medians}"
        svg = charts.per_round(dots, charts.rounds_scale(), scale, key.replace("_", "-"), about)
        above = (_amount(key, most), where) if most > top else None
        yield {"label": scale.label, "medians": medians, "svg": svg, "above": above}


def _column(records: list[RoundRecord], key: str) -> Numbers:
    return np.array([getattr(record, key) for record in records], dtype=np.float64)


def _amount(key: str, value: float) -> str:
    if key != "round_s":
        return size(value)
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
