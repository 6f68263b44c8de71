"""The report of one run: what it was, how it went, what it cost, who stands out, and the end of its log."""

from collections.abc import Iterator, Mapping
from html import escape

import numpy as np

from experiment.explain import sentences, title
from foundation.units import duration, size
from server.monitor import curves as bands
from server.monitor.curves import Numbers, X
from server.monitor.report import charts, markup
from server.monitor.report.charts import Dots, Line, Scale
from server.monitor.report.markup import name, safe
from server.monitor.report.reading import Run
from server.monitor.suspects import STATEMENT, Suspect

POINTS = 500
"""Of a curve at most about so many are drawn."""
MOST_CLIENTS = 100
"""So many clients are in the table, the most suspicious ones."""
LOG_LINES = 50
_LEGEND = (
    "Distance: of a client\N{RIGHT SINGLE QUOTATION MARK}s vector to the aggregate, in units of the "
    "round\N{RIGHT SINGLE QUOTATION MARK}s median; the median over rounds. Cosine: its agreement with the aggregate; "
    "the median over rounds. Kept: the share of its length that clipping left, on average. Same: rounds in which it "
    "sent exactly what a few others sent. Nothing is done with the score: nobody is banned."
)
AGAINST: tuple[tuple[str, X], ...] = (("round", "round"), ("bytes", "bytes_up"), ("seconds", "seconds"))
"""The horizontal axes: the word in the page, and the name in ``server.monitor.curves``."""
NONE = "\N{EN DASH}"
"""Stands where there is no number."""
GAP = "f(x) \N{MINUS SIGN} f*"


def document(run: Run) -> str:
    """Return the page of a run."""
    head = run.path.absolute().name if run.config is None else title(run.config)
    body = [
        f"<h1>{safe(head)}</h1>",
        f'<p><strong class="{safe(run.status, 20)}">{_status(run)}</strong> '
        f'<span class="soft">Run folder {safe(run.path.absolute())}</span></p>',
        *_warnings(run),
        markup.tiles(_figures(run)),
        markup.section("config", "What was run", *_config(run)),
        markup.section("curves", "How it went", *_curves(run)),
        markup.section("costs", "Bytes and seconds of a round", *_costs(run)),
        markup.section("clients", "Who attacked", *_clients(run)),
        markup.section("log", "End of the server\N{RIGHT SINGLE QUOTATION MARK}s log", *_log(run)),
        markup.section("versions", "Versions", *_versions(run)),
    ]
    return markup.page(f"Breakwater report: {head}", filter(None, body))


def scale_of(x: X, most: float) -> Scale:
    """Return the horizontal axis for curves that go up to this."""
    if x == "round":
        return charts.from_zero(charts.rounds_scale(), most)
    if x == "seconds":
        return charts.from_zero(charts.seconds_scale("time in rounds", most), most)
    return charts.from_zero(charts.bytes_scale("bytes up, all clients", most), most)


def measure_scale(measure: str, values: Numbers) -> Scale:
    """Return the vertical axis of a measure that takes these values."""
    if measure == "accuracy":
        return Scale("accuracy (%)", 0.01, limits=(0.0, 102.0))
    return Scale(GAP if measure == "gap" else "loss", log=charts.wants_log(values, 5.0 if measure == "gap" else 20.0))


def shown(measure: str, value: float | None) -> str:
    """Return a measure for people."""
    if value is None:
        return NONE
    if measure == "accuracy":
        return f"{100 * value:.1f} %"
    return f"{value:.2e}" if measure == "gap" else f"{value:.4g}"


def _status(run: Run) -> str:
    """Return how the run ended, in words."""
    last = run.rounds[-1]["round"] if run.rounds else 0
    of = f" of {run.planned:,}" if run.planned is not None else ""
    match run.status:
        case "finished":
            return f"Finished: all {last:,} rounds.{_worse(run)}"
        case "diverged":
            return f"Diverged in round {last:,}{of}: model or loss was not finite any more."
        case "stalled":
            return f"Stalled after round {last:,}{of}.{_stall(run)}"
        case "interrupted":
            return f"Interrupted after round {last:,}{of}."
        case "going":
            return f"Still running: round {last:,}{of} when this page was written."
        case "killed":
            return f"Ended without a word after round {last:,}{of}: killed, or the machine went down."
        case other:
            return f"{safe(other, 200)} after round {last:,}{of}."


def _stall(run: Run) -> str:
    """Say why a run stalled, and of which round its model is."""
    stall = (run.summary or {}).get("stall")
    if not isinstance(stall, dict):
        return ""
    why = str(stall.get("text", "")).removeprefix("stalled: ")
    return (
        f" {safe(why[:1].upper() + why[1:], 600)}. The model is that of round {safe(stall.get('model_of', '?'), 20)}."
    )


def _worse(run: Run) -> str:
    """Say so where a run came to its end with less than it began with; "" if not."""
    for measure in ("gap", "loss"):
        first, last = (run.start or {}).get(measure), run.last(measure)
        if first is not None and last is not None:
            word = GAP if measure == "gap" else "loss"
            return f" But {word} grew, from {shown(measure, first)} to {shown(measure, last)}." if last > first else ""
    return ""


