"""What travels on a stream: the link's frames to bytes and back.

An envelope describes the records of a message (records.py); the bytes of its arrays follow as a body, in the envelope
while short, else in chunks. A frame is written by hand where that saves a copy; it is always a valid ``Frame``
of link.proto. Whatever bytes a peer sends, ``Reader.feed`` returns a value or raises WireError, and never holds more
than the bound it was given. docs/wire.md describes the bytes.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from google.protobuf.message import DecodeError

from foundation.errors import WireError
from link import link_pb2 as pb
from link.records import INLINE_BYTES, Body, described_bytes, described_elements, elements_of, pack, unpack

PROTOCOL = 2
"""Version of the protocol; both ends must have the same."""
METHOD = "/breakwater.link.v1.Link/Session"
"""The gRPC method of the stream."""
CHUNK_BYTES = 1 << 20
"""Length of every chunk but the last of a body."""
MAX_FRAME_BYTES = CHUNK_BYTES + (64 << 10)
"""The longest frame, so the limit given to gRPC at both ends: a chunk, or an envelope with as many descriptions."""
TRANSPORT = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    # Read from the socket into large buffers. With the small default ones, long bodies fill the kernel's receive window
    # (every round of 8 clients x 4 MB shut it several times), and reopening it can take TCP 200 ms.
    ("grpc.experimental.tcp_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_min_read_chunk_size", 256 << 10),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
)
"""Options of gRPC that both ends use."""
CONTROL_BYTES = 4096
"""The longest frame that the server takes from a client that has nothing to answer; and what a reply may be longer than
its packet: records, envelope, or an error in its place."""
MAX_ITEMS = 4096
"""How many records, arrays and values one message holds at most: each costs some 30 us to read, however short it is."""
MAX_ELEMENTS = 1 << 16
"""How many elements the lists of one message have at most, and dimensions its arrays: one that takes a byte on the wire
may take 40 in memory."""
MAX_BODY_BYTES = 1 << 40
"""Where no smaller bound is given: what a client takes from the server it trusts."""

_LEAST_DROPPED = 1024
"""Minimum charge per dropped chunk, so that empty chunks also reach the limit."""
_USE_ARRAYS = "put long lists into an ArrayRecord"

_ENVELOPE, _CHUNK = b"\x2a", b"\x32"  # tags of Frame.envelope and Frame.chunk
_CONTENT = b"\x32"  # tag of Envelope.content
_BODY_BYTES, _BODY = b"\x10", b"\x1a"  # tags of Content.body_bytes and Content.body


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The server's answer to a client that it accepts.

    Args:
        name: the client's own name.
        run_id: of the run.
        node_id: the client's, as Flower sees it.
        worker: the client's seat, 0 .. clients-1.
        clients: n, the number of seats.
        settings: what the application sends to its clients.
        heartbeat_s: seconds between the server's pings.
        max_reply_bytes: a longer reply is refused.
    """

    name: str
    run_id: int
    node_id: int
    worker: int
    clients: int
    settings: Mapping[str, str]
    heartbeat_s: float
    max_reply_bytes: int


@dataclass(frozen=True)
class Parcel:
    """An envelope with its body: an instruction, or the reply to one."""

    id: int
    message_type: str
    group_id: str
    ttl_s: float
    answer: RecordDict | Error


Control = pb.Hello | pb.Welcome | pb.Refusal | pb.Ready | pb.Pass | pb.Goodbye


