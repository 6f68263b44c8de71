"""Gives inputs to the readers and raises AssertionError if what comes back is not allowed."""

import re
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from adapters.orders import read_order
from foundation.errors import ConfigError, WireError
from link import codec, flwr_compat
from link import link_pb2 as pb
from link.invitation import Invitation
from link.records import Body, described_bytes, unpack
from link.wire import Parcel, Payload, Reader, control_frame, reply_head
from strategies.compressors import Identity, packing
from strategies.method import Ask, Compressor, Packet, Rejected, Vector
from tests.forms import FORMS, in_round
from tests.fuzz import frames
from tests.fuzz.script import Script

FLAWS = ("undecodable", "oversize", "out of order")
"""What a ``WireError`` says first."""
REASONS = frozenset(
    {
        "undecodable", "wrong round", "wrong shape", "wrong dtype", "wrong kind", "bad scale", "bad index", "bad code",
        "not finite",
    }
)  # fmt: skip
"""What a rejected packet's reason says first."""
TOLD = frozenset({"error", "disconnected", "not connected", "oversize", "out of order", "stale state"})
"""The same for error messages."""
_LAST_RESORT = re.compile(r"undecodable: \w+(Error|Warning|Exception): ")
"""How a reason looks that ``read_reply`` gives for an exception that nobody foresaw."""

# --- frames -----------------------------------------------------------------------------------------------------------

_BOUNDS = (1 << 20, 5000, 200, 1 << 40, 0)
_HONEST = Payload(RecordDict({"p": ConfigRecord({"": b"all is well"})})).envelope(reply_head(7))


def read_frames(data: bytes) -> None:
    """Feed frames to a reader: a value or a WireError for each, nothing beyond the bound, and it can go on."""
    s = Script(data)
    bound = s.pick(_BOUNDS)
    reader = Reader(bound)
    for _ in range(40):
        if not s.more:
            break
        try:
            got = reader.feed(frames.frame(s))
        except WireError as error:
            check_line(error.reason, FLAWS)
            continue
        if isinstance(got, Parcel):
            assert size_of(got) <= bound
            if isinstance(got.answer, RecordDict):
                check_verdict(_verdict(got.answer), Identity(), X)
                with suppress(WireError):  # too long for one frame
                    Payload(got.answer)
    with suppress(WireError):
        reader.feed(control_frame(pb.Ready()))
    if len(_HONEST) <= bound:
        last = reader.feed(_HONEST)
        assert isinstance(last, Parcel)
        assert last.id == 7


def size_of(parcel: Parcel) -> int:
    """Return how many bytes of data a message holds: arrays and byte strings."""
    if isinstance(parcel.answer, Error):
        return len(parcel.answer.reason or "")
    total = 0
    for record in parcel.answer.values():
        for value in record.values():
            if isinstance(value, Array):
                total += len(value.data)
            elif isinstance(value, bytes):
                total += len(value)
    return total


def check_line(reason: str, slugs: Any) -> None:
    """Check that a reason can be logged, and counted by its beginning."""
    assert reason.partition(":")[0] in slugs, reason
    assert reason.isprintable(), reason
    assert len(reason) <= 300, reason


# --- packets ----------------------------------------------------------------------------------------------------------

X = np.array([1.0, -2.0, 3.0, 0.5])
ASK = Ask(7, "difference", {"x": X})
_DIMS = (1, 2, 3, 7, 8, 9, 31, 40, 64, 65, 650, 4096, 5003)
"""The last two are for the compiled loops, in float32."""
_SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 0.3, 5e-324, -(2.0**-149), 2.0**-126, 1e-300, 3.4e38, -3.4e38, 1.7e308, 1e30, -1e-3,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


@cache
def prepare() -> None:
    """Load the compiled loops, so that vectors from 4096 numbers on take them."""
    packing.load_loops().prepare()


@cache
def _forms(kind: str) -> list[Compressor]:
    prepare()
    return [form for form in FORMS if form.kind == kind]


@cache
def _message() -> Message:
    flwr_compat.set_identity(1)
    instruction = Message(RecordDict(), 5, "train")
    flwr_compat.stamp(instruction, message_id="1", run_id=1)
    return instruction


def _verdict(content: RecordDict) -> Packet | Rejected:
    return codec.read_reply(Message(content, reply_to=_message()), ASK, Identity(), X)


def read_packet(data: bytes, kind: str) -> None:
    """Read a reply with a compressor of that kind: Rejected, or a packet that gives a finite vector."""
    s = Script(data)
    form = s.pick(_forms(kind))
    dtype = np.dtype(s.pick((np.float32, np.float64)))
    dim = s.pick(_DIMS)
    form = in_round(form, s.number(), s.below(4))
    x = np.ones(dim, dtype)
    ask = Ask(s.pick((7, 0, 255, 256, 2**63)), "difference", {"x": x}, seed=11)
    content = _content(s, form, ask, x)
    check_verdict(codec.read_reply(Message(content, reply_to=_message()), ask, form, x), form, x)


def check_verdict(got: Packet | Rejected, form: Compressor, x: Vector, *, told: bool = False) -> None:
    """Check what the reader of replies made of one.

    Args:
        got: what it gave.
        form: the compressor that it was given.
        x: the model.
        told: it may have been an error message, of the link's or of the client's own.
    """
    if isinstance(got, Rejected):
        check_line(got.reason, REASONS | TOLD if told else REASONS)
        assert not _LAST_RESORT.match(got.reason), got.reason
        return
    row = form.decompress(got, x.dtype)
    assert row.shape == x.shape
    assert row.dtype == x.dtype
    assert np.isfinite(row).all()
    assert form.validate(form.opposite(got), len(x), x.dtype) is None


