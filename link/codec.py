"""What a round's messages hold: Ask and Packet to Flower records and back.

The same records travel over the link and over a SuperLink. ``read_reply`` is the one reader of what clients send: any
message at all gives a packet that fits the round, or ``Rejected`` with the reason; it never raises.

Layout (docs/wire.md has the sizes)::

    ask    ConfigRecord "ask":     {"round", "kind", "seed"?, "cohort"?, "mark"?, "probe"?, "since"?, "step"?,
                                    "step scale"?, "alpha scale"?, "packet"?, "packet dim"?, "packet seed"?,
                                    "packet scale"?}
           ArrayRecord  "vectors": {name: raw little-endian array of shape (d,)}
           ArrayRecord  "packet":  {"values", "marks"?}                       where a packet is broadcast
    reply  ConfigRecord "p": {"": the packet's bytes and their label}
           ArrayRecord  "p": {"": the same as one array}                      instead, where they are many

A reply is as lean as its records allow, because a compressed packet may be a few dozen bytes. Its length follows from
what was asked, so no length travels; what must be checked first, round and kind, is in the label at its end.
"""

import math
import struct
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Self, TypeGuard, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from foundation.errors import WireError
from foundation.text import one_line
from link import flwr_compat
from link.wire import CONTROL_BYTES, Payload, Shape, array_shape, bytes_shape
from strategies.method import (
    ATTACK_FAILED,
    DECLINED,
    FAILED,
    STALE,
    UNPREPARED,
    Ask,
    CheckpointEpoch,
    Compressor,
    Method,
    Packet,
    PacketLayout,
    Rejected,
    Vector,
)

RAW = "raw.le"
"""Serialisation type of our arrays: the values as they lie in memory, little-endian."""

INLINE_ARRAY_BYTES = 1 << 20
"""Up to this size a packet travels in a ConfigRecord: fewer objects on a SuperLink, fewer bytes on the link. A longer
one travels as an array, which alone a SuperLink cuts into pieces."""

_MOST = 200
"""Characters of a reason that are kept."""
_LINK_ERRORS = {"disconnected", "not connected", "revoked", "not listed", "undecodable", "oversize", "out of order"}
_ERRORS = _LINK_ERRORS | {STALE, ATTACK_FAILED, UNPREPARED, DECLINED, FAILED}
"""What error replies of our own begin with: the link's, see ``link.grid.StreamGrid``, and a worker's that lost its
state, or that could not carry out its attack; and those of clients with their own data."""

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}
_CODES = _DTYPES | {name: np.dtype(name).newbyteorder("<") for name in ("float16", "uint8", "uint16", "int8", "int16")}
"""What vectors hold, and what the values of a packet may."""
_NAMES = {np.dtype(name): name for name in _CODES}  # NumPy works a name out whenever it is asked
_BYTES = {"uint8": _CODES["uint8"]}

_STATISTIC = np.dtype("<f8")
BATCH_STATISTICS = "batch_statistics"
"""Name of the records of a question for batch statistics and of its answer, see ``link.batch_statistics``."""

RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord)

_SCALES = ("step scale", "alpha scale")
_SEED, _SCALE = struct.Struct("<Q"), struct.Struct("<d")


def to_array(v: NDArray[Any]) -> Array:
    """Return a one-dimensional array as a Flower Array of raw little-endian bytes."""
    return Array(_NAMES.get(v.dtype) or v.dtype.name, v.shape, RAW, _view(v).tobytes())


def from_array(array: Array) -> Vector:
    """Return the vector of a raw Array, shape (d,), read-only and not copied.

    Raises:
        WireError: another serialisation, another dtype, not one-dimensional, or sizes that do not agree.
    """
    return _from_array(array, _DTYPES)


def any_array(array: Array) -> NDArray[Any]:
    """Return the array of a raw Array of any type that a packet may hold; else as ``from_array``."""
    return _from_array(array, _CODES)


def to_arrays(v: Vector) -> ArrayRecord:
    """Return a model as a record."""
    return ArrayRecord({"x": to_array(v)})


def from_arrays(arrays: ArrayRecord) -> Vector:
    """Return the model of a record made by ``to_arrays``."""
    return from_array(arrays["x"])


