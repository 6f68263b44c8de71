"""What a hostile message may cost in memory, under a limit that the kernel enforces.

A process reads messages that claim, or repeat, as much as they can. It does so twice: with room for what a round needs
and no more, and without a limit. All must be refused, or read, in the same words: where memory runs out they are not.
"""

import ctypes
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from foundation.errors import WireError
from link import codec, flwr_compat
from link.wire import CHUNK_BYTES, MAX_BODY_BYTES, MAX_FRAME_BYTES, Parcel, Payload, Reader, reply_head
from strategies.compressors import Identity
from strategies.method import Ask, Rejected

ROOT = Path(__file__).parents[2]
SMALL_BOUND, SMALL_ROOM = codec.max_reply_bytes(650, np.dtype(np.float32)), 2 << 20
"""The digits task's softmax model: 6.7 KB. What is longer is not parsed, so reading takes next to nothing."""
LARGE_BOUND, LARGE_ROOM = codec.max_reply_bytes(10**6, np.dtype(np.float32)), 64 << 20
"""A model of a million numbers, 4 MB. A frame may then be as long as frames are, 1.1 MB, and half a million empty
parts of one take 45 MB while it is parsed: for one message at a time, and nothing of it is kept."""
MANY = MAX_FRAME_BYTES - 200


def field(tag: int, *parts: bytes) -> bytes:
    """Return a length-delimited field: protobuf's own builder would need the memory that is to be tested."""
    data = b"".join(parts)
    return bytes([tag << 3 | 2]) + varint(len(data)) + data


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def envelope(*records: bytes, body_bytes: int = 0, body: bytes = b"") -> bytes:
    content = b"".join(field(1, record) for record in records) + b"\x10" + varint(body_bytes) + field(3, body)
    return field(5, b"\x08\x01", field(6, content))


def array(key: bytes, n: int, *shape: int) -> bytes:
    dims = field(3, b"".join(map(varint, shape)))
    return field(1, key) + field(2, b"uint8") + dims + field(4, b"raw.le") + b"\x28" + varint(n)


def item(key: bytes, value: bytes) -> bytes:
    return field(1, key) + value


def lists() -> Iterator[tuple[str, bytes]]:
    """The longest lists of each type."""
    ones, empties = field(1, b"\x01" * (MANY - 40)), b"\x0a\x00" * (MANY // 2 - 20)
    for name, tag, values in (
        ("integers", 9, ones), ("flags", 11, ones), ("texts", 12, empties), ("blobs", 13, empties),
    ):  # fmt: skip
        yield f"a million {name}", envelope(field(1, b"p") + field(3, field(1, item(b"k", field(tag, values)))))
    wrapped = field(1, b"\x01" * (MANY // 2 - 40)) + field(2, b"\x01" * (MANY // 2 - 40))
    yield "a million places", envelope(field(3, field(1, item(b"k", field(9, wrapped)))))


def hostile() -> Iterator[tuple[str, bytes]]:
    """Messages that claim or repeat as much as they can."""
    for claim in (2**33, 2**60, 2**64 - 1):
        yield f"an array of {claim}", envelope(field(2, field(1, array(b"", claim, claim))), body_bytes=claim)
        yield f"a string of {claim}", envelope(field(3, field(1, item(b"", b"\x40" + varint(claim)))), body_bytes=claim)
        yield f"an inline array of {claim}", envelope(field(2, field(1, array(b"", claim, claim))), body=b"x")
        yield f"an empty body of {claim}", envelope(body_bytes=claim)
        yield f"a shape of {claim}", envelope(field(1, b"p") + field(2, field(1, array(b"", 8, claim))), body=bytes(8))
    yield "a million records", field(5, field(6, b"\x0a\x00" * (MANY // 2)))
    yield "a million arrays", envelope(field(2, b"\x0a\x00" * (MANY // 2)))
    yield "a million values", envelope(field(3, b"\x0a\x00" * (MANY // 2)))
    yield "a million metrics", envelope(field(4, b"\x0a\x00" * (MANY // 2)))
    yield "65,000 keys", envelope(field(3, *(field(1, item(b"%05x" % i, b"\x10\x01")) for i in range(65_000))))
    yield "a shape of a million", envelope(field(2, field(1, field(3, b"\x01" * (MANY - 40)))))
    yield from lists()
    yield "a long name", envelope(field(1, b"n" * (MANY - 40)) + field(3))
    yield "a long reason", field(5, b"\x08\x01", field(5, field(2, b"r" * (MANY - 40))))
    yield "a million settings", field(2, b"\x2a\x00" * (MANY // 2))
    yield "the same field again", b"\x2a\x00" * (MANY // 2)
    yield "unknown fields", b"\x78\x01" * (MANY // 2)
    yield "deep groups", b"\x7b" * MANY
    yield "a varint without an end", b"\x2a" + b"\xff" * MANY
    for _ in range(8):
        yield "chunks that nobody asked for", field(6, bytes(CHUNK_BYTES))


def read_all(bound: int, limit: int) -> None:
    """Read every message with a reader and, where it gives records, with that of packets; print what they said."""
    messages, x = list(hostile()), np.zeros(650, np.float32)
    ask, reader = Ask(1, "full", {"x": x}), Reader(bound)
    flwr_compat.set_identity(1)
    instruction = Message(RecordDict(), 5, "train")
    flwr_compat.stamp(instruction, message_id="1", run_id=1)
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would not be new
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + limit, resource.RLIM_INFINITY))
    for name, message in messages:
        try:
            got = reader.feed(message)
        except WireError as error:
            print(f"{name}: {error.reason}")
            continue
        verdict: object = None
        if isinstance(got, Parcel) and isinstance(got.answer, RecordDict):
            verdict = codec.read_reply(Message(got.answer, reply_to=instruction), ask, Identity(), x)
        print(f"{name}: {type(got).__name__}, {verdict.reason if isinstance(verdict, Rejected) else verdict}")
    whole = RecordDict({"p": ArrayRecord({"": Array("uint8", (bound - 4096,), "raw.le", bytes(bound - 4096))})})
    payload = Payload(whole)
    frames = [payload.envelope(reply_head(1)), *payload.chunks()]
    print(f"and what is due: {[type(reader.feed(frame)).__name__ for frame in frames]}")
    if limit:
        try:
            bytearray(2 * limit)
        except MemoryError:
            print("the limit holds", file=sys.stderr)


def data_bytes() -> int:
    """Return how much this process has mapped to write to."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))


def child(limited: str) -> None:
    """Read all with either bound; the main function of a process."""
    read_all(SMALL_BOUND, SMALL_ROOM if limited else 0)
    read_all(LARGE_BOUND, LARGE_ROOM if limited else 0)


def run(limited: str) -> "subprocess.CompletedProcess[str]":
    code = f"from tests.fuzz.test_memory import child; child({limited!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_no_message_takes_more_memory_than_its_round_has_for_it() -> None:
    free, limited = run(""), run("limited")
    assert limited.stderr.count("the limit holds") == 2
    assert limited.stdout == free.stdout
    said = limited.stdout
    assert said.count("and what is due") == 2
    assert "MemoryError" not in said
    assert "Out of memory" not in said


def test_a_header_alone_makes_the_client_reserve_nothing() -> None:
    reader = Reader(MAX_BODY_BYTES)
    before = data_bytes()
    reader.feed(envelope(field(2, field(1, array(b"", 2**39, 2**39))), body_bytes=2**39))
    assert data_bytes() - before < 1 << 20