class Payload:
    """A RecordDict serialised once, for any number of envelopes; not before its bytes are asked for, if it has a shape.

    Args:
        content: the records, or what returns them. Their byte strings are kept and not copied, so they must not change;
            bytes cannot.
        shape: of the records, see ``shape_of``; None where it has to be worked out.

    Raises:
        WireError: it holds what does not fit the wire: an integer outside -2^63 .. 2^64-1, text that is no Unicode,
            records other than array data and long byte strings that are longer than a frame, more than MAX_ITEMS, lists
            of more than MAX_ELEMENTS in all.
    """

    def __init__(self, content: RecordDict | Callable[[], RecordDict], shape: "Shape | None" = None) -> None:
        self.reply_bound: int | None = None  # how long a reply to this may be; None as long as any
        self._records = content
        shape = shape_of(self._content) if shape is None else shape
        self._lengths = self._written.lengths if shape is None else _lengths_of(shape)

    @property
    def _content(self) -> RecordDict:
        return self._records if isinstance(self._records, RecordDict) else self._records()

    @cached_property
    def _written(self) -> "_Written":
        return _write(self._content)

    def envelope(self, *head: bytes) -> bytes:
        """Return the frame of an envelope with this content; ``head`` is its serialised other fields."""
        return _field(_ENVELOPE, *head, self._written.content)

    def chunks(self) -> Iterator[bytes]:
        """Yield the chunk frames that follow the envelope, made on the way."""
        pieces: list[memoryview] = []
        held = 0
        for part in self._written.parts:
            view = memoryview(part)
            while view:
                piece = view[: CHUNK_BYTES - held]
                pieces.append(piece)
                held += len(piece)
                view = view[len(piece) :]
                if held == CHUNK_BYTES:
                    yield _field(_CHUNK, *pieces)
                    pieces, held = [], 0
        if held:
            yield _field(_CHUNK, *pieces)

    def frame_bytes(self, head_bytes: int) -> list[int]:
        """Return the length of each frame of a message with this content: of the envelope, then of its chunks.

        Args:
            head_bytes: length of the envelope's other fields.
        """
        content, parts = self._lengths
        envelope = _field_bytes(head_bytes + content)
        if not parts:
            return [envelope]
        full, rest = divmod(parts, CHUNK_BYTES)
        return [envelope, *[_field_bytes(CHUNK_BYTES)] * full, *([_field_bytes(rest)] if rest else ())]

    @cached_property
    def shared_chunks(self) -> list[bytes]:
        """The chunk frames, made once and kept: for a broadcast."""
        return list(self.chunks())


@dataclass(frozen=True)
class _Written:
    """The envelope's field with the records, and the parts of a body that does not fit into it."""

    content: bytes
    parts: list[bytes]

    @property
    def lengths(self) -> tuple[int, int]:
        """The bytes of the field and of all parts."""
        return len(self.content), sum(map(len, self.parts))


def _write(content: RecordDict) -> _Written:
    """Serialise records; see ``Payload``."""
    flaw = _flaw_of_counts(sum(1 + len(record) for record in content.values()), lambda: elements_of(content))
    if flaw is not None:
        raise WireError(flaw)
    records, parts = pack(content)
    if len(records) > CHUNK_BYTES:
        least = f"records of {len(records)} bytes besides array data and long byte strings"
        raise WireError(f"oversize: {least}: at most {CHUNK_BYTES}; {_USE_ARRAYS}")
    body_bytes = sum(map(len, parts))
    body: tuple[bytes, ...] = (_BODY_BYTES, _varint(body_bytes))
    if body_bytes <= INLINE_BYTES:
        body = (_BODY, _varint(body_bytes), *parts) if body_bytes else ()
        parts = []
    return _Written(_field(_CONTENT, records, *body), parts)


Shape = tuple[tuple[str, str, tuple[tuple[str, Hashable], ...]], ...]
"""Of records: all that the lengths of their frames depend on. Of each record the name, the kind ("a": arrays, "c": a
config), and by key what its value is like: how an array is described, or the type and a value of the same length."""


def shape_of(content: RecordDict) -> Shape | None:
    """Return the shape of records; None where they hold what has none: metrics, lists of anything but integers."""
    shape: list[tuple[str, str, tuple[tuple[str, Hashable], ...]]] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = ((key, array_shape(a.dtype, a.shape, a.stype, len(a.data))) for key, a in record.items())
            shape.append((name, "a", tuple(arrays)))
            continue
        if not isinstance(record, ConfigRecord):
            return None
        values = []
        for key, value in record.items():
            like = _like(value)
            if like is None:
                return None
            values.append((key, like))
        shape.append((name, "c", tuple(values)))
    return tuple(shape)


def array_shape(dtype: str, shape: tuple[int, ...], stype: str, nbytes: int) -> Hashable:
    """Return what an array has in a ``Shape``."""
    return dtype, shape, stype, nbytes


def bytes_shape(nbytes: int) -> Hashable:
    """Return what a byte string has in a ``Shape``."""
    return "bytes", nbytes


def _like(value: object) -> tuple[str, Hashable] | None:
    """Return what a value of a config has in a ``Shape``: its type, and what ``_of_like`` makes a value from."""
    if isinstance(value, bytes):
        return "bytes", len(value)
    if isinstance(value, bool):  # before int, whose subclass it is
        return "bool", True
    if isinstance(value, int):
        return "int", 1 << 63 if 1 << 63 <= value < 1 << 64 else _least(value)  # unsigned ones have one length
    if isinstance(value, float):
        return "float", 1.0
    if isinstance(value, str):
        return "str", value
    if isinstance(value, list) and all(type(each) is int for each in value):
        return "list", tuple(map(_least, value))
    return None


