"""Inputs to start from: real frames, so that a fuzzer need not find out what a message looks like."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from link import codec
from link import link_pb2 as pb
from link.wire import PROTOCOL, Control, Payload, control_frame, error_frame, reply_head
from strategies.method import Ask
from tests.forms import FORMS, in_round

_X = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
_ASK = Ask(7, "difference", {"x": _X}, seed=11)


def seeds(target: str) -> list[bytes]:
    """Return the inputs to start with for a target: each one real frame, and all of them in a row."""
    if target not in ("reader", "live"):
        return []
    lead = b"\0" if target == "reader" else b"\1"  # the bound, or: a round and no stranger
    spelt = [bytes((0, len(frame))) + frame for frame in _frames() if len(frame) < 256]
    return [lead + one for one in spelt] + [lead + b"".join(spelt[i : i + 4]) for i in range(0, len(spelt), 4)]


def _frames() -> list[bytes]:
    replies = [codec.write_packet(in_round(form).compress(_X, np.random.default_rng(1)), _ASK) for form in FORMS]
    array = ArrayRecord({"": Array("uint8", (3,), "raw.le", b"abc")})
    lists = ConfigRecord({"i": [1, 2**63], "r": [0.5], "f": [True], "t": ["a"], "b": [b"c"], "e": [], "n": -1})
    replies += [RecordDict({"p": array}), RecordDict({"p": lists, "m": MetricRecord({"loss": 0.5, "n": [1, 2]})})]
    controls: list[Control | pb.Envelope] = [
        pb.Hello(protocol=PROTOCOL, name="worker-07", fingerprint="code", worker=3, former=2),
        pb.Welcome(run_id=5, node_id=7, worker=1, clients=4, settings={"config": "text"}, max_reply_bytes=1 << 20),
        pb.Refusal(reason="no", retry=True), pb.Ready(task='{"dim": "3"}'), pb.Pass(id=1),
        pb.Goodbye(reason="over", final=True),
        pb.Envelope(id=1, content=pb.Content(body_bytes=5)),
    ]  # fmt: skip
    return [
        *(Payload(reply).envelope(reply_head(1)) for reply in replies),
        *(control_frame(control) for control in controls),
        error_frame(1, Error(2, "why")),
        Payload(codec.write_ask(_ASK)).envelope(
            pb.Envelope(id=1, message_type="train", group_id="7", ttl_s=30.0).SerializeToString()
        ),
    ]
