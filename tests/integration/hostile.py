"""Peers that mean harm, as a program of its own: HTTP/2 and frames by hand, on plain sockets.

    python tests/integration/hostile.py KIND HOST:PORT SECONDS [--goal COUNT NUMBER] [--fingerprint F] [--tls DIR]

It says ``begun`` when the attack is under way, goes on for so long and until one of the counts has reached its goal,
and says in the end what happened to it, as JSON.
It runs at the lowest priority and at bounded rates, which are those of a peer with a network in between: on the same
two cores it would otherwise be its own CPU time that honest rounds wait for.
"""

import argparse
import json
import os
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
PART = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of a TLS handshake."""

PATIENCE_S = 30.0
"""So much longer it waits for its goal."""

counts: Counter[str] = Counter()
options = argparse.Namespace()


def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data


def varint(n: int) -> bytes:
    """Return a number as protobuf and HPACK continue it."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes((*out, n))


def field(number: int, data: bytes) -> bytes:
    """Return a length-delimited field of protobuf."""
    return bytes((number << 3 | 2,)) + varint(len(data)) + data


def header(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK's literal without indexing; both up to 16,000 bytes."""

    def text(one: bytes) -> bytes:
        return (bytes((len(one),)) if len(one) < 127 else b"\x7f" + varint(len(one) - 127)) + one

    return b"\0" + text(name) + text(value)


REQUEST = b"".join(
    header(*pair)
    for pair in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/breakwater.link.v1.Link/Session"),
        (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    )
)  # fmt: skip


def message(data: bytes, length: int | None = None) -> bytes:
    """Return a gRPC message, or one that says it is longer."""
    return b"\0" + (len(data) if length is None else length).to_bytes(4, "big") + data


def hello(name: str) -> bytes:
    """Return the Frame of a Hello; its first field is the version, ``link.wire.PROTOCOL``."""
    return field(1, b"\x08\x02" + field(2, name.encode()) + field(3, options.fingerprint.encode()))


def connect() -> socket.socket:
    """Open a TCP connection."""
    host, _, port = options.address.rpartition(":")
    counts["connections"] += 1
    return socket.create_connection((host, int(port)), timeout=5)


def secured(plain: socket.socket) -> socket.socket:
    """Shake hands for TLS where the server speaks it, as one who has no certificate."""
    if not options.tls:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain)


class Peer:
    """One connection that speaks HTTP/2 well enough to be taken, and answers pings."""

    def __init__(self, settings: bytes = b"") -> None:
        self.socket = secured(connect())
        self.closed = False
        self.messages: list[bytes] = []
        self._in = self._data = b""
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data: bytes) -> None:
        """Send, or note that the connection is closed."""
        try:
            self.socket.sendall(data)
            counts["bytes"] += len(data)
        except OSError:
            self.closed = True

    def open(self, stream: int = 1) -> None:
        """Open a stream."""
        self.send(frame(HEADERS, 4, stream, REQUEST))

    def say(self, data: bytes) -> None:
        """Send one gRPC message on the first stream."""
        whole = message(data)
        self.send(b"".join(frame(DATA, 0, 1, whole[at : at + 16384]) for at in range(0, len(whole), 16384)))

    def hear(self, seconds: float = 0.0) -> None:
        """Read what is there, and answer what HTTP/2 wants answered."""
        with suppress(OSError, ValueError):
            while not self.closed and select.select([self.socket], [], [], seconds)[0]:
                seconds = 0.0
                data = self.socket.recv(1 << 18)
                self.closed = not data
                self._in += data
        while len(self._in) >= 9 and len(self._in) >= (end := 9 + int.from_bytes(self._in[:3], "big")):
            kind, flags, stream, data = self._in[3], self._in[4], self._in[5:9], self._in[9:end]
            self._in = self._in[end:]
            if kind in (PING, SETTINGS) and not flags & 1:
                self.send(frame(kind, 1, 0, data if kind == PING else b""))
            elif kind == DATA and data:
                self.send(
                    frame(WINDOW, 0, 0, len(data).to_bytes(4, "big"))
                    + frame(WINDOW, 0, 1, len(data).to_bytes(4, "big"))
                )
                self._data += data
            elif kind == RESET:
                counts["refused_streams"] += 1
                self.closed = self.closed or int.from_bytes(stream, "big") == 1
            elif kind == HEADERS and flags & 1:  # trailers: the stream has ended
                self.closed = True
            elif kind == GOAWAY:
                counts["told_to_go"] += 1
                self.closed = True
        while len(self._data) >= 5 and len(self._data) >= (end := 5 + int.from_bytes(self._data[1:5], "big")):
            self.messages.append(self._data[5:end])
            self._data = self._data[end:]

    def join(self, name: str) -> bool:
        """Say hello, and be ready; return whether the server has taken it."""
        self.open()
        self.say(hello(name))
        end = time.monotonic() + 5
        while not self.messages and not self.closed and time.monotonic() < end:
            self.hear(0.1)
        first = self.messages.pop(0) if self.messages else b""
        counts["joined" if first[:1] == b"\x12" else "refused"] += 1
        return first[:1] == b"\x12"

    def instruction(self) -> int | None:
        """Return the number of the next instruction, once it has begun to come."""
        while not self.closed:
            self.hear(0.1)
            for one in self.messages:
                if one[:1] == b"\x2a":
                    at = 1 + next(i for i, byte in enumerate(one[1:], 1) if byte < 0x80)
                    number = shift = 0
                    for byte in one[at + 1 :]:
                        number |= (byte & 0x7F) << shift
                        shift += 7
                        if byte < 0x80:
                            self.messages.clear()
                            return number
            yield_()
        return None

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


