"""Every packet survives the way through Flower records, and no record at all makes the reader of replies raise."""

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from link import codec, flwr_compat
from strategies.compressors import Identity
from strategies.method import Ask, Compressor, Packet, Rejected, Vector
from tests.forms import FORMS, in_round

VECTORS: st.SearchStrategy[Vector] = st.one_of(
    arrays(np.dtype("f4"), st.integers(1, 40), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    arrays(np.dtype("f8"), st.integers(1, 40), elements=st.floats(-1e30, 1e30)),
)


def carried(content: RecordDict | Error) -> Message:
    flwr_compat.set_identity(1)
    instruction = Message(RecordDict(), 5, "train")
    flwr_compat.stamp(instruction, message_id="1", run_id=1)
    return Message(content, reply_to=instruction)


@given(VECTORS, st.sampled_from(FORMS), st.integers(0, 2**63 - 1), st.integers(1, 2**63), st.integers(0, 2**63 - 1))
def test_a_packet_survives_the_way(v: Vector, form: Compressor, seed: int, round_: int, version: int) -> None:
    ask, form = Ask(round_, "difference", {"x": v}), in_round(form)
    packet = replace(form.compress(v, np.random.default_rng(seed)), version=version)
    got = codec.read_reply(carried(codec.write_packet(packet, ask)), ask, form, v)
    assert isinstance(got, Packet)
    assert (got.kind, got.dim, got.seed, got.scale, got.version, got.values.dtype) == (
        packet.kind, packet.dim, packet.seed, packet.scale, version, packet.values.dtype
    )  # fmt: skip
    assert got.values.tobytes() == packet.values.tobytes()
    assert (got.marks is None) is (packet.marks is None)
    assert form.decompress(got, v.dtype).tobytes() == form.decompress(packet, v.dtype).tobytes()


@given(
    st.dictionaries(st.text(max_size=8), VECTORS, max_size=3),
    st.integers(1, 2**62),
    st.text(max_size=12),
    st.none() | st.lists(st.integers(0, 10**5), max_size=5),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_an_ask_survives_the_way(
    vectors: dict[str, Vector], round_: int, kind: str, cohort: list[int] | None, seed: int | None
) -> None:
    ask = Ask(round_, kind, vectors, seed=seed, cohort=None if cohort is None else tuple(cohort))
    got = codec.read_ask(codec.write_ask(ask))
    assert (got.round, got.kind, got.cohort, got.seed) == (ask.round, ask.kind, ask.cohort, ask.seed)
    assert {name: (v.dtype, v.tobytes()) for name, v in got.vectors.items()} == {
        name: (v.dtype, v.tobytes()) for name, v in vectors.items()
    }


# --- hostile records: half of them random, half of them a good reply with something replaced ---

X = np.array([1.0, -2.0, 3.0, 0.5])
ASK = Ask(7, "difference", {"x": X})
SIZES = st.integers(-(2**63), 2**63 - 1)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    SIZES,
    st.integers(0, 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.lists(SIZES, max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.binary(max_size=5), max_size=3),
    st.just(X.tobytes()),
    st.sampled_from([7, 7.0, "identity", "rand-k"]),
)
NAMES = st.sampled_from(["p", ""]) | st.text(max_size=8)
ARRAYS = st.builds(
    Array,
    st.sampled_from(["float64", "float32", "object", ">f8", ""]) | st.text(max_size=30),
    st.lists(SIZES, max_size=3).map(tuple) | st.just((4,)),
    st.sampled_from(["raw.le", "numpy.ndarray", ""]) | st.text(max_size=30),
    st.binary(max_size=40) | st.just(X.tobytes()),
)
RECORDS: st.SearchStrategy[Any] = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=5).map(ConfigRecord),
    st.dictionaries(NAMES, st.floats() | SIZES, max_size=3).map(lambda metrics: MetricRecord(dict(metrics))),
    st.dictionaries(NAMES, ARRAYS, max_size=3).map(ArrayRecord),
)


def packed(data: bytes, cut: int) -> RecordDict:
    """A reply of these bytes, in one record or the other."""
    if cut % 2:
        return RecordDict({"p": ConfigRecord({"": data})})
    return RecordDict({"p": ArrayRecord({"": Array("uint8", (len(data),), "raw.le", data)})})


def label(kind: str) -> bytes:
    """The end of a good reply."""
    return kind.encode() + bytes([7, len(kind), 0x10])


KINDS = st.sampled_from(FORMS).map(lambda form: form.kind)
CONTENTS = st.one_of(
    st.dictionaries(NAMES, RECORDS, max_size=3).map(RecordDict),
    st.dictionaries(NAMES, VALUES, max_size=2).map(lambda other: RecordDict({"p": ConfigRecord(other)})),
    st.builds(packed, st.binary(max_size=60), st.integers(0, 1)),
    st.builds(
        lambda data, kind, cut: packed(data + label(kind), cut), st.binary(max_size=60), KINDS, st.integers(0, 1)
    ),
)


@given(st.sampled_from(FORMS), st.binary(min_size=64, max_size=64), st.integers(0, 1))
def test_any_bytes_of_the_right_length_are_refused_or_can_be_used(form: Compressor, data: bytes, cut: int) -> None:
    form = in_round(form)
    size = form.layout(X.size, X.dtype).nbytes
    check(codec.read_reply(carried(packed(data[:size] + label(form.kind), cut)), ASK, form, X), form)


@given(CONTENTS, st.sampled_from(FORMS))
def test_no_record_makes_the_reader_raise(content: RecordDict, form: Compressor) -> None:
    form = in_round(form)
    check(codec.read_reply(carried(content), ASK, form, X), form)


def check(got: Packet | Rejected, form: Compressor) -> None:
    if isinstance(got, Rejected):
        assert got.reason.isprintable()
        assert len(got.reason) <= 200
        assert got.slug in {
            "undecodable", "wrong round", "wrong shape", "wrong dtype", "wrong kind", "bad scale", "bad index",
            "bad code", "not finite",
        }  # fmt: skip
    else:
        row = form.decompress(got, X.dtype)
        assert row.shape == X.shape
        assert row.dtype == X.dtype
        assert np.isfinite(row).all()


@given(st.integers(-(2**31), 2**31 - 1), st.none() | st.text())
def test_no_error_makes_the_reader_raise(code: int, reason: str | None) -> None:
    got = codec.read_reply(carried(Error(code, reason)), ASK, Identity(), X)
    assert isinstance(got, Rejected)
    assert got.reason
    assert got.reason.isprintable()
    assert len(got.reason) <= 200