def write_ask(ask: Ask, extra: Mapping[str, Vector] = {}) -> RecordDict:  # never written to
    """Return the content of an instruction; what of ``Ask`` stays on the server is left out.

    Args:
        ask: what every sampled worker is asked. A cohort is sent; who does not reveal it passes an ask without.
        extra: vectors that this worker alone is sent, from ``Method.resync``; it reads them among ``ask.vectors``.
    """
    packet, epoch = ask.packet, ask.epoch
    fields: dict[str, Any] = {"round": ask.round, "kind": ask.kind, "seed": ask.seed}
    fields["cohort"] = None if ask.cohort is None else list(ask.cohort)
    fields["mark"] = None if epoch is None else [epoch.incarnation, epoch.round]
    fields["probe"] = ask.probe or None
    fields["since"] = ask.since or None
    fields["step"] = ask.step
    fields |= {name: s for name, s in zip(_SCALES, (ask.step_scale, ask.alpha_scale), strict=True) if s != 1.0}
    if packet is not None:
        fields |= {"packet": packet.kind, "packet dim": packet.dim, "packet seed": packet.seed}
        fields["packet scale"] = packet.scale
    config = ConfigRecord({name: value for name, value in fields.items() if value is not None})
    vectors = ArrayRecord()  # filled one by one, which spares Flower to find out what it is given
    for name, v in {**ask.vectors, **extra}.items():
        vectors[name] = to_array(v)
    content = RecordDict({"ask": config, "vectors": vectors})
    if packet is not None:
        arrays = {"values": packet.values, "marks": packet.marks}
        content["packet"] = ArrayRecord({name: to_array(v) for name, v in arrays.items() if v is not None})
    return content


def addressed(message: Message, node: int) -> Message:
    """Return the same instruction to another node."""
    return flwr_compat.addressed(message, node)


def read_ask(content: RecordDict) -> Ask:
    """Return the ask of an instruction. A packet in it is not screened yet: ``Compressor.validate`` does that.

    Raises:
        WireError: it is not one of ours.
    """
    try:
        config, vectors = _record(content, "ask", ConfigRecord), _record(content, "vectors", ArrayRecord)
        round_, kind = config["round"], config["kind"]
        packet = _read_broadcast(config, _record(content, "packet", ArrayRecord)) if "packet" in config else None
    except KeyError as error:
        raise WireError(f"undecodable: the instruction has no {error}; is the server a Breakwater ServerApp?") from None
    seed, cohort = config.get("seed"), config.get("cohort")
    if not _is_int(round_) or not isinstance(kind, str) or not _is_cohort(cohort):
        raise WireError("undecodable: round, kind or cohort of the instruction has the wrong type")
    if seed is not None and not (_is_int(seed) and 0 <= seed < 2**64):  # type: ignore[operator]  # it is an int
        raise WireError("undecodable: the instruction's seed is no integer from 0 to 2^64 - 1")
    members = None if cohort is None else tuple(cohort)
    named = {name: from_array(a) for name, a in vectors.items()}
    epoch = _read_mark(config.get("mark"))
    step_scale, alpha_scale = (_read_size(config.get(name, 1.0), name) for name in _SCALES)
    step = _read_size(config["step"], "step") if "step" in config else None
    since = config.get("since", 0)
    if not isinstance(since, int):
        raise WireError("undecodable: the instruction's since is no integer")
    return Ask(
        round_,  # type: ignore[arg-type]  # checked above
        kind,
        named,
        seed=seed,  # type: ignore[arg-type]  # the same
        packet=packet,
        cohort=members,
        epoch=epoch,
        probe=bool(config.get("probe", False)),
        since=since,
        step_scale=step_scale,
        alpha_scale=alpha_scale,
        step=step,
    )


def _read_size(size: object, name: str) -> float:
    if not isinstance(size, float) or not 0 <= size < math.inf:
        raise WireError(f"undecodable: the instruction's {name} is no number of at least 0")
    return size


def _record(content: RecordDict, name: str, kind: type[RecordT]) -> RecordT:
    """Return a record; KeyError where there is none of this kind."""
    record = content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


