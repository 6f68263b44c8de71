"""The records of a round: what is written, and everything that the reader of replies turns away."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from foundation.errors import WireError
from link import codec, flwr_compat
from link.wire import CONTROL_BYTES, Payload, error_frame, reply_head
from strategies.aggregators.coordinate_rules import Mean
from strategies.compressors import QSGD, Identity, RandK, ScaledSign, TopK
from strategies.method import Ask, Compressor, Packet, Rejected, Vector
from strategies.robust_sgd import RobustSGD
from tests.forms import FORMS, in_round

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


def label(round_: int = 7, kind: str = "identity", version: int = 0) -> bytes:
    packet = Packet(kind, 0, X[:0], version=version)
    data = codec.write_packet(packet, Ask(round_, "difference", {})).config_records["p"][""]
    assert isinstance(data, bytes)
    return data


def reply(data: Any) -> RecordDict:
    return RecordDict({"p": ConfigRecord({"": data})})


def with_array(array: Array) -> RecordDict:
    return RecordDict({"p": ArrayRecord({"": array})})


def raw(data: bytes, shape: tuple[int, ...] | None = None, dtype: str = "uint8", stype: str = "raw.le") -> Array:
    return Array(dtype, (len(data),) if shape is None else shape, stype, data)


# --- asks ---


def test_an_ask_travels_without_what_stays_on_the_server() -> None:
    got = codec.read_ask(codec.write_ask(ASK))
    assert (got.round, got.kind, got.cohort, got.sample) == (7, "difference", None, 0)
    assert {name: v.tolist() for name, v in got.vectors.items()} == {"x": X.tolist(), "x_prev": (X + 1).tolist()}


def test_a_revealed_cohort_travels() -> None:
    got = codec.read_ask(codec.write_ask(Ask(1, "full", {"x": X}, cohort=(2, 5))))
    assert got.cohort == (2, 5)


def test_what_the_server_keeps_does_not_travel() -> None:
    content = codec.write_ask(Ask(1, "full", {"x": X}, sample=3))
    assert set(content.array_records["vectors"]) == {"x"}
    assert set(content.config_records["ask"]) == {"round", "kind"}


def test_scales_and_the_size_of_the_last_step_travel() -> None:
    ask = Ask(3, "difference", {"x": X}, step_scale=0.5, alpha_scale=0.25, step=0.1, since=2)
    got = codec.read_ask(codec.write_ask(ask))
    assert (got.step_scale, got.alpha_scale, got.step, got.since) == (0.5, 0.25, 0.1, 2)
    plain = codec.read_ask(codec.write_ask(Ask(3, "difference", {"x": X})))
    assert (plain.step_scale, plain.alpha_scale, plain.step, plain.since) == (1.0, 1.0, None, 0)


def test_extra_vectors_are_among_the_others() -> None:
    got = codec.read_ask(codec.write_ask(ASK, {"g_i": X * 2}))
    assert {name: v.tolist() for name, v in got.vectors.items()} == {
        "x": X.tolist(), "x_prev": (X + 1).tolist(), "g_i": (X * 2).tolist()
    }  # fmt: skip
    assert set(ASK.vectors) == {"x", "x_prev"}


def test_a_seed_travels() -> None:
    for seed in (0, 5, 2**64 - 1):
        assert codec.read_ask(codec.write_ask(Ask(1, "full", {"x": X}, seed=seed))).seed == seed


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_broadcast_packet_travels(form: Compressor, dtype: Any) -> None:
    form = in_round(form)
    v = np.random.default_rng(1).normal(size=50).astype(dtype)
    packet = form.compress(v, np.random.default_rng(0))
    got = codec.read_ask(codec.write_ask(Ask(3, "difference", {}, packet=packet))).packet
    assert got is not None
    assert form.validate(got, 50, v.dtype) is None
    assert form.decompress(got, v.dtype).tobytes() == form.decompress(packet, v.dtype).tobytes()
    assert (got.seed, got.scale, got.version) == (packet.seed, packet.scale, 0)


@pytest.mark.parametrize(
    ("changes", "arrays", "said"),
    [
        ({"packet": 3}, {}, "kind, dimension or scale"),
        ({"packet dim": "4"}, {}, "kind, dimension or scale"),
        ({"packet scale": 1}, {}, "kind, dimension or scale"),
        ({"packet seed": 1.0}, {}, "the seed of the instruction's packet"),
        ({"seed": -1}, {}, "seed is no integer from 0"),
        ({"seed": 1.0}, {}, "seed is no integer from 0"),
        ({}, {"values": Array("float128", (1,), "raw.le", bytes(16))}, "wrong dtype: 'float128'"),
        ({}, {"marks": Array("int8", (1,), "raw.le", b"1")}, "wrong dtype: 'int8' as 'raw.le', expected uint8"),
        ({}, {"values": Array("float64", (10**18,), "raw.le", bytes(16))}, "wrong shape: 16 bytes do not fill"),
    ],
)
def test_broadcast_packets_of_another_server(changes: dict[str, Any], arrays: dict[str, Array], said: str) -> None:
    content = codec.write_ask(Ask(3, "difference", {}, packet=PACKET))
    content.config_records["ask"].update(changes)
    content.array_records["packet"].update(arrays)
    with pytest.raises(WireError, match=said):
        codec.read_ask(content)


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
        *(
            (
                RecordDict({"ask": ConfigRecord({"round": 1, "kind": "full", name: bad}), "vectors": ArrayRecord()}),
                f"the instruction's {name} is no number of at least 0",
            )
            for name, bad in (("step", float("nan")), ("step scale", -1.0), ("alpha scale", "1"), ("step", 1))
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


def test_a_vector_that_was_read_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        codec.from_array(codec.to_array(X))[0] = 1.0


# --- replies ---


def test_a_small_reply_is_one_byte_string() -> None:
    content = codec.write_packet(PACKET, ASK)
    end = b"identity" + bytes([7, 8, 0x10])  # kind, round; then their lengths: 8, and 1 with 0 for the version
    assert dict(content.config_records["p"]) == {"": PACKET.values.tobytes() + end}
    assert len(content) == 1
    got = read(content)
    assert isinstance(got, Packet)
    assert (got.kind, got.dim, got.seed, got.version) == ("identity", 4, None, 0)
    assert got.values.tolist() == PACKET.values.tolist()


@pytest.mark.parametrize("dim", [(codec.INLINE_ARRAY_BYTES - 11) // 8, codec.INLINE_ARRAY_BYTES // 8])
def test_a_large_reply_is_one_array(dim: int) -> None:
    v = np.random.default_rng(0).normal(size=dim)
    content = codec.write_packet(Packet("identity", dim, v), ASK)
    assert ("p" in content.config_records) is (dim < codec.INLINE_ARRAY_BYTES // 8)
    assert ("p" in content.array_records) is (dim == codec.INLINE_ARRAY_BYTES // 8)
    got = read(content, like=v)
    assert isinstance(got, Packet)
    assert got.values.tobytes() == v.tobytes()
    assert got.values.flags.aligned


def test_the_parts_of_a_packet_follow_one_another() -> None:
    form = RandK(k=2, levels=7)
    packet = form.compress(X, np.random.default_rng(0))
    assert packet.seed is not None
    assert packet.scale is not None
    data = codec.write_packet(packet, ASK).config_records["p"][""]
    assert data[:17] == packet.values.tobytes() + struct.pack("<Qd", packet.seed, packet.scale)  # type: ignore[index]
    top = TopK(k=2).compress(X, np.random.default_rng(0))
    assert top.marks is not None
    data = codec.write_packet(top, ASK).config_records["p"][""]
    assert data[:17] == top.values.tobytes() + top.marks.tobytes()  # type: ignore[index]


@pytest.mark.parametrize("version", [0, 1, 255, 256, 2**63 - 1])
@pytest.mark.parametrize("round_", [1, 255, 2**40])
def test_round_and_version_travel(version: int, round_: int) -> None:
    ask = Ask(round_, "difference", {"x": X})
    content = codec.write_packet(Packet("identity", 4, X, version=version), ask)
    got = codec.read_reply(Message(content, reply_to=instruction()), ask, Identity(), X)
    assert isinstance(got, Packet)
    assert got.version == version
    assert read(content) == Rejected(f"wrong round: {round_}, expected 7")


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("dim", [4, 100, 20_000])
def test_every_packet_arrives_and_costs_at_most_64_bytes_more_than_its_layout(form: Compressor, dim: int) -> None:
    form = in_round(form)
    v = np.random.default_rng(1).normal(size=dim).astype(np.float32)
    packet = replace(form.compress(v, np.random.default_rng(0)), version=9_999)
    ask = Ask(10_000, "difference", {"x": v})
    content = codec.write_packet(packet, ask)
    got = codec.read_reply(Message(content, reply_to=instruction()), ask, form, v)
    assert isinstance(got, Packet)
    assert (got.kind, got.dim, got.seed, got.scale, got.version) == (
        packet.kind, dim, packet.seed, packet.scale, 9_999
    )  # fmt: skip
    assert got.values.tobytes() == packet.values.tobytes()
    assert form.decompress(got, v.dtype).tobytes() == form.decompress(packet, v.dtype).tobytes()
    sent = Payload(content)
    assert not list(sent.chunks()) or dim == 20_000
    frames = [sent.envelope(reply_head(10_000)), *sent.chunks()]
    assert 0 < sum(map(len, frames)) - form.layout(dim, v.dtype).nbytes <= 64


def test_a_reply_of_more_than_a_mebibyte_costs_4_bytes_more_for_each() -> None:
    v = np.zeros(1_000_000, np.float32)
    sent = Payload(codec.write_packet(Packet("identity", len(v), v, version=9_999), Ask(10_000, "difference", {})))
    chunks = list(sent.chunks())
    assert len(chunks) == 4
    assert sum(map(len, chunks)) + len(sent.envelope(reply_head(10_000))) - 4_000_000 <= 64 + 4 * 4


NAN = np.array([0.0, np.nan, 0.0, 0.0])
SEEDED = X[:2].tobytes() + struct.pack("<Q", 9) + label(kind="rand-k")
GOOD = X.tobytes()


@pytest.mark.parametrize(
    ("content", "form", "reason"),
    [
        (RecordDict(), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"p": MetricRecord({"round": 7})}), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"p": ConfigRecord({"round": 7})}), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"p": ArrayRecord({"x": raw(GOOD)})}), Identity(), "undecodable: no packet in the reply"),
        (RecordDict({"other": ConfigRecord({"": GOOD})}), Identity(), "undecodable: no packet in the reply"),
        (reply(7), Identity(), "undecodable: no packet in the reply"),
        (reply("text"), Identity(), "undecodable: no packet in the reply"),
        (reply([GOOD + label()]), Identity(), "undecodable: no packet in the reply"),
        (reply(b""), Identity(), "undecodable: a packet without its label"),
        (reply(b"\0"), Identity(), "undecodable: a packet without its label"),
        (reply(b"\0\0"), Identity(), "wrong round: 0, expected 7"),
        (reply(b"\x01\x00"), Identity(), "undecodable: a packet with an invalid label"),
        (reply(b"123\x00\x22"), Identity(), "undecodable: a packet with an invalid label"),
        (reply(bytes(40) + b"\x00\x90"), Identity(), "undecodable: a packet with an invalid label"),
        (reply(bytes(40) + b"\x00\x09"), Identity(), "undecodable: a packet with an invalid label"),
        (reply(GOOD + label(6)), Identity(), "wrong round: 6, expected 7"),
        (reply(GOOD + label(0)), Identity(), "wrong round: 0, expected 7"),
        (reply(GOOD + label(2**64 - 1)), Identity(), f"wrong round: {2**64 - 1}, expected 7"),
        (
            reply(GOOD + label(version=2**63)),
            Identity(),
            f"undecodable: version {2**63}, expected one below 2^63",
        ),
        (reply(label()), Identity(), "wrong shape: a packet of 0 bytes, expected 32"),
        (reply(b"123" + label()), Identity(), "wrong shape: a packet of 3 bytes, expected 32"),
        (reply(X[:3].tobytes() + label()), Identity(), "wrong shape: a packet of 24 bytes, expected 32"),
        (reply(GOOD + b"\0" + label()), Identity(), "wrong shape: a packet of 33 bytes, expected 32"),
        (reply(NAN.tobytes() + label()), Identity(), "not finite: NaN or infinite values"),
        (reply(GOOD + label(kind="rand-k")), Identity(), "wrong kind: 'rand-k', expected 'identity'"),
        (reply(GOOD + label(kind="")), Identity(), "wrong kind: '', expected 'identity'"),
        (reply(GOOD + label(kind="\n")), Identity(), "wrong kind: '\\n', expected 'identity'"),
        (reply(GOOD + label()), RandK(k=2), "wrong kind: 'identity', expected 'rand-k'"),
        (reply(X[:2].tobytes() + label(kind="rand-k")), RandK(k=2), "wrong shape: a packet of 16 bytes, expected 24"),
        (reply(SEEDED), RandK(k=3), "wrong shape: a packet of 24 bytes, expected 32"),
        (
            reply(np.full(2, 1e308).tobytes() + SEEDED[16:]),
            RandK(k=2),
            "not finite: values overflow float64 when multiplied by 2",
        ),
        (
            reply(bytes(1) + struct.pack("<d", np.nan) + label(kind="scaled-sign")),
            ScaledSign(),
            "not finite: scale nan",
        ),
        (
            reply(X[:2].tobytes() + b"\x07" + label(kind="top-k")),
            TopK(k=2),
            "bad index: 3 coordinates, expected 2",
        ),
        (with_array(raw(GOOD + label(6))), Identity(), "wrong round: 6, expected 7"),
        (with_array(raw(GOOD + label(), (3,))), Identity(), "wrong shape: 43 bytes do not fill (3,) uint8"),
        (with_array(raw(GOOD + label(), (-43,))), Identity(), "wrong shape: 43 bytes do not fill (-43,) uint8"),
        (
            with_array(raw(GOOD + label(), (10**18,))),
            Identity(),
            f"wrong shape: 43 bytes do not fill ({10**18},) uint8",
        ),
        (
            with_array(raw(GOOD, (4,), "float64")),
            Identity(),
            "wrong dtype: 'float64' as 'raw.le', expected uint8, raw.le",
        ),
        (
            with_array(raw(GOOD, None, "uint8", "numpy.ndarray")),
            Identity(),
            "wrong dtype: 'uint8' as 'numpy.ndarray', expected uint8, raw.le",
        ),
    ],
)
def test_replies_that_do_not_count(content: RecordDict, form: Compressor, reason: str) -> None:
    assert read(content, form) == Rejected(reason)


HANDED_OVER: list[Compressor] = [*FORMS, RandK(k=2), TopK(k=2)]


def both_ways(packet: Packet, ask: Ask, form: Compressor, like: Vector) -> tuple[Packet | Rejected, Packet | Rejected]:
    """Return what is read of a packet from its records, and from a reply that hands it over."""
    written = Message(codec.write_packet(packet, ask), reply_to=instruction())
    handed = codec.PacketReply.of(packet, ask, instruction())
    return codec.read_reply(written, ASK, form, like), codec.read_reply(handed, ASK, form, like)


@pytest.mark.parametrize("form", HANDED_OVER, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_packet_that_is_handed_over_is_the_one_that_its_records_hold(form: Compressor, dtype: Any) -> None:
    form = in_round(form)
    v = np.random.default_rng(1).normal(size=100).astype(dtype)
    packet = replace(form.compress(v, np.random.default_rng(0)), version=3)
    written, handed = both_ways(packet, ASK, form, v)
    assert isinstance(written, Packet)
    assert isinstance(handed, Packet)
    for name, value in vars(written).items():
        mine = getattr(handed, name)
        assert type(mine) is type(value)
        if isinstance(value, np.ndarray):
            assert (mine.dtype, mine.tobytes(), mine.flags.writeable) == (value.dtype, value.tobytes(), False)
        else:
            assert mine == value


NO_SEED = Packet("rand-k", 4, X[:2])
FLAWED: list[tuple[Packet, Ask, Compressor]] = [
    (PACKET, replace(ASK, round=6), Identity()),
    (PACKET, ASK, RandK(k=2)),
    (replace(PACKET, version=2**63), ASK, Identity()),
    (replace(PACKET, values=X[:3]), ASK, Identity()),
    (replace(PACKET, values=X.astype(np.float32)), ASK, Identity()),
    (replace(PACKET, values=np.array([0.0, np.nan, 0.0, 0.0])), ASK, Identity()),
    (replace(PACKET, values=np.array([0.0, np.inf, 0.0, 0.0])), ASK, Identity()),
    (replace(NO_SEED, values=np.full(2, 1e308), seed=9), ASK, RandK(k=2)),
    (NO_SEED, ASK, RandK(k=2)),
    (replace(PACKET, seed=9), ASK, Identity()),
    (replace(PACKET, scale=1.0), ASK, Identity()),
    (replace(PACKET, kind="top-k", values=X[:2], marks=np.array([7], np.uint8)), ASK, TopK(k=2)),
    (replace(PACKET, kind="scaled-sign", values=np.zeros(1, np.uint8), scale=np.nan), ASK, ScaledSign()),
]


@pytest.mark.parametrize(("packet", "ask", "form"), FLAWED)
def test_a_packet_that_is_handed_over_is_screened_like_its_records(packet: Packet, ask: Ask, form: Compressor) -> None:
    written, handed = both_ways(packet, ask, form, X)
    assert isinstance(written, Rejected)
    assert handed == written


@pytest.mark.parametrize("changes", [{"values": np.ones(8, np.float32)}, {"dim": 9}])
def test_a_packet_of_another_type_is_read_as_its_bytes_are(changes: dict[str, Any]) -> None:
    packet = replace(PACKET, **changes)
    written, handed = both_ways(packet, ASK, Identity(), X)
    assert isinstance(written, Packet)
    assert isinstance(handed, Packet)
    assert handed.values.tolist() == written.values.tolist() == packet.values.view(np.float64).tolist()
    assert handed.dim == written.dim == 4


def test_what_a_client_writes_after_its_reply_changes_nothing() -> None:
    values, marks = X[:2].copy(), np.array([3], np.uint8)
    handed = codec.PacketReply.of(Packet("top-k", 4, values, marks=marks), ASK, instruction())
    values[:], marks[:] = np.nan, 15
    got = codec.read_reply(handed, ASK, TopK(k=2), X)
    assert isinstance(got, Packet)
    assert got.values.tolist() == X[:2].tolist()


@pytest.mark.parametrize("version", [0, 200, 2**40])
@pytest.mark.parametrize("size", [0, 1, 100, 9_000, codec.INLINE_ARRAY_BYTES, 3 << 20])
def test_the_frames_of_what_is_handed_over_are_as_long_as_if_it_had_been_written(size: int, version: int) -> None:
    packet = Packet("identity", size, np.zeros(size, np.uint8), seed=1, version=version)
    handed = codec.PacketReply.of(packet, ASK, instruction())
    written = Payload(codec.write_packet(packet, ASK))
    frames = [written.envelope(reply_head(1)), *written.chunks()]
    assert handed.payload().frame_bytes(2) == list(map(len, frames))
    assert [handed.payload().envelope(reply_head(1)), *handed.payload().chunks()] == frames
    assert handed.has_content()
    assert handed.content == codec.write_packet(packet, ASK)


def test_replies_that_do() -> None:
    for content in (reply(GOOD + label()), with_array(raw(GOOD + label()))):
        got = read(content)
        assert isinstance(got, Packet)
        assert got.values.tolist() == X.tolist()
    seeded = read(reply(SEEDED), RandK(k=2))
    assert isinstance(seeded, Packet)
    assert seeded.seed == 9


def test_a_reason_is_one_short_printable_line() -> None:
    for kind in ("a\nb\x1b[2J", "\u202e" * 50, "x" * 200):
        refused = read(reply(GOOD + label(kind=kind)))
        assert isinstance(refused, Rejected)
        assert refused.reason.isprintable()
        assert len(refused.reason) <= 200


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("disconnected: no pong", "disconnected: no pong"),
        ("oversize: 3", "oversize: 3"),
        ("stale state: 4, expected 5", "stale state: 4, expected 5"),
        ("stale", "error: stale"),
        ("ValueError: no", "error: ValueError: no"),
        (None, "error: no reason given"),
        ("", "error: no reason given"),
    ],
)
def test_errors_keep_the_words_that_are_ours(reason: str | None, told: str) -> None:
    error = codec.read_reply(Message(Error(2, reason), reply_to=instruction()), ASK, Identity(), X)
    assert error == Rejected(told)


def test_what_an_error_says_is_made_safe() -> None:
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


@pytest.mark.parametrize("form", [*FORMS, RandK(ratio=1.0), TopK(ratio=1.0), QSGD(levels=32767)], ids=repr)
def test_an_honest_reply_is_within_the_bound(form: Compressor) -> None:
    form = in_round(form)
    for v in (np.ones(1), np.ones(5000, np.float32), np.ones(200_000)):
        assert form.layout(len(v), v.dtype).nbytes + 4000 <= codec.max_reply_bytes(len(v), v.dtype)
        sent = Payload(codec.write_packet(form.compress(v, np.random.default_rng(0)), ASK))
        size = len(sent.envelope()) + sum(len(frame) for frame in sent.chunks())
        assert size <= codec.max_reply_bytes(len(v), v.dtype)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_every_worker_of_a_round_is_within_the_rounds_bound(form: Compressor) -> None:
    method = RobustSGD(n=4, f=0, cohort=4, gamma=0.1, batch=1, aggregator=Mean(), compressor=form)
    for v in (np.ones(11), np.ones(5000, np.float32), np.ones(200_000)):
        ask = Ask(7, "gradient", {"x": v}, seed=5)
        bound = codec.reply_bound(codec.write_ask(ask), method, v.size, v.dtype)
        for worker in range(4):
            mine = method.compressor_for(ask, worker)
            sent = Payload(codec.write_packet(mine.compress(v, np.random.default_rng(0)), ask))
            size = len(sent.envelope(reply_head(10**9))) + sum(len(frame) for frame in sent.chunks())
            assert size <= bound <= mine.layout(v.size, v.dtype).nbytes + CONTROL_BYTES + 8
            assert bound <= codec.max_reply_bytes(v.size, v.dtype)
        told = error_frame(10**9, Error(2, "ü" * 500))
        assert len(told) < bound


def test_a_reply_to_what_is_no_ask_may_be_as_long_as_any() -> None:
    method = RobustSGD(n=4, f=0, cohort=4, gamma=0.1, batch=1, aggregator=Mean(), compressor=Identity())
    assert codec.reply_bound(RecordDict(), method, 100, X.dtype) == codec.max_reply_bytes(100, X.dtype)
