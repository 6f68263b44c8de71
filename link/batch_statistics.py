"""How the server asks clients for batch statistics, and what they answer: records of Flower's query messages.

Layout (docs/wire.md has the sizes)::

    asked   ConfigRecord "batch_statistics": {"round"}
            ArrayRecord  "vectors":          {"x": raw little-endian array of shape (d,)}
    answer  ArrayRecord  "batch_statistics": {"x": float64 array of two numbers a channel}

``read_answer`` is the one reader of what clients answer: any message gives statistics or ``Rejected`` with the reason.
"""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from foundation.errors import WireError
from foundation.text import one_line
from link.codec import BATCH_STATISTICS, from_array, reason_of, to_arrays
from strategies.batch_statistics import flaw_of
from strategies.method import Rejected, Vector

_MOST = 200
"""Characters of a reason that are kept."""


def write_question(round_: int, arrays: ArrayRecord) -> RecordDict:
    """Return the content of a question.

    Args:
        round_: r, the model is x^r.
        arrays: the model, see ``link.codec.to_arrays``.
    """
    return RecordDict({BATCH_STATISTICS: ConfigRecord({"round": round_}), "vectors": arrays})


def read_question(content: RecordDict) -> tuple[int, Vector]:
    """Return the round, and the model, shape (d,), read-only.

    Raises:
        WireError: the question is not one of ours.
    """
    try:
        round_: Any = content.config_records[BATCH_STATISTICS]["round"]
        return int(round_), from_array(content.array_records["vectors"]["x"])
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"undecodable: no question for batch statistics: {error}") from None


def write_answer(values: Vector) -> RecordDict:
    """Return the content of an answer.

    Args:
        values: means and variances, float64.
    """
    return RecordDict({BATCH_STATISTICS: to_arrays(values)})


def read_answer(message: Message, variances: NDArray[np.bool_]) -> Vector | Rejected:
    """Return the statistics of an answer, or why there are none. Never raises.

    Args:
        message: whatever arrived.
        variances: which of the numbers are variances.
    """
    try:
        if message.has_error():
            return Rejected(reason_of(message))
        return _read(message.content, variances)
    except WireError as error:
        return Rejected(one_line(error.reason, _MOST))
    except Exception as error:  # the last line of defence: whatever a peer finds, the others are heard
        return Rejected(one_line(f"undecodable: {type(error).__name__}: {error}", _MOST))


def _read(content: RecordDict, variances: NDArray[np.bool_]) -> Vector | Rejected:
    record = content.get(BATCH_STATISTICS)
    if len(content) != 1 or not isinstance(record, ArrayRecord) or list(record) != ["x"]:
        return Rejected(f"undecodable: {len(content)} records, expected one with array x, named {BATCH_STATISTICS!r}")
    values = from_array(record["x"])
    return Rejected(one_line(flaw, _MOST)) if (flaw := flaw_of(values, variances)) else values
