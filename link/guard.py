"""Limits what an unauthenticated or misbehaving peer can cost the server: connections, time, log lines, reconnects.

A peer is unauthenticated until the server has taken its client. gRPC limits how many connections there are and how long
handshakes may take (``limits``), but it can neither choose which connection to close nor distinguish an unauthenticated
peer that opens stream after stream from a client that has joined. The ``ConnectionGuard`` can: twice a second it
inspects this process's own sockets and disconnects unauthenticated peers that are connected for too long, the oldest of
too many, and those that sent no valid hello. So such peers cannot keep honest clients out by occupying every place.
docs/wire.md lists what one of them can cost.
"""

import asyncio
import ipaddress
import logging
import os
import resource
import socket
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from link.memory import give_back
from link.seats import NoSeat

HELLO_S = 10.0
"""Seconds that an unauthenticated peer has for its handshakes (TLS, HTTP/2), for its hello, and without any stream."""
UNAUTHENTICATED_S = 15.0
"""Disconnect a peer that is still unauthenticated after this many seconds."""
HELLO_BYTES = 4096
"""The longest hello. gRPC takes a first message of up to ``wire.MAX_FRAME_BYTES`` into memory; a longer one is not
parsed."""
MAX_UNAUTHENTICATED = 256
"""The most unauthenticated peers; the next scan disconnects the oldest of more."""
MAX_HELLOS = 64
"""The most hellos that are waited for at a time; one more ends the wait for the oldest."""
ROOM = 512
"""gRPC refuses connections beyond the clients and this many more: what may arrive between two scans."""
STREAMS_PER_CONNECTION = 8
"""gRPC refuses more. A client needs one."""
MAX_HEADER_BYTES = 16 << 10
"""gRPC refuses a stream with more bytes of headers while they arrive."""
SCAN_S = 0.5
"""Seconds between scans."""

_PING_STRIKES, _PING_MS = 100, 20
"""gRPC disconnects after this many pings that each follow the one before within this time, with nothing sent between.
The shortest heartbeat is 100 ms."""
_SPARE_DESCRIPTORS = 128
"""File descriptors of the process that are left for everything but connections."""
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 1.0, 300.0
"""How long a client is refused that was disconnected for what it sent: doubled each time, within these bounds."""
_FORGET_S = 3600.0
"""A client that is not disconnected for this long starts with the first backoff again."""
_MAX_BACKOFFS = 1024
"""The most clients in backoff that are remembered; the number of seats limits them where names are certified."""
LINES, _LINES_S = 20, 60.0
"""At most LINES warnings about unauthenticated peers in a window of _LINES_S seconds; the others are counted."""

_MANY = 500
"""Give memory back after this many unauthenticated peers have left: interrupted handshakes leave it fragmented."""

Address = tuple[str, int]

_log = logging.getLogger("breakwater.link")
_GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


def limits(clients: int) -> list[tuple[str, int]]:
    """Return the options of a gRPC server that limit what unauthenticated peers can cost.

    Args:
        clients: n; as many connections and ``ROOM`` more are taken, or as many as there are file descriptors for.
    """
    hello_ms = int(1000 * HELLO_S)
    return [
        ("grpc.max_allowed_incoming_connections", _room(clients + ROOM)),
        ("grpc.server_handshake_timeout_ms", hello_ms),  # also until the client's HTTP/2 settings are there
        ("grpc.max_connection_idle_ms", hello_ms),  # idle: without a stream; a client that has joined holds one
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.max_metadata_size", MAX_HEADER_BYTES // 2),
        ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.http2.max_ping_strikes", _PING_STRIKES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _PING_MS),
    ]


