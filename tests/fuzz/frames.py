"""Frames and records made from a script: well-formed, nearly so, or not at all."""

from functools import cache

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from link import link_pb2 as pb
from link.records import described_bytes
from link.wire import CHUNK_BYTES, Payload, control_frame, reply_head
from tests.fuzz.script import Script

_NAMES = ("p", "", "ask", "vectors", "packet", "values", "marks", "x", "ä", "\n\x1b[31m", "n" * 100)
_TYPES = ("uint8", "float32", "float64", ">f8", "object", "float16", "", "int64")
_STYPES = ("raw.le", "numpy.ndarray", "")
_REALS = (0.0, -0.0, 1.0, -1.5, float("nan"), float("inf"), float("-inf"), 5e-324, 1e308, -1e38)


def name(s: Script) -> str:
    """Return a name, often one that readers look for."""
    n = s.byte()
    return _NAMES[n] if n < len(_NAMES) else s.blob(12).decode(errors="ignore")


def frame(s: Script, id_: int = 1) -> bytes:
    """Return one frame.

    Args:
        s: where choices come from.
        id_: number of the instruction that a well-formed reply would answer.
    """
    kind = s.below(12)
    if kind == 0:
        return s.blob(255)
    if kind == 1:
        return s.damaged(control_frame(_control(s, id_)))
    if kind == 2:
        return _chunk(s)
    if kind == 3:
        return s.damaged(_reply(s, id_))
    return s.damaged(pb.Frame(envelope=_envelope(s, id_)).SerializeToString())


def _control(s: Script, id_: int) -> pb.Hello | pb.Welcome | pb.Refusal | pb.Ready | pb.Pass | pb.Goodbye:
    match s.below(8):
        case 0:
            hello = pb.Hello(protocol=s.number() % 2**32, name=name(s), fingerprint=name(s))
            if s.below(2):
                hello.worker = s.number() % 2**32
            if s.below(2):
                hello.former = s.number() % 2**32
            return hello
        case 1:
            return pb.Welcome(run_id=s.number(), clients=s.number() % 2**32, settings={name(s): name(s)})
        case 2:
            return pb.Refusal(reason=name(s), retry=bool(s.below(2)))
        case 3:
            return pb.Goodbye(reason=name(s), final=bool(s.below(2)))
        case 4:
            return pb.Ready(task=name(s)) if s.below(2) else pb.Ready()
        case _:
            return pb.Pass(id=_id(s, id_))


def _id(s: Script, id_: int) -> int:
    return id_ if s.below(4) else s.number()


def _chunk(s: Script) -> bytes:
    """Return a chunk frame: of a length that a short body may need, of any, or rarely of about the longest."""
    how = s.below(32)
    if how < 4:
        return _long_chunk((0, 0, -1, 1)[how])
    length = s.below(256) if how < 20 else s.below(1 << 16)
    return s.damaged(pb.Frame(chunk=bytes([s.byte()]) * length).SerializeToString())


@cache
def _long_chunk(beyond: int) -> bytes:
    return pb.Frame(chunk=bytes(CHUNK_BYTES + beyond)).SerializeToString()


def _reply(s: Script, id_: int) -> bytes:
    """Return a frame of a reply as our own clients write it, with any bytes for a packet."""
    data = s.blob(120) * (1, 1, 1, 600)[s.below(4)]
    record: ConfigRecord | ArrayRecord = ConfigRecord({"": data})
    if s.below(2):
        record = ArrayRecord({"": Array("uint8", (len(data),), "raw.le", data)})
    return Payload(RecordDict({"p": record})).envelope(reply_head(_id(s, id_)))


def _envelope(s: Script, id_: int) -> pb.Envelope:
    envelope = pb.Envelope(id=_id(s, id_))
    how = s.below(8)
    if how == 0:
        envelope.message_type, envelope.group_id, envelope.ttl_s = name(s), name(s), s.pick(_REALS)
    if how == 1:
        envelope.error.code = s.number() - 2**63
        if s.below(2):
            envelope.error.reason = name(s)
    if how != 2:
        envelope.content.CopyFrom(content(s))
    return envelope


def content(s: Script) -> pb.Content:
    """Return records and a body that is as long as they say, or is not."""
    made = pb.Content(records=[_record(s) for _ in range(s.below(4))])
    described = min(described_bytes(made), 1 << 22)
    match s.below(8):
        case 0 | 1 | 2:
            made.body = bytes([s.byte()]) * min(described, 1 << 16)
        case 3 | 4:
            made.body_bytes = described
        case 5:
            made.body_bytes = s.number()
        case 6:
            made.body = s.blob(255)
        case _:
            made.body_bytes, made.body = described, s.blob(4)
    return made


def _record(s: Script) -> pb.Record:
    record = pb.Record(name=name(s))
    match s.below(8):
        case 0 | 1 | 2:
            record.arrays.items.extend(_array(s) for _ in range(s.below(4)))
            record.arrays.SetInParent()
        case 3 | 4 | 5:
            record.config.items.extend(_item(s) for _ in range(s.below(5)))
            record.config.SetInParent()
        case 6:
            record.metrics.items.extend(_item(s) for _ in range(s.below(5)))
            record.metrics.SetInParent()
    return record


def _array(s: Script) -> pb.Array:
    shape = [s.number() for _ in range(s.pick((1, 1, 1, 0, 2, 3)))]
    size = s.number() if s.below(4) == 0 else s.below(200)
    return pb.Array(key=name(s), dtype=s.pick(_TYPES), shape=shape, stype=s.pick(_STYPES), data_bytes=size)


def _item(s: Script) -> pb.Item:
    item = pb.Item(key=name(s))
    count = s.pick((0, 1, 2, 3, 5, 40))
    match s.below(14):
        case 0:
            item.integer = s.number() - 2**63
        case 1:
            item.unsigned = s.number()
        case 2:
            item.real = s.pick(_REALS)
        case 3:
            item.flag = bool(s.below(2))
        case 4:
            item.text = name(s)
        case 5 | 6:
            item.blob = s.blob(120)
        case 7:
            item.body_bytes = s.number() if s.below(4) == 0 else s.below(1 << 17)
        case 8:
            item.integers.values.extend(s.number() - 2**63 for _ in range(count))
            item.integers.wrapped.extend(s.below(8) for _ in range(s.below(3)))
            item.integers.SetInParent()
        case 9:
            item.reals.values.extend(s.pick(_REALS) for _ in range(count))
            item.reals.SetInParent()
        case 10:
            item.flags.values.extend(bool(s.below(2)) for _ in range(count))
            item.flags.SetInParent()
        case 11:
            item.texts.values.extend(name(s) for _ in range(count))
            item.texts.SetInParent()
        case 12:
            item.blobs.values.extend(s.blob(4) for _ in range(count))
            item.blobs.SetInParent()
        case 13 if s.below(2):
            item.empty.SetInParent()
    return item