class AskReader:
    """``read_ask`` for the workers of one process: a content that several of them share is read once, into one ask."""

    def __init__(self) -> None:
        self._last: tuple[RecordDict, Ask] | None = None

    def __call__(self, content: RecordDict) -> Ask:
        """Return the ask; see ``read_ask``."""
        if self._last is None or self._last[0] is not content:
            self._last = content, read_ask(content)
        return self._last[1]


def _read_mark(epoch: object) -> CheckpointEpoch | None:
    if epoch is None:
        return None
    if not isinstance(epoch, list) or len(epoch) != 2 or not all(map(_is_int, epoch)):
        raise WireError("undecodable: the instruction's mark is not two integers")
    return CheckpointEpoch(*epoch)


def _read_broadcast(config: ConfigRecord, arrays: ArrayRecord) -> Packet:
    kind, dim = config["packet"], config["packet dim"]
    seed, scale = config.get("packet seed"), config.get("packet scale")
    if not isinstance(kind, str) or not _is_int(dim) or not isinstance(scale, float | None):
        raise WireError("undecodable: kind, dimension or scale of the instruction's packet has the wrong type")
    if seed is not None and not _is_int(seed):
        raise WireError("undecodable: the seed of the instruction's packet has the wrong type")
    marks = _from_array(arrays["marks"], _BYTES) if "marks" in arrays else None
    values = _from_array(arrays["values"], _CODES)
    return Packet(kind, dim, values, seed, scale, marks)  # type: ignore[arg-type]  # checked above


class PacketReply(Message):
    """A reply for a server in the same process: it hands over the packet itself, and writes records if they are read.

    Its packet is a copy that nobody can write to, as a packet that was read from records is.
    """

    @classmethod
    def of(cls, packet: Packet, ask: Ask, instruction: Message) -> Self:
        """Return the reply to an instruction.

        Args:
            packet: what is replied; its arrays may be written to afterwards.
            ask: what the instruction says.
            instruction: the message that is answered.
        """
        kept = Packet(
            packet.kind,
            packet.dim,
            _kept(packet.values),
            None if packet.seed is None else int(packet.seed),
            None if packet.scale is None else float(packet.scale),
            None if packet.marks is None else _kept(packet.marks),
            packet.version,
        )
        reply = flwr_compat.replied(instruction, cls)
        vars(reply).update(packet=kept, ask=ask)
        return reply

    packet: Packet
    ask: Ask

    @property  # type: ignore[misc]  # nobody sets it
    def content(self) -> RecordDict:
        """The records; made anew whenever they are read."""
        return write_packet(self.packet, self.ask)

    def has_content(self) -> bool:
        """Return that there is one."""
        return True

    def payload(self) -> Payload:
        """Return what the link would send, of which the lengths are known before it is written."""
        packet = self.packet
        nbytes = _nbytes(packet) + len(packet.kind.encode()) + _n_bytes(self.ask.round) + _n_bytes(packet.version) + 2
        return Payload(lambda: self.content, _shape_of_reply(nbytes))

    def fits(self, layout: PacketLayout, dim: int) -> bool:
        """Return whether the packet is of this form, so that reading its records would give the same packet."""
        packet, values, marks = self.packet, self.packet.values, self.packet.marks
        return (
            packet.dim == dim
            and values.ndim == 1
            and values.size == layout.count
            and values.dtype == layout.dtype
            and (packet.seed is not None) == layout.seed
            and (packet.scale is not None) == layout.scale
            and (0 if marks is None else marks.size) == layout.marks
        )


