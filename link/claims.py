"""How the server asks clients to measure a model, and what they answer: records of Flower's evaluate messages.

Layout (docs/wire.md has the sizes)::

    asked   ConfigRecord "evaluate": {"round"}
            ArrayRecord  "vectors":  {"x": raw little-endian array of shape (d,)}
            ArrayRecord  "norm_stats": {"x": float64 array}; only where the server computes running statistics
    answer  MetricRecord "measures": {"loss", "accuracy"?, "samples"?}

``read_claim`` is the one reader of what clients answer: any message gives a claim or ``Rejected`` with the reason.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from foundation.errors import WireError
from foundation.text import one_line
from link.codec import from_array, reason_of, to_array
from link.invitation import NORM_STATS
from strategies.claims import Claim, flaw_of
from strategies.method import Rejected, Vector

ASKED, MEASURES = "evaluate", "measures"
"""Names of the records."""

_NAMES = frozenset({"loss", "accuracy", "samples"})
_MOST = 200
"""Characters of a reason that are kept."""


def write_evaluation(round_: int, arrays: ArrayRecord) -> RecordDict:
    """Return the content of an instruction to measure a model.

    Args:
        round_: r, the model is x^r.
        arrays: the model, see ``link.codec.to_arrays``.
    """
    return RecordDict({ASKED: ConfigRecord({"round": round_}), "vectors": arrays})


class WithNormStats:
    """The same for a model whose running statistics the server computes: an instruction has them too.

    Args:
        norm_stats: returns them for a model; None where it has none.
    """

    def __init__(self, norm_stats: Callable[[Vector], Vector | None]) -> None:
        self._norm_stats = norm_stats

    def write_evaluation(self, round_: int, arrays: ArrayRecord) -> RecordDict:
        """Return the content of an instruction to measure a model."""
        content = write_evaluation(round_, arrays)
        return with_norm_stats(content, self._norm_stats(from_array(arrays["x"])))

    def read_claim(self, message: Message, declared: bool) -> Claim | Rejected:
        """Return the claim of an answer, or why there is none. Never raises."""
        return read_claim(message, declared)


def with_norm_stats(content: RecordDict, stats: Vector | None) -> RecordDict:
    """Return an instruction that holds a model, with the running statistics of that model; None for none."""
    if stats is not None:
        content[NORM_STATS] = ArrayRecord({"x": to_array(stats)})
    return content


def read_norm_stats(content: RecordDict) -> Vector | None:
    """Return the running statistics beside a model; None where there are none.

    Raises:
        WireError: they are no vector of finite float64 numbers.
    """
    record = content.array_records.get(NORM_STATS)
    if record is None:
        return None
    stats = from_array(record["x"]) if "x" in record else None
    if stats is None or stats.dtype != np.float64 or not np.isfinite(stats).all():
        raise WireError("undecodable: the running statistics are no vector of finite numbers")
    return stats


def read_evaluation(content: RecordDict) -> Vector:
    """Return the model that is to be measured, shape (d,), read-only.

    Raises:
        WireError: the instruction is not one of ours.
    """
    try:
        return from_array(content.array_records["vectors"]["x"])
    except KeyError as error:
        raise WireError(f"undecodable: the instruction has no {error}; is the server a Breakwater ServerApp?") from None


def write_claim(claim: Claim) -> RecordDict:
    """Return the content of an answer."""
    known: dict[str, Any] = {name: getattr(claim, name) for name in sorted(_NAMES)}
    return RecordDict({MEASURES: MetricRecord({name: value for name, value in known.items() if value is not None})})


def read_claim(message: Message, declared: bool) -> Claim | Rejected:
    """Return the claim of an answer, or why there is none. Never raises.

    Args:
        message: whatever arrived.
        declared: clients declare how many samples they have; else an answer that does is refused.
    """
    try:
        if message.has_error():
            return Rejected(reason_of(message))
        return _read(message.content, declared=declared)
    except Exception as error:  # the last line of defence: whatever a peer finds, the others are heard
        return Rejected(one_line(f"undecodable: {type(error).__name__}: {error}", _MOST))


def _read(content: RecordDict, *, declared: bool) -> Claim | Rejected:
    record = content.get(MEASURES)
    if len(content) != 1 or not isinstance(record, MetricRecord):
        return Rejected(f"undecodable: {len(content)} records, expected one with metrics, named {MEASURES!r}")
    allowed = _NAMES if declared else _NAMES - {"samples"}
    if "loss" not in record or not record.keys() <= allowed:
        names = ", ".join(repr(str(name)[:40]) for name in list(record)[:4])
        return Rejected(
            one_line(f"wrong names: {names or 'none'}; expected loss, of {', '.join(sorted(allowed))}", _MOST)
        )
    loss, accuracy, samples = record["loss"], record.get("accuracy"), record.get("samples")
    if flaw := flaw_of(loss, accuracy, samples):
        return Rejected(one_line(flaw, _MOST))
    return Claim(loss, accuracy, samples)  # type: ignore[arg-type]  # checked by flaw_of
