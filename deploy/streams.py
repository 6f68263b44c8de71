"""Standard input, output and error of a process that must not fail because its output cannot be written.

The result of a run is its folder; its output is a convenience. So output that cannot be written (a full disk, a closed
pipe, a closed terminal) is dropped, and the run continues. For commands whose output is their result, such as `check`,
it is an error.
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_LATER = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A disk that is full now may have room later; after any other error nothing more is written."""


class OutputLost(Exception):  # noqa: N818  # what happened
    """Standard output cannot be written, in a command whose result it is.

    Args:
        error: of the system.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.reader_left = error.errno == errno.EPIPE


class Sink(io.RawIOBase):
    """The end of an output stream: a file descriptor that may fail.

    Args:
        fd: where it writes.
        report: gets a line when output is lost for the first time; None to lose it silently.
    """

    def __init__(self, fd: int, report: TextIO | None = None) -> None:
        super().__init__()
        self.strict = False
        """Whether lost output is an error, instead of being dropped."""
        self._fd = fd
        self._report = report
        self._failed = self._over = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return not self._over and os.isatty(self._fd)

    def write(self, data: Any) -> int:
        """Write some of the data, or drop them.

        Raises:
            OutputLost: they cannot be written, and ``strict`` is set; raised once.
        """
        while not self._over:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:  # another process has made the terminal so
                select.select([], [self._fd], [], 1.0)
            except OSError as error:
                self._fail(error)
                break
        return len(memoryview(data))

    def _fail(self, error: OSError) -> None:
        """Note that something is lost."""
        first, self._failed = not self._failed, True
        self._over = self.strict or error.errno not in _LATER
        if self._over:  # what else this process or a C library writes there must not fail either
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._fd)
            os.close(null)
        if self.strict:
            raise OutputLost(error)
        if first and self._report is not None and error.errno not in (errno.EPIPE, errno.EIO):  # the reader has left
            line = f"breakwater: standard output: {error.strerror or error}; continuing without it"
            print(line, file=self._report, flush=True)


def prepare() -> Sink:
    """Replace the standard streams by sinks; return that of standard output.

    A closed one is opened on the null device; otherwise the next file that is opened would get its number, and receive
    all that is printed. Characters that the terminal's encoding lacks are shown as escapes.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for the rest of this process
    sys.stderr = _stream(Sink(2), sys.stderr)
    sink = Sink(1, sys.stderr)
    sys.stdout = _stream(sink, sys.stdout)
    return sink


def _stream(sink: Sink, before: TextIO | None) -> TextIO:
    """Return a text stream into a sink, as the one before it; None where that was closed."""
    if before is not None:
        before.flush()
    buffer = io.BufferedWriter(sink)
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)
