"""Signals that end a command: SIGTERM takes the same way out as Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raising(kind: type[KeyboardInterrupt] = KeyboardInterrupt) -> Iterator[None]:
    """Within: SIGTERM raises this in the main thread, so that `kill` and Ctrl-C clean up alike."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise kind

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