def _of_like(like: tuple[str, Any]) -> Any:
    kind, value = like
    return bytes(value) if kind == "bytes" else list(value) if kind == "list" else value


def _least(n: int) -> int:
    """Return an integer that takes as many bytes on the wire as ``n``: one for all signed ones of a length.

    Signed integers travel zigzag: 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
    """
    if not -(1 << 63) <= n < 1 << 63:
        return n
    more = varint_bytes(2 * n if n >= 0 else -2 * n - 1) - 1
    return 1 << 7 * more - 1 if more else 0


@lru_cache(maxsize=256)
def _lengths_of(shape: Shape) -> tuple[int, int]:
    """Return ``_Written.lengths`` of records of this shape; those of one round's messages are mostly the same."""
    like = RecordDict()
    for name, kind, values in shape:
        given: Any = values
        if kind == "c":
            like[name] = ConfigRecord({key: _of_like(each) for key, each in given})
        else:
            arrays = {key: Array(dtype, of, stype, bytes(n)) for key, (dtype, of, stype, n) in given}
            like[name] = ArrayRecord(arrays)
    return _write(like).lengths


def reply_head(id_: int) -> bytes:
    """Return the fields of a reply's envelope before its content."""
    return b"\x08" + _varint(id_)


def reply_head_bytes(id_: int) -> int:
    """Return the length of the same."""
    return 1 + varint_bytes(id_)


def error_frame(id_: int, error: Error) -> bytes:
    """Return the frame of a reply that is an error."""
    return control_frame(pb.Envelope(id=id_, error=pb.Error(code=error.code, reason=error.reason)))


