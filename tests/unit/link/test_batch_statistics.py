"""Questions for batch statistics and their answers as records: any message gives statistics or a reason."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from foundation.errors import WireError
from link import batch_statistics, codec
from link.flwr_compat import APP_RAISED, instruction
from link.wire import CONTROL_BYTES
from strategies.batch_statistics import QUESTION
from strategies.method import Rejected

VARIANCES = np.array([False, True])
X = np.array([1.5, -0.0, 3e-40], np.float32)


def answer(content: RecordDict | Error) -> Any:
    asked = instruction(
        RecordDict(), run_id=1, node_id=2, message_id="7", message_type=QUESTION, group_id="3", ttl_s=9.0
    )
    return batch_statistics.read_answer(Message(content, reply_to=asked), VARIANCES)


def test_round_and_model_arrive_as_they_were_sent_and_so_do_statistics() -> None:
    asked = batch_statistics.write_question(3, codec.to_arrays(X))
    round_, x = batch_statistics.read_question(asked)
    assert (round_, x.tobytes()) == (3, X.tobytes())
    stats = np.array([-0.5, 1.0])
    assert answer(batch_statistics.write_answer(stats)).tobytes() == stats.tobytes()
    for wrong in (RecordDict({"ask": ConfigRecord()}), RecordDict({"batch_statistics": ConfigRecord({"round": "x"})})):
        with pytest.raises(WireError, match="no question for batch statistics"):
            batch_statistics.read_question(wrong)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Error(APP_RAISED, "declined: statistics"), "declined: statistics"),
        (Error(APP_RAISED, "what I like"), "error: what I like"),
        (RecordDict(), "undecodable: 0 records, expected one with array x"),
        (RecordDict({"batch_statistics": ConfigRecord({"x": 1})}), "undecodable: 1 records"),
        (RecordDict({"batch_statistics": ArrayRecord({"y": codec.to_array(X)})}), "undecodable: 1 records"),
        (batch_statistics.write_answer(X), "wrong dtype: float32, expected float64"),
        (batch_statistics.write_answer(np.zeros(3)), "wrong shape: (3,), expected (2,)"),
        (batch_statistics.write_answer(np.array([np.nan, 1.0])), "not finite: 1 of 2"),
        (batch_statistics.write_answer(np.array([0.0, -1.0])), "out of bounds: a variance is -1"),
        (
            RecordDict({"batch_statistics": ArrayRecord({"x": Array("float64", (2,), "numpy.ndarray", b"pickle")})}),
            "wrong dtype: 'float64' as 'numpy.ndarray'",
        ),
        (
            RecordDict({"batch_statistics": ArrayRecord({"x": Array("float64", (2**40,), "raw.le", b"")})}),
            "wrong shape: 0 bytes",
        ),
    ],
)
def test_whatever_else_arrives_is_refused_with_a_reason(content: Any, said: str) -> None:
    verdict = answer(content)
    assert isinstance(verdict, Rejected)
    assert verdict.reason.startswith(said)


def test_an_answer_may_be_as_long_as_it_needs() -> None:
    asked = batch_statistics.write_question(3, codec.to_arrays(X))
    method: Any = None  # a question is no ask
    assert codec.reply_bound(asked, method, 3, X.dtype, statistics=1000) == 8000 + CONTROL_BYTES
    assert codec.reply_bound(asked, method, 3, X.dtype) == CONTROL_BYTES
    assert codec.max_reply_bytes(3, X.dtype, 1000) == 8000 + CONTROL_BYTES  # the model is shorter
    assert codec.max_reply_bytes(10**6, X.dtype, 1000) == codec.max_reply_bytes(10**6, X.dtype)