def _room(wanted: int) -> int:
    """Return for how many connections there are file descriptors, after raising the process's limit if needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + _SPARE_DESCRIPTORS + len(_descriptors())
    if soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return max(1, min(wanted, wanted + soft - needed))


class RateLimitedLog:
    """Logs warnings about unauthenticated peers, at most ``LINES`` in ``_LINES_S`` seconds."""

    def __init__(self) -> None:
        self._began = -_LINES_S
        self._written = self._dropped = 0

    def warn(self, text: str, *values: object) -> None:
        """Log a warning, or count it."""
        self.flush()
        if self._written < LINES:
            self._written += 1
            _log.warning(text, *values)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Start a new window once the last one is over, and log how many lines that one dropped."""
        now = time.monotonic()
        if now - self._began < _LINES_S:
            return
        self._began, self._written = now, 0
        if self._dropped:
            _log.warning("%d more lines about unauthenticated peers were not logged", self._dropped)
            self._dropped = 0


class Backoff:
    """Clients that were disconnected for what they sent, and how long each is refused: 1 s, 2 s, 4 s, ... 300 s."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by name: how often, until when

    def add(self, name: str) -> float:
        """Note that a client was disconnected; return the seconds that it is refused for."""
        now = time.monotonic()
        times, until = self._entries.pop(name, (0, now))
        times = 0 if now > until + _FORGET_S else times
        seconds = min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(times, 30))
        self._entries[name] = times + 1, now + seconds
        while len(self._entries) > _MAX_BACKOFFS:
            self._entries.popitem(last=False)
        return seconds

    def check(self, name: str) -> None:
        """Refuse a client that is in backoff.

        Raises:
            NoSeat: it may come back later.
        """
        left = self._entries.get(name, (0, 0.0))[1] - time.monotonic()
        if left > 0:
            raise NoSeat(f"{name!r} was cut off for what it sent: it may come back in {left:.0f} s", retry=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop reports that a peer left during a send: any peer can cause one, and gRPC logs a traceback each time."""
    return "ExecuteBatchError raised in core by servicer method" not in record.getMessage()


class ConnectionGuard:
    """Waits for hellos, and disconnects unauthenticated peers. Used on the loop's thread only.

    Args:
        members: returns the gRPC peers of the clients that have been taken.
    """

    def __init__(self, members: Callable[[], Iterable[str]]) -> None:
        self._members = members
        self._sockets = _Sockets()
        self._warnings = RateLimitedLog()
        self.warn = self._warnings.warn
        """Logs what an unauthenticated peer did, at a limited rate."""
        self._hellos: dict[asyncio.Future[Any], None] = {}  # oldest first
        self._gone = 0  # unauthenticated peers that left since memory was given back
        self._since: dict[Address, float] = {}  # when each unauthenticated peer was first seen
        self._rejected: set[Address] = set()

    def open(self, port: int) -> None:
        """Watch the connections of a port; no peer is disconnected before."""
        self._sockets.port = port
        _GRPC_LOG.addFilter(_is_news)

    async def hello(self, context: Any) -> bytes:
        """Wait for the first frame of a stream.

        Raises:
            NoHello: there is none in time, the stream ended, or too many others came meanwhile.
        """
        reading = asyncio.ensure_future(context.read())
        self._hellos[reading] = None
        if len(self._hellos) > MAX_HELLOS:
            next(iter(self._hellos)).cancel()
        try:
            await asyncio.wait([reading], timeout=HELLO_S)
            if not reading.done():
                raise NoHello(f"nothing within {HELLO_S:g} s")
            if reading.cancelled():
                raise NoHello(f"{MAX_HELLOS} others are waiting")
            frame = reading.result()
        finally:
            del self._hellos[reading]
            reading.cancel()
        if frame is grpc.aio.EOF:
            raise NoHello("the stream ended")
        raw: bytes = frame
        return raw

    def close(self) -> None:
        """Stop waiting for hellos."""
        for reading in list(self._hellos):
            reading.cancel()

    def reject(self, peer: str) -> None:
        """Disconnect a peer at the next scan, unless it is a client's by then."""
        if (address := _address(peer)) is not None:
            self._rejected.add(address)

    def scan(self) -> None:
        """Disconnect unauthenticated peers that were rejected, are connected for too long, or are too many."""
        now = time.monotonic()
        connected = self._sockets.connected()
        members = set(map(_address, self._members()))
        if not members <= connected.keys():
            return  # a client has just left, or its connection is unknown: then no peer counts as unauthenticated
        self._gone += len(self._since.keys() - connected.keys())
        if self._gone >= _MANY:
            self._gone = 0
            Thread(target=give_back, name="give back", daemon=True).start()  # some 50 ms, which the link need not wait
        self._since = {address: self._since.get(address, now) for address in connected if address not in members}
        oldest = sorted(self._since, key=self._since.__getitem__)
        too_many = set(oldest[: max(0, len(oldest) - MAX_UNAUTHENTICATED)])
        for address in oldest:
            if address in too_many or address in self._rejected or now - self._since[address] > UNAUTHENTICATED_S:
                self._sockets.hang_up(connected[address], address)
        self._rejected &= members  # these are about to leave
        self._warnings.flush()

    def disconnect(self, peers: Iterable[str]) -> None:
        """Disconnect these peers at once."""
        connected = self._sockets.connected()
        for address in map(_address, peers):
            if address is not None and address in connected:
                self._sockets.hang_up(connected[address], address)