def _content(s: Script, form: Compressor, ask: Ask, x: Vector) -> RecordDict:
    """Return a reply: a packet that was made well and then damaged, bytes of the right length, or any records."""
    how = s.below(8)
    size = form.layout(len(x), x.dtype).nbytes
    if how == 0:
        return _records(s)
    if how < 4:  # nearly a packet
        v = np.resize(np.array([s.pick(_SPECIAL) for _ in range(1 + s.below(6))]), len(x))
        with np.errstate(all="ignore"):
            packet = form.forge(v.astype(x.dtype), np.random.default_rng(s.byte()))
        packet = replace(packet, version=s.pick((0, 0, 1, 6, 2**63 - 1, 2**64 - 1)))
        data = _bytes_of(codec.write_packet(packet, ask))
        head, tail = data[: size - size % 8], data[size - size % 8 :]  # what ends a packet is worth more attempts
        data = s.damaged(head) + s.damaged(tail) if s.below(2) else s.damaged(data)
    else:
        pattern = s.blob(16) or b"\0"
        body = (pattern * (size // len(pattern) + 1))[:size]
        scale = np.array([s.pick(_SPECIAL)], "<f8").tobytes()
        body = s.pick((body, body[:-8] + scale, body[:-8] + scale))[:size]
        kind = form.kind.encode()
        label = kind + ask.round.to_bytes(8, "little") + bytes((len(kind), 0x80))
        data = s.damaged(body) + s.damaged(label)
    if s.below(2):
        return RecordDict({"p": ConfigRecord({"": data})})
    shape = (len(data),) if s.below(4) else (s.number(), s.number())
    return RecordDict({"p": ArrayRecord({"": Array(s.pick(("uint8", "uint8", "float32")), shape, "raw.le", data)})})


def _bytes_of(content: RecordDict) -> bytes:
    record = content["p"]
    if isinstance(record, ConfigRecord):
        data = record[""]
        assert isinstance(data, bytes)
        return data
    assert isinstance(record, ArrayRecord)
    return record[""].data


def _records(s: Script) -> RecordDict:
    """Return any records at all."""
    made = frames.content(s)
    size = min(described_bytes(made), 1 << 20)
    try:
        return unpack(made, Body([bytes([s.byte()]) * size]))
    except WireError:
        return RecordDict()


# --- instructions, at the client --------------------------------------------------------------------------------------


def read_instruction(data: bytes) -> None:
    """Read an instruction: an ask or WireError, and of a packet that passes the screen a finite vector."""
    s = Script(data)
    content = _instruction(s)
    with suppress(WireError):
        ask = codec.read_ask(content)
        assert isinstance(ask.kind, str)
        assert ask.cohort is None or all(isinstance(i, int) for i in ask.cohort)
        for form in FORMS:
            if ask.packet is not None and form.kind == ask.packet.kind:
                _check_broadcast(in_round(form, ask.seed or 0), ask.packet)
    for record in content.config_records.values():
        with suppress(WireError):
            read_order(record)
    with suppress(ConfigError):
        Invitation.read(content)


def _check_broadcast(form: Compressor, packet: Packet) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        dim = packet.dim if 0 < packet.dim <= 5003 else 650
        flaw = form.validate(packet, dim, dtype)
        if flaw is None:
            row = form.decompress(packet, dtype)
            assert row.shape == (dim,)
            assert np.isfinite(row).all()


def _instruction(s: Script) -> RecordDict:
    if s.below(4) == 0:
        return _records(s)
    form = in_round(s.pick(FORMS))
    with np.errstate(all="ignore"):
        v = np.resize(np.array([s.pick(_SPECIAL) for _ in range(1 + s.below(4))]), s.pick(_DIMS)).astype(np.float32)
        packet = form.forge(v, np.random.default_rng(0)) if s.below(2) else None
    cohort = tuple(range(s.below(5))) if s.below(2) else None
    seed = s.number() if s.below(2) else None
    content = codec.write_ask(Ask(s.below(300), "full", {"x": v}, seed=seed, packet=packet, cohort=cohort))
    config = content.config_records["ask"]
    if s.below(4) == 0:
        order: dict[str, Any] = {
            "worker": 3,
            "draw": 5,
            "arrays": "arrays",
            "compressor": '{"kind": "rand-k", "ratio": 0.5}',
        }
        for key, value in order.items():
            config[key] = value
    for _ in range(s.below(4)):
        key = s.pick(sorted(config))
        config[key] = s.pick(_values(s))
    if s.below(4) == 0:
        record = content.array_records[s.pick(sorted(content.array_records))]
        for key, array in list(record.items()):
            dtype = s.pick(("float32", "uint8", array.dtype))
            record[key] = Array(dtype, (s.number(),), array.stype, s.damaged(array.data))
    if s.below(8) == 0:
        del content[s.pick(sorted(content))]
    if s.below(4) == 0:
        content["order"] = config
    return content


def _values(s: Script) -> list[Any]:
    return [
        s.number(), -1, True, 0.5, float("nan"), frames.name(s), b"bytes", [], ["text"], [1.5], [b"b"], [True], [3, 4],
        [2**64 - 1], '{"kind": "qsgd"}', '{"kind": []}', "[" * 100, "identity", "rand-k",
    ]  # fmt: skip
