"""The ledger counts the bytes of the link: per peer and in total, each way, as they pass between us and gRPC.

What is counted is the length of every serialised frame plus the five bytes that gRPC puts before a message. All frames
count: handshake, instructions, replies, chunks, and also replies that are refused. Not counted is what HTTP/2, TLS and
TCP add below (frame headers, window updates, pings); docs/wire.md has the measured sum.
"""

import operator
import threading
from dataclasses import astuple, dataclass

GRPC_PREFIX_BYTES = 5
"""What gRPC puts before each message: one byte of flags, four of length."""


@dataclass(frozen=True)
class Traffic:
    """Bytes and frames that passed.

    Args:
        bytes_up: bytes from client to server.
        bytes_down: bytes from server to client.
        frames_up: frames from client to server.
        frames_down: frames from server to client.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    frames_up: int = 0
    frames_down: int = 0

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        """Return what passed since ``earlier``."""
        return Traffic(*map(operator.sub, astuple(self), astuple(earlier)))


class Ledger:
    """Counts frames by peer; all methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = [0, 0, 0, 0]
        self._peers: dict[str, list[int]] = {}

    def up(self, peer: str, *frame_bytes: int) -> None:
        """Count frames of these lengths from the client ``peer`` to the server."""
        self._count(peer, 0, frame_bytes)

    def down(self, peer: str, *frame_bytes: int) -> None:
        """Count frames of these lengths from the server to the client ``peer``."""
        self._count(peer, 1, frame_bytes)

    def total(self) -> Traffic:
        """Return what passed between the server and all clients so far."""
        with self._lock:
            return Traffic(*self._total)

    def peer(self, name: str) -> Traffic:
        """Return what passed between the server and one client so far; nothing if it never came."""
        with self._lock:
            return Traffic(*self._peers.get(name, ()))

    def peers(self) -> dict[str, Traffic]:
        """Return what passed so far by the client's name."""
        with self._lock:
            return {name: Traffic(*counts) for name, counts in self._peers.items()}

    def forget(self, peer: str) -> None:
        """Keep what passed to and from a client in the total alone."""
        with self._lock:
            self._peers.pop(peer, None)

    def _count(self, peer: str, way: int, frame_bytes: tuple[int, ...]) -> None:
        frames = len(frame_bytes)
        n = sum(frame_bytes) + frames * GRPC_PREFIX_BYTES
        with self._lock:
            for counts in (self._total, self._peers.setdefault(peer, [0, 0, 0, 0])):
                counts[way] += n
                counts[way + 2] += frames