def heartbeat(interval_s: float) -> list[tuple[str, int]]:
    """Return the options of gRPC that make an end ping its peer, and give it up if it does not answer in time.

    HTTP/2 pings are answered by gRPC's own threads, also while Python computes; a stopped or vanished peer misses them.

    Args:
        interval_s: seconds between pings, and the time that the peer has to answer one.
    """
    interval_ms = int(interval_s * 1000)
    return [
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", interval_ms),
        ("grpc.http2.ping_timeout_ms", interval_ms),  # else 60 s, whatever the keepalive timeout
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def control_frame(message: Control | pb.Envelope) -> bytes:
    """Return the frame of one message that has no body."""
    kind = type(message).__name__.lower()
    return pb.Frame(**{kind: message}).SerializeToString()  # type: ignore[arg-type]  # the kind names its type


class Endless(WireError):  # noqa: N818  # the name says what happened
    """Chunks of what was refused keep coming: nothing more is to be read from this peer."""


class Reader:
    """Reads the frames of one direction of one stream, in their order.

    After a WireError it goes on with the next frame; chunks that belong to what was refused are dropped, as many bytes
    as the bound and a chunk, until a message is read again.

    Args:
        max_bytes: the longest envelope and body together that are read. May be set between any two frames; a body that
            is under way is read to its end.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._dropped = self._to_drop = 0  # bytes, and how many at most
        self._open: pb.Envelope | None = None  # the envelope whose body is coming
        self._chunks: list[memoryview] = []
        self._missing, self._dropping = 0, False

    @property
    def expects_message(self) -> bool:
        """Whether a message may begin with the next frame, as nothing incomplete or refused came before it."""
        return self._open is None and not self._dropping

    def feed(self, raw: bytes) -> Control | Parcel | None:
        """Read one frame.

        Returns:
            What is complete with this frame; None while a body is incomplete or what was refused is dropped.

        Raises:
            WireError: these bytes are no frame, or one that must not come now.
            Endless: the stream must end.
        """
        if (chunk := _as_chunk(raw)) is not None:
            return self._feed_chunk(chunk)
        if len(raw) > max(self.max_bytes, CONTROL_BYTES):  # it is not even parsed
            raise self._refused(f"oversize: a frame of {len(raw)} bytes: at most {max(self.max_bytes, CONTROL_BYTES)}")
        try:
            frame = pb.Frame.FromString(raw)
        except DecodeError as error:
            raise self._refused(f"undecodable: a frame of {len(raw)} bytes that is no Frame of link.proto") from error
        kind = frame.WhichOneof("kind")
        if self._open is not None:
            raise self._refused(f"out of order: {self._missing} bytes of a body are missing when {kind} comes")
        self._dropping = False
        if kind == "envelope":
            return self._feed_envelope(frame.envelope, len(raw))
        if kind is None or kind == "chunk":  # a chunk that is not written as _as_chunk reads it
            raise self._refused(f"undecodable: a frame of {len(raw)} bytes of an unknown kind")
        return cast(Control, getattr(frame, kind))

    def _feed_envelope(self, envelope: pb.Envelope, frame_bytes: int) -> Parcel | None:
        body_bytes = envelope.content.body_bytes
        if frame_bytes + body_bytes > self.max_bytes:
            raise self._refused(f"oversize: a message of {frame_bytes + body_bytes} bytes: at most {self.max_bytes}")
        flaw = _flaw_of_counts(_items_of(envelope.content), lambda: described_elements(envelope.content))
        if flaw is not None:
            raise self._refused(flaw)
        if not body_bytes:
            return self._whole(envelope, Body([envelope.content.body]))
        described = described_bytes(envelope.content)
        if described != body_bytes or envelope.content.body:
            raise self._refused(f"undecodable: a body of {body_bytes} bytes for records that take {described}")
        self._open, self._missing = envelope, body_bytes
        return None

    def _feed_chunk(self, chunk: memoryview) -> Parcel | None:
        if self._dropping:
            self._dropped += max(len(chunk), _LEAST_DROPPED)
            if self._dropped > self._to_drop:
                raise Endless(f"oversize: {self._dropped} bytes followed a refused message: at most {self._to_drop}")
            return None
        if self._open is None:
            raise self._refused(f"oversize: a chunk of {len(chunk)} bytes that belongs to no envelope")
        expected = min(CHUNK_BYTES, self._missing)
        if len(chunk) != expected:  # exact, so that no body can be cut into millions of pieces
            raise self._refused(f"out of order: a chunk of {len(chunk)} bytes where {expected} are due")
        self._chunks.append(chunk)
        self._missing -= expected
        if self._missing:
            return None
        envelope, chunks = self._open, self._chunks
        self._open, self._chunks = None, []
        return self._whole(envelope, Body(chunks))

    def _whole(self, envelope: pb.Envelope, body: Body) -> Parcel:
        parcel = _parcel(envelope, body)
        self._dropped = 0
        return parcel

    def _refused(self, flaw: str) -> WireError:
        """Drop what belongs to the refused message from now on; return the error to raise."""
        self._open, self._chunks, self._missing, self._dropping = None, [], 0, True
        self._to_drop = max(self.max_bytes + CHUNK_BYTES, self._to_drop if self._dropped else 0)
        return WireError(flaw)


def _parcel(envelope: pb.Envelope, body: Body) -> Parcel:
    answer: RecordDict | Error
    if envelope.HasField("error"):
        reason = envelope.error.reason if envelope.error.HasField("reason") else None
        answer = Error(envelope.error.code, reason)
    elif envelope.HasField("content"):
        answer = unpack(envelope.content, body)
    else:
        raise WireError("undecodable: an envelope without content and without error")
    body.check_empty()
    return Parcel(envelope.id, envelope.message_type, envelope.group_id, envelope.ttl_s, answer)


def _items_of(content: pb.Content) -> int:
    """Return how many records, arrays and values there are."""
    items = len(content.records)
    if items <= MAX_ITEMS:  # else there is no need to look into them
        items += sum(len(r.arrays.items) + len(r.config.items) + len(r.metrics.items) for r in content.records)
    return items


def _flaw_of_counts(items: int, elements: Callable[[], int]) -> str | None:
    """Return why a message holds too much, or None; elements are counted only where there are not too many items."""
    if items > MAX_ITEMS:
        return f"oversize: {items} records, arrays and values in one message: at most {MAX_ITEMS}"
    if (n := elements()) > MAX_ELEMENTS:
        return f"oversize: {n} elements of lists and dimensions of arrays: at most {MAX_ELEMENTS}; {_USE_ARRAYS}"
    return None


def _field(tag: bytes, *parts: bytes | memoryview) -> bytes:
    """Return one length-delimited protobuf field: tag, length, data."""
    return b"".join((tag, _varint(sum(map(len, parts))), *parts))


def _field_bytes(data: int) -> int:
    """Return the length of a field with that many bytes of data."""
    return 1 + varint_bytes(data) + data


def varint_bytes(n: int) -> int:
    """Return the length of a non-negative integer as protobuf writes it."""
    return -(-n.bit_length() // 7) or 1


def _varint(n: int) -> bytes:
    """Return a non-negative integer as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _as_chunk(raw: bytes) -> memoryview | None:
    """Return the data of a chunk frame without a copy, or None if these bytes are not one chunk frame and no more."""
    if raw[:1] != _CHUNK:
        return None
    length = shift = 0
    for at, byte in enumerate(raw[1:6], 2):  # a chunk's length takes at most 5 bytes
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return memoryview(raw)[at:] if length == len(raw) - at else None
        shift += 7
    return None
