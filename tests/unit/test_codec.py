"""The records of a round: what is written, and everything that the reader of replies turns away."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from link import codec, flwr_compat
from link.errors import WireError
from link.wire import Payload
from strategies.algorithm import Ask, Compressor, Packet, Rejected, Vector
from strategies.compressors import Identity, RandK

X = np.array([1.0, -2.0, 3.0, 0.5])
ASK = Ask(7, "difference", {"x": X, "x_prev": X + 1}, sample=3)
PACKET = Packet("identity", 4, np.array([0.25, -1.0, 2.0, 8.0]))


def instruction() -> Message:
    flwr_compat.set_identity(1)
    message = Message(RecordDict(), 5, "train")
    flwr_compat.stamp(message, message_id="1", run_id=1)
    return message


def read(content: RecordDict, form: Compressor | None = None, like: Vector = X) -> Packet | Rejected:
    return codec.read_reply(Message(content, reply_to=instruction()), ASK, form or Identity(), like)


def reply(**changes: Any) -> RecordDict:
    """A good reply with keys of its packet changed; None removes a key."""
    fields = {"round": 7, "kind": "identity", "values": X.tobytes(), **changes}
    return RecordDict({"packet": ConfigRecord({key: value for key, value in fields.items() if value is not None})})


def with_array(array: Array) -> RecordDict:
    content = reply(values=None)
    content["vectors"] = ArrayRecord({"values": array})
    return content


# --- asks ---


def test_an_ask_travels_without_what_stays_on_the_server() -> None:
    got = codec.read_ask(codec.write_ask(ASK))
    assert (got.round, got.kind, got.cohort, got.sample) == (7, "difference", None, 0)
    assert {name: v.tolist() for name, v in got.vectors.items()} == {"x": X.tolist(), "x_prev": (X + 1).tolist()}


def test_a_revealed_cohort_travels() -> None:
    got = codec.read_ask(codec.write_ask(Ask(1, "full", {"x": X}, cohort=(2, 5))))
    assert got.cohort == (2, 5)


def test_vectors_lie_in_the_record_as_they_lie_in_memory() -> None:
    array = codec.write_ask(ASK).array_records["vectors"]["x"]
    assert (array.dtype, tuple(array.shape), array.stype, array.data) == ("float64", (4,), "raw.le", X.tobytes())
    single = codec.to_array(X.astype(np.float32))
    assert (single.dtype, single.data) == ("float32", X.astype("<f4").tobytes())


def test_a_model_there_and_back() -> None:
    back = codec.from_arrays(codec.to_arrays(X))
    assert back.tobytes() == X.tobytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RecordDict(), "no 'ask'"),
        (RecordDict({"ask": ConfigRecord({"round": 1, "kind": "full"})}), "no 'vectors'"),
        (RecordDict({"ask": ConfigRecord({"kind": "full"}), "vectors": ArrayRecord()}), "no 'round'"),
        (RecordDict({"ask": ConfigRecord({"round": "1", "kind": "full"}), "vectors": ArrayRecord()}), "wrong type"),
        (RecordDict({"ask": ConfigRecord({"round": 1, "kind": 2}), "vectors": ArrayRecord()}), "wrong type"),
        (
            RecordDict({"ask": ConfigRecord({"round": 1, "kind": "full", "cohort": 3}), "vectors": ArrayRecord()}),
            "wrong type",
        ),
    ],
)
def test_instructions_of_another_server(content: RecordDict, said: str) -> None:
    with pytest.raises(WireError, match=said):
        codec.read_ask(content)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (Array("float64", (4,), "numpy.ndarray", X.tobytes()), "wrong dtype: 'float64' as 'numpy.ndarray'"),
        (Array("float16", (4,), "raw.le", b"12345678"), "wrong dtype: 'float16'"),
        (Array("object", (4,), "raw.le", b"12345678"), "wrong dtype: 'object'"),
        (Array("float64", (2, 2), "raw.le", X.tobytes()), r"wrong shape: 32 bytes do not fill \(2, 2\) float64"),
        (Array("float64", (5,), "raw.le", X.tobytes()), r"wrong shape: 32 bytes do not fill \(5,\)"),
        (Array("float64", (-4,), "raw.le", X.tobytes()), "wrong shape"),
        (Array("float32", (4,), "raw.le", X.tobytes()), "wrong shape: 32 bytes"),
        (Array("float64", (), "raw.le", X[:1].tobytes()), "wrong shape"),
        (Array("float64", (10**18,), "raw.le", X.tobytes()), "wrong shape"),
    ],
)
def test_arrays_that_are_no_vectors(array: Array, said: str) -> None:
    with pytest.raises(WireError, match=said):
        codec.from_array(array)
    refused = read(with_array(array))
    assert isinstance(refused, Rejected)
    assert refused.slug in ("wrong shape", "wrong dtype")


def test_a_vector_that_was_read_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        codec.from_array(codec.to_array(X))[0] = 1.0


# --- replies ---


def test_a_small_reply_is_one_record() -> None:
    content = codec.write_packet(PACKET, ASK)
    assert dict(content.config_records["packet"]) == {
        "round": 7, "kind": "identity", "values": PACKET.values.tobytes()
    }  # fmt: skip
    assert not content.array_records
    got = read(content)
    assert isinstance(got, Packet)
    assert (got.kind, got.dim, got.seed, got.values.tolist()) == ("identity", 4, None, PACKET.values.tolist())


@pytest.mark.parametrize(("dim", "inline"), [(codec.INLINE_BYTES // 8, True), (codec.INLINE_BYTES // 8 + 1, False)])
def test_a_large_reply_has_an_array(dim: int, inline: bool) -> None:
    v = np.random.default_rng(0).normal(size=dim)
    content = codec.write_packet(Packet("identity", dim, v), ASK)
    assert ("values" in content.config_records["packet"]) is inline
    assert ("vectors" in content.array_records) is not inline
    got = read(content, like=v)
    assert isinstance(got, Packet)
    assert got.values.tobytes() == v.tobytes()


def test_a_compressed_reply_carries_its_seed() -> None:
    form = RandK(k=2)
    packet = form.compress(X, np.random.default_rng(0))
    content = codec.write_packet(packet, ASK)
    assert len(content.config_records["packet"]["values"]) == 16  # type: ignore[arg-type]  # bytes
    got = read(content, form)
    assert isinstance(got, Packet)
    assert got.seed == packet.seed
    assert form.decompress(got).tolist() == form.decompress(packet).tolist()


NAN = np.array([0.0, np.nan, 0.0, 0.0])
SEEDED = {"kind": "rand-k", "values": X[:2].tobytes(), "seed": 9}


@pytest.mark.parametrize(
    ("content", "form", "reason"),
    [
        (RecordDict(), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"packet": MetricRecord({"round": 7})}), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"other": ConfigRecord({"round": 7})}), Identity(), "undecodable: no packet in the reply"),
        (reply(round=6), Identity(), "wrong round: 6, expected 7"),
        (reply(round="7"), Identity(), "wrong round: '7', expected 7"),
        (reply(round=None), Identity(), "wrong round: None, expected 7"),
        (reply(round=[7]), Identity(), "wrong round: [7], expected 7"),
        (reply(values=None), Identity(), "undecodable: no values in the reply"),
        (reply(values=[1.0, 2.0, 3.0, 4.0]), Identity(), "undecodable: no values in the reply"),
        (reply(values="text"), Identity(), "undecodable: no values in the reply"),
        (reply(values=b"123"), Identity(), "wrong shape: 3 bytes are no whole number of float64 values"),
        (reply(values=X[:3].tobytes()), Identity(), "wrong shape: 3 values, expected 4"),
        (reply(values=b""), Identity(), "wrong shape: 0 values, expected 4"),
        (reply(values=X.astype(np.float32).tobytes()), Identity(), "wrong shape: 2 values, expected 4"),
        (reply(values=NAN.tobytes()), Identity(), "not finite: NaN or infinite values"),
        (reply(values=np.array([0.0, -np.inf, 0.0, 0.0]).tobytes()), Identity(), "not finite: NaN or infinite values"),
        (reply(kind=None), Identity(), "undecodable: kind or seed has the wrong type"),
        (reply(kind=1), Identity(), "undecodable: kind or seed has the wrong type"),
        (reply(seed="1"), Identity(), "undecodable: kind or seed has the wrong type"),
        (reply(seed=1.0), Identity(), "undecodable: kind or seed has the wrong type"),
        (reply(seed=True), Identity(), "undecodable: kind or seed has the wrong type"),
        (reply(seed=1), Identity(), "bad seed: 1, expected none"),
        (reply(kind="rand-k", seed=1), Identity(), "wrong kind: 'rand-k', expected 'identity'"),
        (reply(), RandK(k=2), "wrong kind: 'identity', expected 'rand-k'"),
        (reply(**SEEDED | {"seed": None}), RandK(k=2), "bad seed: None"),
        (reply(**SEEDED | {"seed": -1}), RandK(k=2), "bad seed: -1"),
        (reply(**SEEDED), RandK(k=3), "wrong shape: 2 values, expected 3"),
        (reply(**SEEDED | {"values": np.full(2, 1.7e308).tobytes()}), RandK(k=2), "not finite: values overflow"),
        (with_array(codec.to_array(X.astype(np.float32))), Identity(), "wrong dtype: float32, expected float64"),
        (with_array(codec.to_array(NAN)), Identity(), "not finite"),
        (with_array(codec.to_array(X[:2])), Identity(), "wrong shape: 2 values, expected 4"),
    ],
)
def test_replies_that_do_not_count(content: RecordDict, form: Compressor, reason: str) -> None:
    refused = read(content, form)
    assert isinstance(refused, Rejected)
    assert refused.reason.startswith(reason)


def test_an_error_in_place_of_a_reply() -> None:
    def refused(error: Error) -> Packet | Rejected:
        return codec.read_reply(Message(error, reply_to=instruction()), ASK, Identity(), X)

    assert refused(Error(5, "disconnected: client-3 went away")) == Rejected("disconnected: client-3 went away")
    assert refused(Error(2, "")) == Rejected("error: no reason given")
    assert refused(Error(2)) == Rejected("error: no reason given")
    assert refused(Error(2, "mine: all mine")) == Rejected("error: mine: all mine")  # counted with all other errors


def test_what_a_peer_wrote_becomes_one_short_printable_line() -> None:
    for content in (reply(kind="\x1b[31mred\n" + "x" * 5000), reply(round="\r\n\x07" + "y" * 5000)):
        refused = read(content)
        assert isinstance(refused, Rejected)
        assert refused.reason.isprintable()
        assert len(refused.reason) <= 200
    error = codec.read_reply(Message(Error(2, "a\nb\x1b[2J" + "z" * 900), reply_to=instruction()), ASK, Identity(), X)
    assert isinstance(error, Rejected)
    assert error.reason.startswith("error: a?b?[2Jzzz")
    assert len(error.reason) == 200


def test_a_message_that_breaks_on_being_read_is_turned_away() -> None:
    class Trap:
        def has_error(self) -> bool:
            return False

        @property
        def content(self) -> RecordDict:
            raise MemoryError("so\nbig")

    trap: Any = Trap()
    assert codec.read_reply(trap, ASK, Identity(), X) == Rejected("undecodable: MemoryError: so?big")


@pytest.mark.parametrize("form", [Identity(), RandK(k=1), RandK(ratio=1.0)])
def test_an_honest_reply_is_within_the_bound(form: Compressor) -> None:
    for v in (np.ones(1), np.ones(5000, np.float32), np.ones(20_000)):
        sent = Payload(codec.write_packet(form.compress(v, np.random.default_rng(0)), ASK))
        size = len(sent.envelope()) + sum(len(frame) for frame in sent.chunks())
        assert size <= codec.max_reply_bytes(len(v), v.dtype)
