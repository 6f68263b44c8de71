"""What a round's messages hold: Ask and Packet to Flower records and back.

The same records travel over the link and over a SuperLink. ``read_reply`` is the one reader of what clients send: any
message at all gives a packet that fits the round, or ``Rejected`` with the reason; it never raises.

Layout (docs/wire.md has the sizes)::

    ask    ArrayRecord  "vectors": {name: raw little-endian array of shape (d,)}
           ConfigRecord "ask":     {"round", "kind", "cohort"?}
    reply  ConfigRecord "packet":  {"round", "kind", "seed"?, "values"?}      values: raw little-endian bytes
           ArrayRecord  "vectors": {"values": raw array}                      instead, where the values are large
"""

import sys
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from link.errors import WireError
from strategies.algorithm import Ask, Compressor, Packet, Rejected, Vector

RAW = "raw.le"
"""Serialisation type of our arrays: the values as they lie in memory, little-endian."""

INLINE_BYTES = 64 * 1024
"""Up to this size values travel inside the ConfigRecord: fewer objects on a SuperLink, fewer bytes on the link."""

_LINK_ERRORS = frozenset({"disconnected", "not connected", "undecodable", "oversize", "out of order"})
"""What the link's error replies begin with, see ``link.grid.StreamGrid``."""

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float64": np.dtype("<f8")}


def to_array(v: Vector) -> Array:
    """Return a vector as a Flower Array of raw little-endian bytes."""
    return Array(v.dtype.name, v.shape, RAW, _raw(v))


def from_array(array: Array) -> Vector:
    """Return the vector of a raw Array, shape (d,), read-only and not copied.

    Raises:
        WireError: another serialisation, another dtype, not one-dimensional, or sizes that do not agree.
    """
    dtype = _DTYPES.get(array.dtype)
    if array.stype != RAW or dtype is None:
        raise WireError(
            f"wrong dtype: {array.dtype[:20]!r} as {array.stype[:20]!r}, expected float32 or float64, {RAW}"
        )
    if len(array.shape) != 1 or array.shape[0] * dtype.itemsize != len(array.data):
        raise WireError(
            f"wrong shape: {len(array.data)} bytes do not fill {str(tuple(array.shape))[:40]} {array.dtype}"
        )
    return np.frombuffer(array.data, dtype)


def to_arrays(v: Vector) -> ArrayRecord:
    """Return a model as a record."""
    return ArrayRecord({"x": to_array(v)})


def from_arrays(arrays: ArrayRecord) -> Vector:
    """Return the model of a record made by ``to_arrays``."""
    return from_array(arrays["x"])


def write_ask(ask: Ask) -> RecordDict:
    """Return the content of an instruction; the fields of ``Ask`` that stay on the server are left out."""
    config = ConfigRecord({"round": ask.round, "kind": ask.kind})
    if ask.cohort is not None:
        config["cohort"] = list(ask.cohort)
    vectors = ArrayRecord({name: to_array(v) for name, v in ask.vectors.items()})
    return RecordDict({"ask": config, "vectors": vectors})


def read_ask(content: RecordDict) -> Ask:
    """Return the ask of an instruction.

    Raises:
        WireError: it is not one of ours.
    """
    try:
        config, vectors = content.config_records["ask"], content.array_records["vectors"]
        round_, kind, cohort = config["round"], config["kind"], config.get("cohort")
    except KeyError as error:
        raise WireError(f"undecodable: the instruction has no {error}; is the server a Breakwater ServerApp?") from None
    if not isinstance(round_, int) or not isinstance(kind, str) or not isinstance(cohort, list | None):
        raise WireError("undecodable: round, kind or cohort of the instruction has the wrong type")
    members = None if cohort is None else tuple(int(i) for i in cohort)
    return Ask(round_, kind, {name: from_array(a) for name, a in vectors.items()}, cohort=members)


def write_packet(packet: Packet, ask: Ask) -> RecordDict:
    """Return the content of a reply."""
    config = ConfigRecord({"round": ask.round, "kind": packet.kind})
    if packet.seed is not None:
        config["seed"] = packet.seed
    if packet.values.nbytes <= INLINE_BYTES:
        config["values"] = _raw(packet.values)
        return RecordDict({"packet": config})
    return RecordDict({"packet": config, "vectors": ArrayRecord({"values": to_array(packet.values)})})


def read_reply(message: Message, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
    """Return the packet of a reply that fits the round, or why there is none.

    Args:
        message: whatever arrived.
        ask: what was asked.
        form: the compressor whose packets answer it.
        like: the model; a packet must stand for a vector of its length and dtype.
    """
    try:
        if message.has_error():
            return Rejected(_clean(_told(message.error.reason)))
        return _read_packet(message.content, ask, form, like)
    except WireError as error:
        return Rejected(_clean(str(error)))
    except Exception as error:  # the last line of defence: whatever a peer finds, the round goes on
        return Rejected(_clean(f"undecodable: {type(error).__name__}: {error}"))


def _read_packet(content: RecordDict, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
    config = content.config_records.get("packet")
    if config is None:
        return Rejected("undecodable: no packet in the reply")
    if config.get("round") != ask.round:
        return Rejected(_clean(f"wrong round: {config.get('round')!r}, expected {ask.round}"))
    values = config.get("values")
    dtype = like.dtype.newbyteorder("<")
    if isinstance(values, bytes):
        if len(values) % dtype.itemsize:
            return Rejected(f"wrong shape: {len(values)} bytes are no whole number of {like.dtype.name} values")
        vector: Vector = np.frombuffer(values, dtype)
    elif "vectors" in content.array_records and "values" in content.array_records["vectors"]:
        vector = from_array(content.array_records["vectors"]["values"])
    else:
        return Rejected("undecodable: no values in the reply")
    kind, seed = config.get("kind"), config.get("seed")
    if not isinstance(kind, str) or not (seed is None or (isinstance(seed, int) and not isinstance(seed, bool))):
        return Rejected("undecodable: kind or seed has the wrong type")
    packet = Packet(kind, like.size, vector, seed)
    flaw = form.flaw(packet, like.size, like.dtype)
    return packet if flaw is None else Rejected(_clean(flaw))


def max_reply_bytes(dim: int, dtype: np.dtype[Any]) -> int:
    """Return a bound on the size of any honest reply: a dense vector and its envelope."""
    return dim * dtype.itemsize + 4096


def _told(reason: str | None) -> str:
    """Return the reason of an error reply as "slug: detail".

    Reasons are counted by slug, so what a client's own error says must not be one: it could be another every time.
    """
    text = reason or "no reason given"
    return text if text.partition(":")[0] in _LINK_ERRORS else f"error: {text}"


def _raw(v: Vector) -> bytes:
    little = v if sys.byteorder == "little" else v.astype(v.dtype.newbyteorder("<"))
    return little.tobytes()


def _clean(text: str) -> str:
    """Make what a peer may have written safe for a log line: one short printable line."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
