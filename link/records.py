"""Flower's RecordDict as the wire has it: records that describe, and a body that holds the bytes of arrays.

The data of arrays, and long byte strings, never pass through protobuf: ``pack`` lists them beside the message, and
``unpack`` cuts them from the body again, each copied once.
"""

from collections.abc import Container, Sequence
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from foundation.errors import WireError
from link import link_pb2 as pb

INLINE_BYTES = 64 << 10
"""The longest byte string that stays in its record, and the longest body inside its envelope."""

_LISTS = frozenset({"integers", "reals", "flags", "texts", "blobs"})
"""The kinds of ``Item.value`` that are lists."""
_BLOBS: tuple[str, Any] = "blobs", pb.Blobs
_FORMS: dict[type, tuple[str, Any]] = {bool: ("flags", pb.Flags), float: ("reals", pb.Reals), str: ("texts", pb.Texts)}
"""The kind and the message of a list by the type of its elements; integers have their own rules, bytes are blobs."""

Value = int | float | str | bytes | bool | list[int] | list[float] | list[str] | list[bytes] | list[bool]


def pack(content: RecordDict) -> tuple[bytes, list[bytes]]:
    """Return the serialised records and the parts of the body; the parts are the arrays' own bytes, not copies.

    Raises:
        WireError: an integer is outside -2^63 .. 2^64-1, or a text is no Unicode.
    """
    parts: list[bytes] = []
    try:
        records = [_record(name, record, parts) for name, record in content.items()]
        return pb.Content(records=records).SerializeToString(), parts
    except (ValueError, TypeError) as error:
        raise WireError(f"undecodable: a record cannot be sent: {error}") from error


def _record(name: str, record: ArrayRecord | ConfigRecord | MetricRecord, parts: list[bytes]) -> pb.Record:
    if isinstance(record, ArrayRecord):
        arrays = [_array(key, array, parts) for key, array in record.items()]
        return pb.Record(name=name, arrays=pb.ArrayRecord(items=arrays))
    items = [_item(key, value, parts) for key, value in record.items()]
    if isinstance(record, ConfigRecord):
        return pb.Record(name=name, config=pb.ConfigRecord(items=items))
    return pb.Record(name=name, metrics=pb.MetricRecord(items=items))


def _array(key: str, array: Array, parts: list[bytes]) -> pb.Array:
    parts.append(array.data)
    return pb.Array(key=key, dtype=array.dtype, shape=array.shape, stype=array.stype, data_bytes=len(array.data))


def _item(key: str, value: Value, parts: list[bytes]) -> pb.Item:
    if isinstance(value, list):
        return _list_item(key, value)
    if isinstance(value, bool):  # before int, whose subclass it is
        return pb.Item(key=key, flag=value)
    if isinstance(value, int):
        return pb.Item(key=key, integer=value) if value < 1 << 63 else pb.Item(key=key, unsigned=value)
    if isinstance(value, float):
        return pb.Item(key=key, real=value)
    if isinstance(value, str):
        return pb.Item(key=key, text=value)
    if len(value) <= INLINE_BYTES:
        return pb.Item(key=key, blob=value)
    parts.append(value)
    return pb.Item(key=key, body_bytes=len(value))


def _list_item(key: str, values: Sequence[int | float | str | bytes | bool]) -> pb.Item:
    """Return the item of a list, whose elements Flower has checked to be of the type of the first."""
    if not values:
        return pb.Item(key=key, empty=pb.Empty())
    if isinstance(values[0], int) and not isinstance(values[0], bool):
        ints = cast(list[int], values)
        wrapped = [i for i, v in enumerate(ints) if v >= 1 << 63]
        if wrapped:
            if max(ints) >= 1 << 64:
                raise ValueError(f"Value out of range: {max(ints)}")
            ints = [v - (1 << 64) if v >= 1 << 63 else v for v in ints]
        return pb.Item(key=key, integers=pb.Integers(values=ints, wrapped=wrapped))
    forms = (form for type_, form in _FORMS.items() if isinstance(values[0], type_))
    kind, message = next(forms, _BLOBS)
    value: dict[str, Any] = {kind: message(values=values)}
    return pb.Item(key=key, **value)


