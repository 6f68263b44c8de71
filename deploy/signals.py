"""Signals that end a command: SIGTERM takes the same way out as Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raising(kind: type[KeyboardInterrupt] = KeyboardInterrupt) -> Iterator[None]:
    """Within: SIGTERM raises this in the main thread, so that `kill` and Ctrl-C clean up alike.

    Where Ctrl-C would raise the same, SIGTERM goes the way of Ctrl-C: an asyncio loop then ends its tasks in order,
    while an exception out of nowhere can hit a destructor, in which Python drops it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        ctrl_c = signal.getsignal(signal.SIGINT)
        if kind is KeyboardInterrupt and callable(ctrl_c):
            ctrl_c(signal.SIGINT, frame)
            return
        raise kind

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
