"""One asyncio loop in a thread of its own, shared by all grids of a process: gRPC's asyncio side wants one loop.

It starts with the first user and ends with the last, so that a process that has closed its grids has no thread left.
"""

import asyncio
import threading

_lock = threading.Lock()
_users = 0
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def acquire() -> asyncio.AbstractEventLoop:
    """Return the running loop, started if need be; to be paired with ``release``."""
    global _users, _loop, _thread
    with _lock:
        _users += 1
        if _loop is None:
            _loop = asyncio.new_event_loop()
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
