"""The asyncio loops of the link: one in a thread of its own for all grids of a process, and one for each ``join``.

The grids' loop starts with the first grid and ends with the last, so a process that has closed them has no thread left.
"""

import asyncio
import threading
from typing import Any

_lock = threading.Lock()
_users = 0
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def new() -> asyncio.AbstractEventLoop:
    """Return a new loop that gRPC can share this process with.

    gRPC wakes all loops of a process through one socket, and those that come late find it empty: that is no error.
    """
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_handle)
    return loop


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    # With several loops in one process (tests do that, no process of ours does) gRPC may also hand one of them the last
    # event of another that has been closed.
    closed = isinstance(error, RuntimeError) and "Event loop is closed" in str(error)
    if not closed and not isinstance(error, BlockingIOError):
        loop.default_exception_handler(context)


def acquire() -> asyncio.AbstractEventLoop:
    """Return the running loop, started if need be; to be paired with ``release``."""
    global _users, _loop, _thread
    with _lock:
        _users += 1
        if _loop is None:
            _loop = new()
            _thread = threading.Thread(target=_run, args=(_loop,), name="link", daemon=True)
            _thread.start()
        return _loop


def release() -> None:
    """Give the loop back; the last one ends it and its thread."""
    global _users, _loop, _thread
    with _lock:
        _users -= 1
        if _users or _loop is None or _thread is None:
            return
        _loop.call_soon_threadsafe(_loop.stop)
        _thread.join()
        _loop.close()
        _loop = _thread = None


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_asyncgens())
