"""decode(encode(records)) = records, and any bytes at all give a value or WireError."""

import math
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from foundation.errors import WireError
from link import link_pb2 as pb
from link import wire
from link.records import INLINE_BYTES
from link.wire import Parcel, Payload, Reader, reply_head

integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
blobs = st.binary(max_size=20) | st.integers(INLINE_BYTES - 2, 3 * INLINE_BYTES).map(bytes)
numbers = integers | floats | st.lists(integers, max_size=5) | st.lists(floats, max_size=5)
values = (
    numbers
    | st.booleans()
    | texts
    | blobs
    | st.lists(st.booleans(), max_size=5)
    | st.lists(texts, max_size=5)
    | st.lists(st.binary(max_size=5), max_size=5)
)


def array_record(arrays: dict[str, Array]) -> ArrayRecord:
    record = ArrayRecord()
    for key, array in arrays.items():
        record[key] = array
    return record


arrays = st.builds(Array, texts, st.lists(st.integers(0, 2**40), max_size=3).map(tuple), texts, blobs)
records = (
    st.dictionaries(texts, arrays, max_size=4).map(array_record)
    | st.dictionaries(texts, values, max_size=5).map(ConfigRecord)
    | st.dictionaries(texts, numbers, max_size=5).map(MetricRecord)
)
record_dicts = st.dictionaries(texts, records, max_size=4).map(RecordDict)


def frames_of(content: RecordDict) -> list[bytes]:
    payload = Payload(content)
    return [payload.envelope(reply_head(7)), *payload.chunks()]


def feed(reader: Reader, frames: list[bytes]) -> list[Any]:
    """Return what each frame gave: a value, None, or the WireError that it raised."""
    got: list[Any] = []
    for frame in frames:
        try:
            got.append(reader.feed(frame))
        except WireError as error:
            got.append(error)
    return got


def types_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> list[object]:
    return [[type(v) for v in value] if isinstance(value, list) else type(value) for value in record.values()]


@given(record_dicts)
def test_decode_of_encode_is_the_same(content: RecordDict) -> None:
    *before, last = feed(Reader(1 << 40), frames_of(content))
    assert before == [None] * len(before)
    assert isinstance(last, Parcel)
    assert last.answer == content
    assert isinstance(last.answer, RecordDict)
    assert list(last.answer) == list(content)
    for name, record in content.items():
        assert list(last.answer[name]) == list(record)
        assert types_of(last.answer[name]) == types_of(record)


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_floats_keep_their_kind(numbers: list[float]) -> None:
    (last,) = feed(Reader(1 << 40), frames_of(RecordDict({"m": MetricRecord({"v": numbers})})))
    twins = last.answer.metric_records["m"]["v"]
    assert [math.copysign(1, v) if v == 0 else v for v in numbers if v == v] == [
        math.copysign(1, v) if v == 0 else v for v in twins if v == v
    ]
    assert [v != v for v in numbers] == [v != v for v in twins]


@given(record_dicts)
def test_the_hand_written_frames_are_what_protobuf_reads(content: RecordDict) -> None:
    envelope, *chunks = frames_of(content)
    parsed = pb.Frame.FromString(envelope)
    assert parsed.envelope.id == 7
    body = parsed.envelope.content.body + b"".join(pb.Frame.FromString(chunk).chunk for chunk in chunks)
    assert len(body) == (parsed.envelope.content.body_bytes or len(parsed.envelope.content.body))


@given(st.lists(st.binary(max_size=60), max_size=5))
@example([b"\x2a\x02\x32\x00", b"\x32\x01a"])
def test_any_bytes_give_a_value_or_a_wire_error(frames: list[bytes]) -> None:
    feed(Reader(10**6), frames)


@given(record_dicts, st.data())
def test_damaged_frames_give_a_value_or_a_wire_error(content: RecordDict, data: st.DataObject) -> None:
    frames = frames_of(content)
    at = data.draw(st.integers(0, len(frames) - 1), label="frame")
    frame = bytearray(frames[at])
    for _ in range(data.draw(st.integers(1, 3), label="flips")):
        frame[data.draw(st.integers(0, min(len(frame), 200) - 1), label="place")] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(frame[: data.draw(st.integers(0, len(frame)), label="cut")])
    reader = Reader(1 << 40)
    feed(reader, [*frames[:at], damaged, *frames[at + 1 :]])
    # Whatever it was, the next whole message is read.
    *_, last = feed(reader, [wire.control_frame(pb.Ready()), *frames_of(content)])
    assert isinstance(last, Parcel)
    assert last.answer == content


@given(record_dicts, st.integers(0, 300_000))
def test_a_reader_never_holds_more_than_its_bound(content: RecordDict, bound: int) -> None:
    frames = frames_of(content)
    got = feed(Reader(bound), frames)
    envelope = frames[0]
    declared = len(envelope) + pb.Frame.FromString(envelope).envelope.content.body_bytes
    if declared > bound:
        assert isinstance(got[0], WireError)
        if len(envelope) > max(bound, wire.CONTROL_BYTES):  # it is not even parsed
            assert got[0].reason.startswith(f"oversize: a frame of {len(envelope)} bytes: at most ")
        else:
            assert got[0].reason == f"oversize: a message of {declared} bytes: at most {bound}"
        assert got[1:] == [None] * len(frames[1:])
    else:
        assert isinstance(got[-1], Parcel)