def elements_of(content: RecordDict) -> int:
    """Return how many elements its lists have, and dimensions its arrays."""
    elements = 0
    for record in content.values():
        for value in record.values():
            if isinstance(value, Array):
                elements += len(value.shape)
            elif isinstance(value, list):
                elements += len(value)
    return elements


class Body:
    """Hands out the bytes of a body from its start, each copied once at most."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._piece = 0  # the piece that comes next, and how far it is taken
        self._at = 0

    def take(self, n: int) -> bytes:
        """Return the next n bytes.

        Raises:
            WireError: there are fewer.
        """
        taken: list[bytes | memoryview] = []
        missing = n
        while missing:
            if self._piece == len(self._pieces):
                raise WireError(f"undecodable: a body that is {missing} bytes shorter than its records say")
            part = self._pieces[self._piece][self._at : self._at + missing]
            taken.append(part)
            missing -= len(part)
            self._at += len(part)
            if self._at == len(self._pieces[self._piece]):
                self._piece, self._at = self._piece + 1, 0
        return b"".join(taken)

    def check_empty(self) -> None:
        """Raise WireError if something is left."""
        left = sum(map(len, self._pieces[self._piece :])) - self._at
        if left:
            raise WireError(f"undecodable: a body that is {left} bytes longer than its records say")


def described_bytes(content: pb.Content) -> int:
    """Return the length of the body that the records ask for."""
    arrays = sum(array.data_bytes for record in content.records for array in record.arrays.items)
    return arrays + sum(item.body_bytes for record in content.records for item in record.config.items)


def described_elements(content: pb.Content) -> int:
    """Return the same as ``elements_of`` the records that a message stands for, from the message alone."""
    total = 0
    for record in content.records:
        total += sum(len(array.shape) for array in record.arrays.items)
        for item in (*record.config.items, *record.metrics.items):
            kind = item.WhichOneof("value")
            if kind in _LISTS:
                total += len(getattr(item, kind).values)
    return total


def unpack(content: pb.Content, body: Body) -> RecordDict:
    """Return the records that a message and its body stand for.

    Raises:
        WireError: they stand for none.
    """
    records = RecordDict()
    for record in content.records:
        name, kind = record.name, record.WhichOneof("kind")
        _check_new(name, records, "records")
        try:
            if kind == "arrays":
                records[name] = _arrays(record.arrays, body)
            elif kind == "config":
                records[name] = ConfigRecord(_values(record.config.items, body))
            elif kind == "metrics":
                records[name] = MetricRecord(_values(record.metrics.items, body))  # type: ignore[arg-type]  # it checks
            else:
                raise WireError(f"undecodable: record {name[:64]!r} is of an unknown kind")
        except TypeError as error:
            raise WireError(f"undecodable: record {name[:64]!r}: {error}") from error
    return records


def _arrays(message: pb.ArrayRecord, body: Body) -> ArrayRecord:
    record = ArrayRecord()
    for array in message.items:
        _check_new(array.key, record, "arrays")
        record[array.key] = Array(array.dtype, tuple(array.shape), array.stype, body.take(array.data_bytes))
    return record


def _values(items: Sequence[pb.Item], body: Body) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for item in items:
        _check_new(item.key, values, "values")
        values[item.key] = _value(item, body)
    return values


def _check_new(name: str, read: Container[str], what: str) -> None:
    if name in read:
        raise WireError(f"undecodable: two {what} named {name[:64]!r}")


def _value(item: pb.Item, body: Body) -> Value:
    if (kind := item.WhichOneof("value")) is None:
        raise WireError(f"undecodable: value {item.key[:64]!r} is of an unknown kind")
    if kind == "body_bytes":
        return body.take(item.body_bytes)
    if kind == "empty":
        return []
    value = getattr(item, kind)
    if kind == "integers":
        return _integers(value)
    return list(value.values) if kind in _LISTS else cast(Value, value)


def _integers(message: pb.Integers) -> list[int]:
    values = list(message.values)
    before = -1
    for place in message.wrapped:
        if not before < place < len(values) or values[place] >= 0:
            raise WireError(f"undecodable: no value of a list of {len(values)} integers is wrapped at place {place}")
        values[place] += 1 << 64
        before = place
    return values
