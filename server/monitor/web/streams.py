"""States as server-sent events: always the newest, about once a second, to a bounded number of browsers.

Nothing is queued: a browser that reads slowly misses states, and one that does not read is disconnected. A state is
written once, whatever the number of streams, and not at all while nobody looks.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from foundation.text import one_line
from server.monitor.web.connections import Connection

MAX_STREAMS = 16
"""At most this many event streams."""
EVERY_S = 1.0
"""Seconds between two states."""
SLOW_S = 10.0
"""Disconnect a browser that has not accepted a state for this many seconds."""

log = logging.getLogger("breakwater.server")


class Streams:
    """The event streams of a page, as an ASGI application. Used on the page's thread only.

    Args:
        state: returns the state as one line of JSON.
    """

    def __init__(self, state: Callable[[], str]) -> None:
        self._state = state
        self._text, self._written = "{}", float("-inf")
        self._failed = False
        self._closing = asyncio.Event()
        self._open: set[Connection] = set()

    def current(self) -> str:
        """Return the newest state, at most half of ``EVERY_S`` old."""
        if time.monotonic() - self._written >= EVERY_S / 2:
            self._write()
        return self._text

    @property
    def open(self) -> int:
        """How many streams there are."""
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self._open) >= MAX_STREAMS or self._closing.is_set():
            reason = f"{MAX_STREAMS} pages are open already, which is the limit.\n"
            await PlainTextResponse(reason, 503)(scope, receive, send)
            return
        connection: Connection = scope["state"]["connection"]
        connection.stay()
        self._open.add(connection)
        try:
            await self._send_states(connection, send)
        except TimeoutError:
            log.warning("page: %s has read nothing for %g s: disconnected", one_line(scope["client"]), SLOW_S)
            connection.abort()
        finally:
            self._open.discard(connection)

    async def _send_states(self, connection: Connection, send: Send) -> None:
        async def write(body: str, *, more: bool = True) -> None:
            async with asyncio.timeout(SLOW_S):
                await send({"type": "http.response.body", "body": body.encode(), "more_body": more})

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (connection.closed.is_set() or self._closing.is_set()):
            await write(f"data: {self.current()}\n\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._closing.wait()
        await write(f"event: bye\ndata: {self._text}\n\n", more=False)

    async def close(self, patience_s: float) -> None:
        """Send every browser the last state and a goodbye.

        Args:
            patience_s: how long that may take.
        """
        self._write()
        self._closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._open:
                    await asyncio.sleep(0.01)

    def _write(self) -> None:
        try:
            self._text = self._state()
        except Exception:  # a flaw of ours must not end the page; the last state stays
            if not self._failed:
                log.exception("page: the state cannot be written; reported once")
            self._failed = True
        self._written = time.monotonic()