class NoHello(Exception):  # noqa: N818  # the name says what happened
    """A peer sent no hello; why not."""


class _Sockets:
    """This process's own TCP connections to one of its ports.

    gRPC does not report which file descriptor a peer has. So the descriptors of the process are listed, and each new
    one is inspected on a duplicate, so that nothing happens to a descriptor that has become another file's.
    """

    def __init__(self) -> None:
        self.port = 0
        self._known: dict[tuple[int, int], Address | None] = {}  # by descriptor and inode; None for other files

    def connected(self) -> dict[Address, int]:
        """Return the descriptors of the connections to the port by the peer's address; none where it is not known."""
        if not self.port:
            return {}
        known, self._known = self._known, {}
        found = {}
        for fd in _descriptors():
            with suppress(OSError):
                status = os.fstat(fd)
                if stat.S_ISSOCK(status.st_mode):
                    key = fd, status.st_ino
                    address = self._known[key] = known[key] if key in known else self._ask(fd)
                    if address is not None:
                        found[address] = fd
        return found

    def hang_up(self, fd: int, address: Address) -> None:
        """End the connection that was found at a descriptor; gRPC then closes it as one that the peer has closed."""
        with suppress(OSError), _twin(fd) as twin:
            if self._peer_of(twin) == address:
                twin.shutdown(socket.SHUT_RDWR)

    def _ask(self, fd: int) -> Address | None:
        with suppress(OSError), _twin(fd) as twin:
            return self._peer_of(twin)
        return None

    def _peer_of(self, twin: socket.socket) -> Address | None:
        internet = twin.type == socket.SOCK_STREAM and twin.family in (socket.AF_INET, socket.AF_INET6)
        if not internet or twin.getsockname()[1] != self.port:
            return None
        with suppress(OSError, ValueError):  # one that listens has no peer
            host, port = twin.getpeername()[:2]
            return _plain(host), port
        return None


@contextmanager
def _twin(fd: int) -> Iterator[socket.socket]:
    """Give a duplicate of a socket, and close it.

    Raises:
        OSError: the descriptor is closed, or no socket any more.
    """
    copy = os.dup(fd)
    try:
        twin = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with twin:
        yield twin


def _descriptors() -> list[int]:
    """Return the file descriptors of this process; none where the system does not list them."""
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd")]
    return []


def host_of(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address of a peer as gRPC writes it; None where it has none."""
    address = _address(peer)
    return None if address is None else ipaddress.ip_address(address[0])


def _address(peer: str) -> Address | None:
    """Return host and port of a peer as gRPC writes it (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``)."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    with suppress(ValueError):
        if kind in ("ipv4", "ipv6"):
            return _plain(host.strip("[]")), int(port)
    return None


def _plain(host: str) -> str:
    """Return an IP address as this module compares it: without scope, and not as IPv4 within IPv6."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)
