"""``breakwater client --ledger FILE``: a JSON line for each message that leaves, for whoever must account for it.

A line is in the file before its message leaves; only that of the first word, "hello", comes after it, since until then
there may be no connection. Where a line cannot be written, the message does not leave, and the client ends: an account
with gaps is none. So the lines are an upper bound: of a message whose stream broke, only a part left.

Nothing of a message's content is in it, only its length, its norm and a digest.
"""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation.errors import ConfigError, Unwritten
from foundation.files import lock
from foundation.origin import release
from link.ledger import GRPC_PREFIX_BYTES

FORMAT = 1
HEAD = {
    "ledger": FORMAT,
    "bytes": f"of all frames of a message, and {GRPC_PREFIX_BYTES} of gRPC before each; TLS, HTTP/2 and TCP add theirs",
    "norm": "of the vector that the server decompresses from a reply to train; null for other messages",
    "sha256": "of the frames of a message, one after the other",
    "heartbeats": "HTTP/2 pings of gRPC below the frames, without content: not listed",
}
"""What the first line of a client's messages says about the others, beside its time and the version."""


class SentLedger:
    """Appends lines to a file that is this process's alone.

    Args:
        path: of the file; made for its owner alone if it does not exist.

    Raises:
        ConfigError: it cannot be written, or another client writes it; one line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"--ledger {path}: cannot be written: {error.strerror}; give another file") from None
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        try:
            if self._regular and not lock(self._file):
                raise ConfigError(f"--ledger {path}: another process writes it; give each client a file of its own")
            size = os.fstat(self._file).st_size
            if self._regular and size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")  # after a line that was cut by a crash
            self._write({"time": _now(), "version": release(), **HEAD})
        except (OSError, Unwritten) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"--ledger {path}: cannot be written: {reason}; give another file") from None

    def add(self, name: str, kind: str, round_: int | None, frames: Sequence[bytes], norm: float | None) -> int:
        """Write the line of a message; return its bytes.

        Args:
            name: of the client that sends it.
            kind: see ``link.witness``.
            round_: that it belongs to; None for none.
            frames: all of it.
            norm: see ``HEAD``; what is not finite is written as null.

        Raises:
            Unwritten: it cannot be written; one line.
        """
        digest = hashlib.sha256()
        for frame in frames:
            digest.update(frame)
        nbytes = bytes_of(frames)
        line = {"time": _now(), "client": name, "round": round_, "kind": kind, "bytes": nbytes}
        norm = norm if norm is not None and abs(norm) < float("inf") else None
        self._write({**line, "norm": norm, "sha256": digest.hexdigest()})
        return nbytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        written, reason = 0, "the disk is full"
        try:
            written = os.write(self._file, data)
        except OSError as error:
            reason = error.strerror or str(error)
        if written == len(data):
            return
        with suppress(OSError):  # half a line would spoil the file
            if written and self._regular:
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        raise Unwritten(f"--ledger {self._path}: {reason}; the client ends, as it sends nothing that it cannot list")


def bytes_of(frames: Sequence[bytes]) -> int:
    """Return how many bytes a message is, counted as the server counts it (``link.ledger``)."""
    return sum(len(frame) + GRPC_PREFIX_BYTES for frame in frames)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
