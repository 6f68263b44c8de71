"""Signals that end a process: the first one ends what is under way in order, and the ones after it change nothing.

SIGTERM and SIGHUP (a closed terminal) take the same way out as Ctrl-C. One request to end often comes as several
signals: ``timeout`` sends its signal to the command and then to the whole group, service managers signal every process,
and people press Ctrl-C again. So only the first one counts, and what must be written as a whole is written within
``held``.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a process in order."""

_Handler = Callable[[int, FrameType | None], Any]


class _State:
    """The state of signal handling; handlers and ``held`` run in the main thread only."""

    taken = False  # the first one has come, and what it raises is on its way
    waiting: Callable[[], None] | None = None  # what one that has come within ``held`` does in the end
    holds = 0
    depth = 0  # of ``raising``


def hangups_count() -> bool:
    """Return whether SIGHUP ends this process: ``nohup`` starts a command with SIGHUP ignored, and it stays ignored."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


@contextmanager
def raising(
    kind: type[BaseException] = KeyboardInterrupt, *, ctrl_c: type[BaseException] | None = None, for_good: bool = False
) -> Iterator[None]:
    """Within: the first SIGTERM or SIGHUP raises this in the main thread, so that `kill` and Ctrl-C clean up alike.

    Where Ctrl-C would raise the same, they go the way of Ctrl-C: an asyncio loop then ends its tasks in order, while an
    exception out of nowhere can hit a destructor, in which Python drops it.

    Args:
        kind: what is raised, with the number of the signal.
        ctrl_c: what Ctrl-C raises; it too counts only once then. None for code that runs an asyncio loop in the main
            thread, which has a handler of its own.
        for_good: after a signal has been taken, all further ones are ignored until this process ends.
    """
    handlers: dict[int, _Handler] = {signal.SIGTERM: _taking(kind)}
    if hangups_count():
        handlers[signal.SIGHUP] = _taking(kind)
    if ctrl_c is not None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        handlers[signal.SIGINT] = _taking(ctrl_c)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _State.depth += 1
    try:
        yield
    finally:
        if for_good and _State.taken:
            ignore()
        for number, handler in before.items():
            if signal.getsignal(number) is handlers[number]:  # else ``ignore`` has been called
                signal.signal(number, handler)
        _State.depth -= 1
        if not _State.depth:
            _State.taken, _State.waiting = False, None


@contextmanager
def held() -> Iterator[None]:
    """Within: a signal that would end this process waits for the end of the block, so that results are written whole.

    If the block raises, that ends the process anyway, and the signal keeps waiting. Has no effect in other threads than
    the main one, because no signal interrupts them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.holds += 1
    try:
        yield
    finally:
        _State.holds -= 1
    if _State.waiting is not None and not _State.holds:
        act, _State.waiting = _State.waiting, None
        act()


def waiting() -> bool:
    """Return whether a signal waits for the end of ``held``: there is no time for long waits then."""
    return _State.waiting is not None


def done() -> None:
    """Note that all is done: a signal that waits or comes later has nothing to end, within ``raising``."""
    if _State.depth and threading.current_thread() is threading.main_thread():
        _State.taken, _State.waiting = True, None


def ignore() -> None:
    """Ignore all signals that end a process, from now on: it is ending."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _taking(kind: type[BaseException]) -> _Handler:
    """Return a handler that raises this at the first signal."""

    def take(number: int, frame: FrameType | None) -> None:
        if _State.taken or _State.waiting is not None:
            return
        if _State.holds:
            _State.waiting = lambda: take(number, None)
            return
        _State.taken = True
        ctrl_c = signal.getsignal(signal.SIGINT)
        if kind is KeyboardInterrupt and number != signal.SIGINT and callable(ctrl_c) and not hasattr(ctrl_c, "ours"):
            ctrl_c(signal.SIGINT, frame)
            return
        raise kind(number)

    take.ours = True  # type: ignore[attr-defined]  # tells it from the handlers of Python and asyncio
    return take