@lru_cache(maxsize=64)
def _shape_of_reply(nbytes: int) -> Shape:
    """Return the shape of what ``write_packet`` writes of so many bytes."""
    if nbytes <= INLINE_ARRAY_BYTES:
        return (("p", "c", (("", bytes_shape(nbytes)),)),)
    return (("p", "a", (("", array_shape("uint8", (nbytes,), RAW, nbytes)),)),)


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of an array that cannot be written to."""
    kept = np.array(array)
    kept.flags.writeable = False
    return kept


def _nbytes(packet: Packet) -> int:
    marks = 0 if packet.marks is None else packet.marks.nbytes
    return packet.values.nbytes + marks + 8 * (packet.seed is not None) + 8 * (packet.scale is not None)


def write_packet(packet: Packet, ask: Ask) -> RecordDict:
    """Return the content of a reply."""
    marks = b"" if packet.marks is None else _view(packet.marks)
    seed = b"" if packet.seed is None else _SEED.pack(packet.seed)
    scale = b"" if packet.scale is None else _SCALE.pack(packet.scale)
    data = b"".join((_view(packet.values), marks, seed, scale, _label(packet, ask.round)))
    if len(data) <= INLINE_ARRAY_BYTES:
        return RecordDict({"p": ConfigRecord({"": data})})
    return RecordDict({"p": ArrayRecord({"": Array("uint8", (len(data),), RAW, data)})})


def _label(packet: Packet, round_: int) -> bytes:
    """Return what ends a packet: kind, round and version, and two bytes that give the lengths of these."""
    kind, a, b = packet.kind.encode(), _n_bytes(round_), _n_bytes(packet.version)
    lengths = bytes((len(kind), a << 4 | b))
    return kind + round_.to_bytes(a, "little") + packet.version.to_bytes(b, "little") + lengths


def _n_bytes(n: int) -> int:
    return (n.bit_length() + 7) // 8


def read_reply(message: Message, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
    """Return the packet of a reply that fits the round, or why there is none.

    Nothing is allocated for it: the packet's arrays are views of the bytes that came, whose number is checked first.

    Args:
        message: whatever arrived.
        ask: what was asked.
        form: the compressor whose packets answer it.
        like: the model; a packet must stand for a vector of its length and dtype.
    """
    try:
        if message.has_error():
            return Rejected(reason_of(message))
        if isinstance(message, PacketReply) and message.fits(form.layout(like.size, like.dtype), like.size):
            packet = message.packet
            flaw = _flaw_of_label(message.ask.round, packet.kind, packet.version, ask, form)
            return _screened(packet, form, like) if flaw is None else Rejected(flaw)
        return _read_packet(message.content, ask, form, like)
    except WireError as error:
        return Rejected(one_line(error, _MOST))
    except Exception as error:  # the last line of defence: whatever a peer finds, the round goes on
        return Rejected(one_line(f"undecodable: {type(error).__name__}: {error}", _MOST))


def _read_packet(content: RecordDict, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
    if (data := _packet_bytes(content)) is None:
        return Rejected("undecodable: no packet in the reply")
    if len(data) < 2:
        return Rejected("undecodable: a packet without its label")
    n_kind, n_round, n_version = data[-2], data[-1] >> 4, data[-1] & 15
    end = len(data) - 2 - n_kind - n_round - n_version
    if end < 0 or n_round > 8 or n_version > 8:
        return Rejected("undecodable: a packet with an invalid label")
    kind, label = data[end : end + n_kind].decode(errors="replace"), data[end + n_kind : -2]
    round_, version = int.from_bytes(label[:n_round], "little"), int.from_bytes(label[n_round:], "little")
    if (flaw := _flaw_of_label(round_, kind, version, ask, form)) is not None:
        return Rejected(flaw)
    layout = form.layout(like.size, like.dtype)
    if end != layout.nbytes:
        return Rejected(f"wrong shape: a packet of {end} bytes, expected {layout.nbytes}")
    values = np.frombuffer(data, layout.dtype.newbyteorder("<"), layout.count)
    at = values.nbytes
    marks = np.frombuffer(data, np.uint8, layout.marks, at) if layout.marks else None
    at += layout.marks
    seed = _SEED.unpack_from(data, at)[0] if layout.seed else None
    scale = _SCALE.unpack_from(data, at + 8 * layout.seed)[0] if layout.scale else None
    return _screened(Packet(kind, like.size, values, seed, scale, marks, version), form, like)


def _flaw_of_label(round_: int, kind: str, version: int, ask: Ask, form: Compressor) -> str | None:
    """Say why the label of a packet is not one of this round, or None if it is."""
    if round_ != ask.round:
        return f"wrong round: {round_}, expected {ask.round}"
    if kind != form.kind:
        return one_line(f"wrong kind: {kind!r}, expected {form.kind!r}", _MOST)
    return f"undecodable: version {version}, expected one below 2^63" if version >= 2**63 else None


def _screened(packet: Packet, form: Compressor, like: Vector) -> Packet | Rejected:
    """Return the packet if its numbers can be used; else why not."""
    flaw = form.validate(packet, like.size, like.dtype)
    return packet if flaw is None else Rejected(one_line(flaw, _MOST))


def _packet_bytes(content: RecordDict) -> bytes | None:
    record = content.get("p")
    if isinstance(record, ConfigRecord):
        data = record.get("")
        return data if isinstance(data, bytes) else None
    if isinstance(record, ArrayRecord) and "" in record:
        _from_array(record[""], _BYTES)
        return record[""].data
    return None


def max_reply_bytes(dim: int, dtype: np.dtype[Any], statistics: int = 0) -> int:
    """Return a bound on the size of any honest reply: a dense vector with a mark for each coordinate, or this many
    running statistics, and its envelope.
    """
    return max(dim * dtype.itemsize + (dim + 7) // 8, statistics * _STATISTIC.itemsize) + CONTROL_BYTES


def reply_bound(
    content: RecordDict,
    method: Method,
    dim: int,
    dtype: np.dtype[Any],
    read: Callable[[RecordDict], Ask] = read_ask,
    statistics: int = 0,
) -> int:
    """Return a bound on the size of any honest reply to one instruction.

    Args:
        content: of the instruction; one that is neither an ask of ours nor asks for measures may be answered with
            ``max_reply_bytes``.
        method: that asks.
        dim: d.
        dtype: of the model.
        read: ``read_ask``, or an ``AskReader`` that the workers share.
        statistics: how many running statistics clients are asked for, see ``link.batch_statistics``.

    Returns:
        Bytes of the packet, and ``CONTROL_BYTES`` for its label, records and envelope, or for an error in its place.
        The packets of a round's workers differ in their coordinates alone, but for one value in perm-k, which is less
        than that.
    """
    if "evaluate" in content:  # see ``link.claims``: three numbers
        return CONTROL_BYTES
    if BATCH_STATISTICS in content:
        return statistics * _STATISTIC.itemsize + CONTROL_BYTES
    try:
        ask = read(content)
    except WireError:
        return max_reply_bytes(dim, dtype, statistics)
    return method.compressor_for(ask, 0).layout(dim, dtype).nbytes + CONTROL_BYTES


def _from_array(array: Array, dtypes: Mapping[str, np.dtype[Any]]) -> NDArray[Any]:
    dtype = dtypes.get(array.dtype)
    if array.stype != RAW or dtype is None:
        names = " or ".join(dtypes) if len(dtypes) < 3 else "one of a packet's types"
        raise WireError(f"wrong dtype: {array.dtype[:20]!r} as {array.stype[:20]!r}, expected {names}, {RAW}")
    if len(array.shape) != 1 or array.shape[0] * dtype.itemsize != len(array.data):
        shape = str(tuple(array.shape))[:40]
        raise WireError(f"wrong shape: {len(array.data)} bytes do not fill {shape} {array.dtype}")
    return np.frombuffer(array.data, dtype)


def reason_of(message: Message) -> str:
    """Return the reason of an error reply on one line, as "slug: detail"."""
    return one_line(_slug_first(message.error.reason), _MOST)


def _slug_first(reason: str | None) -> str:
    """Return the reason of an error reply as "slug: detail".

    Reasons are counted by slug, so a client's own error must not become one: it could be different every time.
    """
    text = reason or "no reason given"
    return text if text.partition(":")[0] in _ERRORS else f"error: {text}"


def _is_cohort(value: object) -> TypeGuard[list[int] | None]:
    return value is None or (isinstance(value, list) and all(map(_is_int, value)))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _view(v: NDArray[Any]) -> memoryview:
    """Return the bytes of an array, little-endian, without a copy where it lies in one piece."""
    little = v if sys.byteorder == "little" else v.astype(v.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little).view(np.uint8).data