_end = 0.0


class Over(Exception):  # noqa: N818  # the name says what happened
    """The time is over."""


def yield_(seconds: float = 0.0) -> None:
    """Sleep, and end the attack when its time has come."""
    late_s = time.monotonic() - _end
    if late_s >= PATIENCE_S or (late_s >= 0 and counts[options.goal[0]] >= int(options.goal[1])):
        raise Over
    if seconds:
        time.sleep(seconds)


def ended(one: socket.socket) -> bool:
    """Return whether the server has closed a connection; what it has sent is read."""
    try:
        one.setblocking(False)
        while data := one.recv(1 << 16):
            del data
        return True
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def held(
    most: int, per_second: int, begin: Callable[[socket.socket], None], keep_s: float = 1e9
) -> Iterator[list[socket.socket]]:
    """Hold so many connections open, and open others as soon as the server has closed some; yield them ever again."""
    open_: dict[socket.socket, float] = {}
    while True:
        now = time.monotonic()
        for one, since in list(open_.items()):
            if ended(one) or now - since > keep_s:
                counts["hung_up_on"] += now - since <= keep_s
                del open_[one]
                one.close()
        for _ in range(min(per_second // 20, most - len(open_))):
            with suppress(OSError):
                one = connect()
                begin(one)
                open_[one] = now
        counts["most_at_a_time"] = max(counts["most_at_a_time"], len(open_))
        yield_(0.05)
        yield list(open_)


# --- what they do -----------------------------------------------------------------------------------------------------


def connections() -> None:
    """Open connections and close them again, hundreds a second."""
    for _ in held(300, 600, lambda one: None, keep_s=0.4):
        pass


def half_open() -> None:
    """Hold connections on which nothing is said, or half a TLS handshake."""
    for _ in held(600, 600, lambda one: one.sendall(PART if options.tls else b"")):
        pass


def no_certificate() -> None:
    """Shake hands for TLS without a certificate."""
    while True:
        with suppress(OSError):
            one = Peer()
            one.open()
            one.hear(0.1)
            counts["hung_up_on"] += one.closed
            one.close()
        yield_(0.01)


def slow() -> None:
    """Say the preface, headers and hello a byte at a time."""
    begun, request = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0), frame(HEADERS, 4, 1, REQUEST)
    said = message(bytes(250))
    ways = (b"", begun + request), (begun, request), (begun + request + frame(DATA, 0, 1, said)[:9], said)
    sent: dict[socket.socket, int] = {}

    def begin(one: socket.socket) -> None:
        one.sendall(ways[one.fileno() % 3][0])

    for sockets in held(90, 600, begin):
        for one in sockets:
            rest, at = ways[one.fileno() % 3][1], sent.get(one, 0)
            with suppress(OSError):
                sent[one] = at + one.send(rest[at : at + 1])


def streams() -> None:
    """Open thousands of streams a second on one connection, and reset half of them."""
    while True:
        peer, number = Peer(), 1
        while not peer.closed:
            for _ in range(25):
                reset = frame(RESET, 0, number, b"\0\0\0\x08") if number % 4 == 1 else b""
                peer.send(frame(HEADERS, 4, number, REQUEST) + reset)
                number += 2
            counts["streams"] += 25
            peer.hear()
            yield_(0.01)
        counts["hung_up_on"] += 1
        peer.close()


def garbage() -> None:
    """Open streams and say something short that is no hello, a few hundred times a second."""
    while True:
        with suppress(OSError):
            peer = Peer()
            peer.open()
            peer.say(b"garbage")
            counts["messages"] += 1
            peer.hear(0.01)
            peer.close()
        yield_(0.004)


def pings() -> None:
    """Ping thousands of times a second."""
    while True:
        peer = Peer()
        while not peer.closed:
            peer.send(frame(PING, 0, 0, bytes(8)) * 50)
            counts["pings"] += 50
            peer.hear()
            yield_(0.01)
        counts["hung_up_on"] += 1
        peer.close()
        yield_(0.05)


def empty_replies() -> None:
    """As a client that has joined: send thousands of small frames a second; once cut off come back at once."""
    while True:
        peer = Peer()
        if peer.join("mallory-small"):
            while not peer.closed:
                for small in (b"\x22\x00", b"\x3a\x02\x08\x07", b"garbage", b"\x32\x00", b""):
                    peer.say(small)
                counts["messages"] += 5
                peer.hear()
                yield_(0.001)
        peer.close()
        yield_(0.05)


def huge_header() -> None:
    """Send headers without end, and a message that says it has 4 GB."""
    while True:
        peer = Peer()
        peer.send(frame(HEADERS, 0, 1, REQUEST))
        for i in range(100):
            peer.send(frame(CONTINUATION, 0, 1, header(b"x-%d" % i, b"y" * 8000)))
            peer.hear()
            yield_(0.001)
            if peer.closed:
                break
        peer.close()
        peer = Peer()
        peer.open()
        peer.send(frame(DATA, 0, 1, message(bytes(16000), 2**32 - 1)))
        while not gone(peer):  # when the stream has been refused the connection is still open
            peer.send(frame(DATA, 0, 1, bytes(16384)) * 8)
            yield_(0.004)


def gone(peer: Peer) -> bool:
    """Return whether the connection is closed, however its streams are; close it then."""
    peer.closed = False
    peer.hear()
    try:
        over = peer.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        over = False
    except OSError:
        over = True
    if over:
        counts["hung_up_on"] += 1
        peer.close()
    return over


def endless_reply() -> None:
    """As a client that has joined: answer with a message that is too long and never ends; come back at once."""
    chunk = field(6, bytes(1 << 20))
    while True:
        peer = Peer()
        if peer.join("mallory-endless"):
            peer.say(b"\x22\x00")
            number = peer.instruction()
            if number is not None:
                peer.say(field(5, b"\x08" + varint(number) + field(6, b"\x10" + varint(10**9))))
                while not peer.closed:
                    peer.say(chunk)
                    counts["chunks"] += 1
                    peer.hear()
                    yield_(0.01)
                counts["hung_up_on"] += 1
        peer.close()
        yield_(0.05)


def trickled_reply() -> None:
    """As a client that has joined: send a reply a byte at a time."""
    peer = Peer()
    peer.join("mallory-trickle")
    peer.say(b"\x22\x00")
    number = peer.instruction()
    peer.send(frame(DATA, 0, 1, message(b"\x2a", 5000)))
    counts["answering"] += number is not None
    while not peer.closed:
        peer.send(frame(DATA, 0, 1, b"\x00"))
        counts["bytes_of_it"] += 1
        peer.hear()
        yield_(0.01)
    counts["hung_up_on"] += 1
    while True:
        yield_(0.05)


def no_reader() -> None:
    """As a client that has joined: take nothing of what the server has to say; come back when it has hung up."""
    while True:
        peer = Peer()
        if peer.join("mallory-reader"):
            peer.say(b"\x22\x00")
            while not peer.closed:  # the windows stay as they are; pings are answered
                hear_without_windows(peer)
                yield_(0.05)
            counts["hung_up_on"] += 1
        peer.close()
        yield_(0.05)


def hear_without_windows(peer: Peer) -> None:
    """Read and answer pings, but never open the window again."""
    with suppress(OSError, ValueError):
        while not peer.closed and select.select([peer.socket], [], [], 0)[0]:
            data = peer.socket.recv(1 << 16)
            peer.closed = not data
            counts["read"] += len(data)
            at = data.find(frame(PING, 0, 0)[3:])  # good enough for what stands alone
            if at >= 3 and data[at - 3 : at] == b"\0\0\x08":
                peer.send(frame(PING, 1, 0, data[at + 6 : at + 14]))


KINDS = {
    kind.__name__.replace("_", "-"): kind
    for kind in (
        connections, half_open, no_certificate, slow, streams, garbage, pings, empty_replies, huge_header,
        endless_reply, trickled_reply, no_reader,
    )
}  # fmt: skip


def main() -> None:
    """Attack for some seconds."""
    global _end
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--goal", nargs=2, default=("", "0"))
    parser.add_argument("--fingerprint", default="")
    parser.add_argument("--tls", type=Path)
    parser.parse_args(namespace=options)
    os.nice(19)
    _end = time.monotonic() + options.seconds
    print("begun", flush=True)
    with suppress(Over):
        KINDS[options.kind]()
    print("done", json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
