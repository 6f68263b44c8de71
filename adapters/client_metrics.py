"""What clients say about themselves in metrics: screened, and aggregated by the median over clients.

A metric is a claim that nobody can check. Of m clients of which f may lie, the median lies within what honest ones said
where m > 2f; with fewer there is no aggregate. Metrics are shown and kept in the result; no method uses them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median

from flwr.app import MetricRecord, RecordDict

from foundation.text import one_line

Aggregate = Callable[[list[RecordDict], str], MetricRecord]
"""As in Flower: (contents of replies, name of the metric that is a weight) -> the aggregate."""

_MOST = 200
"""Characters of a reason at most."""

Form = tuple[tuple[str, int | None], ...]
"""Names of the metrics, sorted, with the length of those that are lists."""


def median_metrics(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the median of each metric over clients; of a list, the median of each of its numbers.

    Args:
        records: contents with the same metrics each, see ``screened``; at least one.
        weighted_by_key: a metric that is left out, as it is a weight.
    """
    columns: dict[str, list[float] | list[list[float]]] = {}
    for content in records:
        for name, value in _metrics(content).items():
            if name != weighted_by_key:
                columns.setdefault(name, []).append(value)  # type: ignore[arg-type]  # alike in all, as screened
    return MetricRecord({name: _median(column) for name, column in columns.items()})


def screened(claims: Mapping[int, RecordDict]) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """Return the contents that hold usable metrics, all with the same names, and why others do not; both by worker.

    Usable are finite numbers, and lists of them. Which names and lengths of lists are expected is what most clients
    have.

    Args:
        claims: by worker, the content of a reply.
    """
    flaws = {worker: flaw for worker, content in claims.items() if (flaw := _flaw(content))}
    forms = {worker: _form(content) for worker, content in claims.items() if worker not in flaws}
    if not forms:
        return {}, flaws
    (expected, _), *_ = sorted(Counter(forms.values()).items(), key=lambda item: (-item[1], repr(item[0])))
    for worker, form in forms.items():
        if form != expected:
            flaws[worker] = one_line(f"other metrics: {_shown(form)}; most clients have {_shown(expected)}", _MOST)
    return {worker: claims[worker] for worker in forms if worker not in flaws}, flaws


def _metrics(content: RecordDict) -> MetricRecord:
    (record,) = content.metric_records.values()
    return record


def _flaw(content: RecordDict) -> str:
    """Return why a reply has no usable metrics; "" if it has."""
    if len(content.metric_records) != 1:
        return f"{len(content.metric_records) or 'no'} metric records in the reply, expected one"
    for name, value in _metrics(content).items():
        for number in value if isinstance(value, list) else [value]:
            if not _is_finite(number):
                return one_line(f"not finite: metric {name[:40]!r} is {str(number)[:20]}", _MOST)
    return ""


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _form(content: RecordDict) -> Form:
    metrics = _metrics(content)
    return tuple(sorted((name, len(value) if isinstance(value, list) else None) for name, value in metrics.items()))


def _shown(form: Form) -> str:
    names = [f"{name[:40]!r}" + ("" if length is None else f" ({length} numbers)") for name, length in form[:4]]
    return (", ".join(names) or "none") + (", ..." if len(form) > len(names) else "")


def _median(column: list[float] | list[list[float]]) -> float | list[float]:
    """Return the median of the numbers, or of each column of the rows."""
    if isinstance(column[0], list):
        return [float(median(numbers)) for numbers in zip(*column, strict=True)]
    return float(median(column))