def _warnings(run: Run) -> Iterator[str]:
    """Yield what a reader must know before believing the curves."""
    failure = (run.summary or {}).get("attack_failure")
    if isinstance(failure, dict):
        yield (
            '<p class="warning"><strong>The attack failed</strong> in '
            f"{safe(failure.get('replies', '?'), 20)} replies: "
            f"{safe(failure.get('reason', ''), 300)}. They are missing, so this run does not show what the method "
            "withstands.</p>"
        )
    incomplete = [record["round"] for record in run.rounds if record.get("incomplete")]
    if incomplete:
        first = ", ".join(f"{round_:,}" for round_ in incomplete[:20]) + (", ..." if len(incomplete) > 20 else "")
        plural = "s" if len(incomplete) > 1 else ""
        yield (
            f'<p class="warning">{len(incomplete):,} incomplete round{plural}: fewer replies than the quorum came, so '
            f"that none was used (round{plural} {first}).</p>"
        )


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the figures at the top."""
    last = run.rounds[-1]["round"] if run.rounds else 0
    yield "rounds", f"{last:,}"
    if run.summary is not None and "wall_s" in run.summary:
        yield "time", duration(float(run.summary["wall_s"]))
    else:
        yield "time in rounds", duration(run.total("seconds"))
    measured = {key for record in run.rounds for key in ("gap", "loss", "accuracy") if key in record}
    for measure, word in (("accuracy", "accuracy"), ("gap", GAP), ("loss", "loss")):
        if measure in measured:
            value = run.last(measure)
            yield word, "not finite" if value is None and run.status == "diverged" else shown(measure, value)
    yield "bytes up", size(int(run.total("bytes_up")))
    yield "bytes down", size(int(run.total("bytes_down")))
    yield "replies rejected", f"{sum(run.rejected.values()):,}"
    if incomplete := sum(bool(record.get("incomplete")) for record in run.rounds):
        yield "incomplete rounds", f"{incomplete:,}"


def _config(run: Run) -> Iterator[str]:
    if run.config is not None:
        yield markup.words(sentences(run.config, run.task))
    elif run.text:
        yield "<p>This version of Breakwater cannot read the config.</p>"
    if run.text:
        yield markup.details("The whole config, every value resolved", markup.preformatted(run.text, "config.toml"))
    else:
        yield "<p>The run folder has no config.toml.</p>"


def _curves(run: Run) -> Iterator[str]:
    """Yield the curves against rounds, bytes and seconds."""
    measures = _measures(run)
    if not measures:
        yield "<p>No model was measured.</p>"
        return
    yield markup.against()
    figures = []
    for measure in measures:
        for key, x in AGAINST:
            c = bands.curve(run.rounds, x, measure, start=run.start, diverged=run.status == "diverged")
            y = measure_scale(measure, c.y)
            xs = scale_of(x, run.total(x))
            about = f"{y.label} against {xs.label}: from {_ends(measure, c.y)}"
            svg = charts.curves([Line(*charts.thinned(c.x, c.y, POINTS))], xs, y, f"{measure}-{key}", about)
            caption = f"<b>{escape(y.label)}</b> against {escape(xs.label)}"
            figures.append(markup.figure(svg, caption, f"x-{key}"))
    yield f'<div class="grid">{"".join(figures)}</div>'
    if run.status == "diverged":
        yield "<p>A cross marks the last finite value before the run diverged.</p>"


def _measures(run: Run) -> list[str]:
    """Return what there is to draw, the objective first."""
    known = {
        key
        for record in (*run.rounds, run.start or {})
        for key in ("gap", "loss", "accuracy")
        if record.get(key) is not None
    }
    objective = "gap" if "gap" in known else "loss"
    return [measure for measure in (objective, "accuracy") if measure in known]


def _ends(measure: str, y: Numbers) -> str:
    known = y[np.isfinite(y)]
    if known.size == 0:
        return "nothing finite"
    return f"{shown(measure, float(known[0]))} to {shown(measure, float(known[-1]))}"


def _costs(run: Run) -> Iterator[str]:
    """Yield what each round took, by kind of round."""
    if not run.rounds:
        return
    kinds: dict[str, list[Mapping[str, float]]] = {}
    for record in run.rounds:
        kinds.setdefault(str(record.get("kind", "")), []).append(record)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    figures = []
    for key, what in (("bytes_up", "bytes up"), ("bytes_down", "bytes down"), ("round_s", "seconds")):
        dots = [
            Dots(kind, _column(records, "round"), _column(records, key), slot)
            for slot, (kind, records) in enumerate(ordered)
        ]
        (low, top), log = charts.robust_limits([d.y for d in dots])
        label = "time of a round" if key == "round_s" else f"{what} in a round"
        scale = (charts.seconds_scale if key == "round_s" else charts.bytes_scale)(label, top, log=log)
        scale = Scale(scale.label, scale.unit, log, (low / scale.unit, top / scale.unit))
        amounts = "; ".join(f"{safe(d.label)} {_amount(key, float(np.median(d.y)))}" for d in dots)
        caption = f"<b>{escape(scale.label)}</b>, median: {amounts}"
        above = [(float(d.y.max()), int(d.x[d.y.argmax()])) for d in dots if d.y.size and d.y.max() > top]
        if above:
            most, where = max(above)
            caption += f". Triangles are beyond the axis: up to {_amount(key, most)}, round {where:,}"
        svg = charts.per_round(dots, charts.rounds_scale(), scale, key.replace("_", "-"), f"{label}, median: {amounts}")
        figures.append(markup.figure(svg, caption))
    yield f'<div class="grid">{"".join(figures)}</div>'
    if any(len(records) > charts.DOTS for records in kinds.values()):
        yield "<p><small>Lines are medians over stretches of rounds, shades their least and greatest.</small></p>"


def _column(records: list[Mapping[str, float]], key: str) -> Numbers:
    return np.array([record.get(key) or 0.0 for record in records], dtype=np.float64)


def _amount(key: str, value: float) -> str:
    if key != "round_s":
        return size(int(value))
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _clients(run: Run) -> Iterator[str]:
    """Yield the table of clients, the most suspicious first, and the rejections by reason."""
    if not run.suspects:
        return
    listed = run.suspects[:MOST_CLIENTS]
    columns = [column for column in _COLUMNS if column[0] not in _OPTIONAL or any(_known(s, column[0]) for s in listed)]
    rows = [[cell(suspect) for _, _, cell in columns] for suspect in listed]
    more = len(run.suspects) - len(listed)
    caption = "Clients, the most suspicious first" + (f"; {more:,} more are in metrics.jsonl" if more else "")
    yield markup.table(caption, [(mark, head) for head, mark, _ in columns], rows)
    yield f"<p>{safe(STATEMENT)}</p>"
    yield f"<p><small>{_LEGEND}</small></p>"
    if run.rejected:
        reasons = sorted(run.rejected.items(), key=lambda item: (-item[1], item[0]))
        rows = [[safe(reason, 80), f"{count:,}"] for reason, count in reasons[:40]]
        yield "<h3>Rejected, by reason</h3>"
        yield markup.table("Replies that did not count, all clients", [("text", "reason"), ("", "replies")], rows)
    else:
        yield "<p>No reply was rejected.</p>"


def _known(suspect: Suspect, head: str) -> bool:
    return getattr(suspect, head) not in (None, 0, "")


def _reasons(suspect: Suspect) -> str:
    told = sorted(suspect.rejected.items(), key=lambda item: (-item[1], item[0]))
    return "<br>".join(f"{safe(reason, 80)}: {count:,}" for reason, count in told[:8]) or NONE


def _digits(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


_COLUMNS = (
    ("client", "text", lambda s: name(s.name)),
    ("score", "", lambda s: f"<b>{_digits(s.score, '.1f')}</b>"),
    ("because", "text", lambda s: safe(s.because, 80) or NONE),
    ("sampled", "", lambda s: f"{s.sampled:,}"),
    ("answered", "", lambda s: f"{s.answered:,}"),
    ("late", "", lambda s: f"{s.late:,}"),
    ("rejected", "text", _reasons),
    ("clipped", "", lambda s: f"{s.clipped:,}"),
    ("kept", "", lambda s: NONE if s.kept is None else f"{100 * s.kept:.0f} %"),
    ("distance", "", lambda s: _digits(s.distance, ".3g")),
    ("cosine", "", lambda s: _digits(s.cosine, ".2f")),
    ("weight", "", lambda s: _digits(s.weight, ".3g")),
    ("same", "", lambda s: f"{s.same:,}"),
)
"""Heading, class and content of each column; the heading is also the name in ``Suspect``."""
_OPTIONAL = ("kept", "distance", "cosine", "weight", "same", "score", "because")
"""Columns that are left out where no client has anything in them."""


def _log(run: Run) -> Iterator[str]:
    lines = run.log_tail(LOG_LINES)
    if lines is None:
        yield "<p>The run folder has no log of the server.</p>"
    elif lines:
        text = markup.preformatted("\n".join(lines), f"the last {len(lines)} lines of logs/server.log")
        yield f'<div class="tail">{text}</div>'
    else:
        yield "<p>The log is empty: nothing out of the ordinary happened.</p>"


def _versions(run: Run) -> Iterator[str]:
    versions = (run.summary or {}).get("versions")
    if isinstance(versions, dict) and versions:
        yield f"<p>{', '.join(f'{safe(key, 40)} {safe(value, 40)}' for key, value in versions.items())}</p>"
    else:
        yield "<p>Unknown: the run has not ended in order.</p>"
    lives = (run.summary or {}).get("lives", 1)
    if isinstance(lives, int) and lives > 1:
        yield f"<p>The server was started {lives} times for this run.</p>"
