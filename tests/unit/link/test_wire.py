"""Frames and records: known bytes, limits, and every way in which a peer's frame can be wrong."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from foundation.errors import WireError
from link import link_pb2 as pb
from link.codec import write_packet
from link.records import INLINE_BYTES
from link.wire import (
    CHUNK_BYTES,
    CONTROL_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    Control,
    Endless,
    Parcel,
    Payload,
    Reader,
    control_frame,
    error_frame,
    reply_head,
)
from strategies.compressors import RandK
from strategies.method import Ask, Packet

ROOT = Path(__file__).parents[3]


def frames_of(content: RecordDict, id_: int = 1) -> list[bytes]:
    payload = Payload(content)
    return [payload.envelope(reply_head(id_)), *payload.chunks()]


def read(frames: list[bytes], max_bytes: int = 1 << 40) -> Control | Parcel | None:
    reader = Reader(max_bytes)
    for frame in frames[:-1]:
        assert reader.feed(frame) is None
    return reader.feed(frames[-1])


def read_records(frames: list[bytes]) -> RecordDict:
    parcel = read(frames)
    assert isinstance(parcel, Parcel)
    assert isinstance(parcel.answer, RecordDict)
    return parcel.answer


def arrays(*data: bytes, stype: str = "raw") -> RecordDict:
    record = ArrayRecord()
    for i, piece in enumerate(data):
        record[f"a{i}"] = Array("uint8", (len(piece),), stype, piece)
    return RecordDict({"arrays": record})


def envelope(**fields: object) -> bytes:
    return pb.Frame(envelope=pb.Envelope(**fields)).SerializeToString()  # type: ignore[arg-type]  # the tests' own


def test_generated_module_is_that_of_the_proto(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", "link/link.proto"], cwd=ROOT, check=True)
    for name in ("link_pb2.py", "link_pb2.pyi"):
        assert (tmp_path / "link" / name).read_text() == (ROOT / "link" / name).read_text(), (
            "regenerate: see link.proto"
        )


def test_generated_module_is_a_member_of_the_package() -> None:
    assert pb.__name__ == "link.link_pb2"
    assert importlib.util.find_spec("link.link_pb2") is not None


def test_a_reply_of_k_floats_costs_k_floats_and_little_more() -> None:
    packet = Packet("rand-k", 10**6, np.zeros(500, np.float32), seed=2**64 - 1, version=10**6 - 1)
    frames = frames_of(write_packet(packet, Ask(10**6, "difference", {})), id_=10**7)
    assert len(frames) == 1
    layout = RandK(k=500).layout(10**6, np.dtype(np.float32))
    assert layout.nbytes == 4 * 500 + 8
    assert len(frames[0]) <= layout.nbytes + 64


def test_frames_are_those_that_protobuf_writes() -> None:
    body = b"some data"
    (frame,) = frames_of(arrays(body), id_=300)
    array = pb.Array(key="a0", dtype="uint8", shape=[9], stype="raw", data_bytes=9)
    records = [pb.Record(name="arrays", arrays=pb.ArrayRecord(items=[array]))]
    assert frame == envelope(id=300, content=pb.Content(records=records, body=body))
    chunk = next(Payload(arrays(bytes(CHUNK_BYTES))).chunks())
    assert chunk == pb.Frame(chunk=bytes(CHUNK_BYTES)).SerializeToString()


def test_values_of_every_type_come_back_as_they_were() -> None:
    config = ConfigRecord(
        {
            "int": -(2**63), "uint": 2**64 - 1, "zero": 0, "float": float("inf"), "true": True, "str": "ä",
            "bytes": b"\0", "ints": [-1, 2**63, 0, 2**64 - 1, -(2**63)], "floats": [0.1, -0.0], "bools": [True, False],
            "strs": ["", "b"], "byte strings": [b"", b"\xff"], "empty": [], "long": bytes(INLINE_BYTES + 1),
        }
    )  # fmt: skip
    content = RecordDict(
        {"c": config, "m": MetricRecord({"f": 1.5, "i": 3, "fs": [1.0], "is": [-1]}), "none": ArrayRecord()}
    )
    got = read_records(frames_of(content))
    assert got == content
    assert list(got) == ["c", "m", "none"]
    assert list(got["c"]) == list(config)
    for key, value in config.items():
        twin = got.config_records["c"][key]
        assert type(twin) is type(value), key
        if isinstance(value, list):
            assert isinstance(twin, list)
            assert [type(v) for v in twin] == [type(v) for v in value]


def test_an_array_is_not_touched() -> None:
    got = read_records(frames_of(arrays(b"abc", b"", stype="of my own"))).array_records["arrays"]
    assert (got["a0"].dtype, got["a0"].shape, got["a0"].stype, got["a0"].data) == ("uint8", (3,), "of my own", b"abc")
    assert got["a1"].data == b""


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ([INLINE_BYTES], 0),
        ([INLINE_BYTES, 1], 1),
        ([CHUNK_BYTES], 1),
        ([CHUNK_BYTES + 1], 2),
        ([CHUNK_BYTES - 1, 2, 0, 2 * CHUNK_BYTES], 4),
    ],
)
def test_a_long_body_comes_in_chunks(sizes: list[int], chunks: int) -> None:
    content = arrays(*(bytes([i + 1]) * size for i, size in enumerate(sizes)))
    frames = frames_of(content)
    assert len(frames) == 1 + chunks
    assert max(map(len, frames)) <= MAX_FRAME_BYTES
    assert read_records(frames) == content


def test_an_instruction_carries_what_flower_says_of_it() -> None:
    head = pb.Envelope(id=7, message_type="train.x", group_id="12", ttl_s=2.5).SerializeToString()
    parcel = read([Payload(RecordDict()).envelope(head)])
    assert parcel == Parcel(7, "train.x", "12", 2.5, RecordDict())


@pytest.mark.parametrize("error", [Error(-3, "why"), Error(2, ""), Error(0)])
def test_an_error_comes_back(error: Error) -> None:
    parcel = read([error_frame(5, error)])
    assert isinstance(parcel, Parcel)
    assert (parcel.id, parcel.answer) == (5, error)


@pytest.mark.parametrize(
    "message",
    [
        pb.Hello(protocol=1, name="n", fingerprint="f", worker=0),
        pb.Welcome(run_id=2**64 - 1, node_id=5, worker=3, clients=4, settings={"a": "b"}),
        pb.Refusal(reason="r", retry=True),
        pb.Ready(),
        pb.Pass(id=3),
        pb.Goodbye(reason="done", final=True),
    ],
)
def test_control_frames_come_back(message: Control) -> None:
    assert read([control_frame(message)]) == message


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [2**64, -1], [-(2**63) - 1], "\ud800", ["\ud800"]])
def test_what_does_not_fit_the_wire_is_refused_before_it_is_sent(value: int) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        Payload(RecordDict({"c": ConfigRecord({"v": value})}))


def test_records_without_a_body_may_not_be_longer_than_a_frame() -> None:
    with pytest.raises(WireError, match=f"oversize: .* at most {CHUNK_BYTES}"):
        Payload(RecordDict({"c": ConfigRecord({"v": ["x" * 1000] * (CHUNK_BYTES // 1000)})}))


def test_lists_and_shapes_may_not_be_long() -> None:
    message = "oversize: 65537 elements .* at most 65536"
    read(frames_of(RecordDict({"m": MetricRecord({"a": [1] * 65_000, "b": [0.5] * 536})})))
    with pytest.raises(WireError, match=message):
        Payload(RecordDict({"m": MetricRecord({"a": [1] * 65_000, "b": [0.5] * 537})}))
    long: list[pb.Record] = [
        pb.Record(arrays=pb.ArrayRecord(items=[pb.Array(shape=[1] * 65_537)])),
        pb.Record(config=pb.ConfigRecord(items=[pb.Item(blobs=pb.Blobs(values=[b""] * 65_537))])),
        pb.Record(metrics=pb.MetricRecord(items=[pb.Item(integers=pb.Integers(values=[0] * 65_537))])),
    ]
    for record in long:
        reader = Reader(1 << 40)
        with pytest.raises(WireError, match=message):
            reader.feed(envelope(content=pb.Content(records=[record])))
        assert isinstance(reader.feed(control_frame(pb.Ready())), pb.Ready)


def test_a_reply_is_refused_at_its_envelope_if_it_declares_too_much() -> None:
    frames = frames_of(arrays(bytes(2 * CHUNK_BYTES)))
    total = len(frames[0]) + 2 * CHUNK_BYTES
    assert isinstance(read(frames, max_bytes=total), Parcel)
    reader = Reader(total - 1)
    with pytest.raises(WireError, match=f"oversize: a message of {total} bytes: at most {total - 1}"):
        reader.feed(frames[0])
    assert [reader.feed(frame) for frame in frames[1:]] == [None, None]  # dropped
    assert isinstance(reader.feed(frames_of(arrays(b"x"))[0]), Parcel)


def test_an_inline_reply_is_measured_too() -> None:
    (frame,) = frames_of(arrays(bytes(100)))
    assert isinstance(read([frame], max_bytes=len(frame)), Parcel)
    with pytest.raises(WireError, match=f"oversize: a message of {len(frame)} bytes: at most {len(frame) - 1}"):
        read([frame], max_bytes=len(frame) - 1)


def test_a_broken_body_ends_with_the_frame_that_broke_it() -> None:
    reader = Reader(1 << 40)
    frames = frames_of(arrays(bytes(2 * CHUNK_BYTES + 5)))
    assert [reader.feed(frame) for frame in frames[:2]] == [None, None]
    with pytest.raises(WireError, match=f"out of order: {CHUNK_BYTES + 5} bytes of a body are missing when pass comes"):
        reader.feed(control_frame(pb.Pass(id=1)))
    assert isinstance(reader.feed(control_frame(pb.Pass(id=1))), pb.Pass)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES + 1])
def test_a_chunk_of_another_length_is_refused(length: int) -> None:
    reader = Reader(1 << 40)
    reader.feed(frames_of(arrays(bytes(2 * CHUNK_BYTES)))[0])
    with pytest.raises(WireError, match=f"out of order: a chunk of {length} bytes where {CHUNK_BYTES} are due"):
        reader.feed(pb.Frame(chunk=bytes(length)).SerializeToString())


def test_more_than_was_declared_is_refused() -> None:
    frames = frames_of(arrays(bytes(CHUNK_BYTES)))
    reader = Reader(1 << 40)
    assert reader.feed(frames[0]) is None
    assert isinstance(reader.feed(frames[1]), Parcel)
    with pytest.raises(WireError, match=r"oversize: a chunk .* belongs to no envelope"):
        reader.feed(frames[1])


@pytest.mark.parametrize(("chunk", "passes"), [(CHUNK_BYTES, 2), (CHUNK_BYTES // 4, 8), (0, 2 * CHUNK_BYTES // 1024)])
def test_what_comes_behind_a_refused_reply_is_dropped_up_to_a_bound(chunk: int, passes: int) -> None:
    reader = Reader(CHUNK_BYTES)
    raw = pb.Frame(chunk=bytes(chunk)).SerializeToString()
    # Another flaw gives no more to drop; a message that is read does.
    for _ in range(2):
        assert isinstance(reader.feed(frames_of(arrays(b"x"))[0]), Parcel)
        for half in (passes // 2, passes - passes // 2):
            with pytest.raises(WireError, match="oversize: a message of"):
                reader.feed(frames_of(arrays(bytes(2 * CHUNK_BYTES)))[0])
            assert [reader.feed(raw) for _ in range(half)] == [None] * half
    with pytest.raises(Endless, match=f"oversize: .* bytes followed a refused message: at most {2 * CHUNK_BYTES}"):
        reader.feed(raw)


def test_a_frame_that_is_too_long_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    (frame,) = frames_of(arrays(bytes(5000)))
    reader = Reader(100)
    monkeypatch.setattr("link.wire.pb", None)
    with pytest.raises(WireError, match=f"oversize: a frame of {len(frame)} bytes: at most {CONTROL_BYTES}"):
        reader.feed(frame)


def test_a_message_of_very_many_records_is_refused() -> None:
    message = f"oversize: {MAX_ITEMS + 1} records, arrays and values in one message: at most {MAX_ITEMS}"
    many = ConfigRecord({str(i): 1 for i in range(MAX_ITEMS - 1)})
    frames = frames_of(RecordDict({"c": many}))
    assert isinstance(read(frames), Parcel)
    many["one more"] = 1
    with pytest.raises(WireError, match=message):
        Payload(RecordDict({"c": many}))
    for records in ([pb.Record()] * (MAX_ITEMS + 1), [*[pb.Record()] * 4, *[pb.Record(name="c", config=CONFIG)] * 2]):
        with pytest.raises(WireError, match=r"oversize: .* records, arrays and values in one"):
            read([envelope(content=pb.Content(records=records))])


ITEM = pb.Item(key="k", integer=1)
CONFIG = pb.ConfigRecord(items=[ITEM] * (MAX_ITEMS // 2))
RECORD = pb.Record(name="r", config=pb.ConfigRecord(items=[ITEM]))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "of an unknown kind"),
        (b"\xff\xff\xff", "no Frame"),
        (b"\x32\x05abc", "no Frame"),
        (b"\x32" + b"\xff" * 9, "no Frame"),
        (b"\x32\x80\x00\x32\x00", "of an unknown kind"),  # two chunks in one frame
        (envelope(id=1), "without content and without error"),
        (envelope(content=pb.Content(records=[RECORD, RECORD])), "two records named 'r'"),
        (envelope(content=pb.Content(records=[pb.Record(name="r")])), "record 'r' is of an unknown kind"),
        (
            envelope(content=pb.Content(records=[pb.Record(name="r", config=pb.ConfigRecord(items=[ITEM, ITEM]))])),
            "two values named 'k'",
        ),
        (
            envelope(
                content=pb.Content(records=[pb.Record(name="r", config=pb.ConfigRecord(items=[pb.Item(key="k")]))])
            ),
            "value 'k' is of an unknown kind",
        ),
        (
            envelope(
                content=pb.Content(
                    records=[pb.Record(name="r", metrics=pb.MetricRecord(items=[pb.Item(key="k", text="no")]))]
                )
            ),
            "record 'r': ",
        ),
        (
            envelope(
                content=pb.Content(
                    records=[
                        pb.Record(
                            name="r",
                            config=pb.ConfigRecord(
                                items=[pb.Item(key="k", integers=pb.Integers(values=[-1], wrapped=[1]))]
                            ),
                        )
                    ]
                )
            ),
            "no value of a list of 1 integers is wrapped at place 1",
        ),
        (
            envelope(
                content=pb.Content(
                    records=[pb.Record(name="r", arrays=pb.ArrayRecord(items=[pb.Array(key="a"), pb.Array(key="a")]))]
                )
            ),
            "two arrays named 'a'",
        ),
        (
            envelope(
                content=pb.Content(
                    records=[pb.Record(name="r", arrays=pb.ArrayRecord(items=[pb.Array(key="a", data_bytes=3)]))],
                    body=b"12",
                )
            ),
            "1 bytes shorter",
        ),
        (envelope(content=pb.Content(body=b"12")), "2 bytes longer"),
        (envelope(error=pb.Error(), content=pb.Content(body=b"12")), "2 bytes longer"),
        (envelope(content=pb.Content(body_bytes=10**9)), "a body of 1000000000 bytes for records that take 0"),
        (
            envelope(
                content=pb.Content(
                    records=[pb.Record(name="r", arrays=pb.ArrayRecord(items=[pb.Array(key="a", data_bytes=3)]))],
                    body_bytes=3,
                    body=b"123",
                )
            ),
            "a body of 3 bytes for records that take 3",
        ),
    ],
)
def test_a_flawed_frame_is_refused_with_its_reason(frame: bytes, reason: str) -> None:
    reader = Reader(1 << 40)
    with pytest.raises(WireError, match=r"^undecodable: ") as caught:
        reader.feed(frame)
    assert reason in caught.value.reason
    assert isinstance(reader.feed(control_frame(pb.Ready())), pb.Ready)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 65_000, 65_537, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("record", ["config", "arrays"])
def test_the_frames_of_a_message_are_as_long_as_is_said_before_they_are_written(size: int, record: str) -> None:
    data = bytes(size)
    held = ConfigRecord({"": data}) if record == "config" else ArrayRecord({"": Array("uint8", (size,), "raw", data)})
    payload, head = Payload(RecordDict({"p": held})), b"\x08\x01"
    frames = [payload.envelope(head), *payload.chunks()]
    assert payload.frame_bytes(len(head)) == list(map(len, frames))


@pytest.mark.parametrize("n", [0, 1, 63, 64, 127, 128, 8_191, 8_192, 2**34 - 1, 2**34, 2**62, 2**63, 2**64 - 1])
def test_so_are_those_of_an_instruction_whatever_its_numbers(n: int) -> None:
    others: list[int] = [0, n, 300, 2**63 + 5, -(2**63), -(n >> 1), -(n >> 1) - 1]
    config: dict[str, Any] = {"n": n, "-n": -(n >> 1), "list": others, "none": [], "x": 0.0, "no": False, "b": b"123"}
    config["text"] = "ü" * 70
    frames_as_long_as_said(RecordDict({"ask": ConfigRecord(config), **arrays(b"12", bytes(70_000))}))
    frames_as_long_as_said(RecordDict({"ask": ConfigRecord({"texts": ["a"]}), "m": MetricRecord({"n": n % 2**63})}))


def frames_as_long_as_said(content: RecordDict) -> None:
    payload = Payload(content)
    lengths = payload.frame_bytes(len(reply_head(1)))
    assert lengths == list(map(len, [payload.envelope(reply_head(1)), *payload.chunks()]))
