"""The page's connections: uvicorn speaks HTTP on each, and here is bounded how many there are and how long they last.

A connection lives ``LIFE_S`` whatever it does, unless it becomes an event stream. So neither peers that say nothing nor
those that read nothing take more than ``MOST`` of the process's file descriptors.
"""

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MOST = 64
"""At most this many connections beside the event streams; further ones are closed at once."""
LIFE_S = 10.0
"""Seconds after which a connection that is no event stream ends."""

_HEADER_BYTES = 16 << 10
"""The longest head of a request."""
_PAUSE_S = 0.5
"""Seconds to wait when the process has no file descriptor left."""


class Connection:
    """One connection; the application finds it in its scope's state. Used on the page's thread only."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.streams = False
        self._transport: asyncio.BaseTransport | None = None
        self._end = asyncio.get_running_loop().call_later(LIFE_S, self.abort)

    def made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def stay(self) -> None:
        """Let the connection live for as long as its stream does."""
        self.streams = True
        self._end.cancel()

    def abort(self) -> None:
        """End the connection without waiting for the peer to read what is on its way."""
        self._end.cancel()
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()
        self.closed.set()


class _Protocol(H11Protocol):
    """uvicorn's protocol, which says when its connection begins and ends."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self.app_state["connection"].made(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app_state["connection"].closed.set()


class Connections:
    """Serves an ASGI application on a socket.

    Args:
        app: the application.
        listener: see ``listening``.
        tls: None for plain HTTP.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        # Nothing of a request is logged: the first one has the token in it.
        config = Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        config.load()
        self._protocol = partial(_Protocol, config, ServerState())
        self._listener = listener
        self._tls = tls
        self._open: dict[asyncio.Task[None], Connection] = {}

    @property
    def open(self) -> int:
        """How many connections there are, streams too."""
        return len(self._open)

    async def accept(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(_PAUSE_S)
                continue
            if sum(not connection.streams for connection in self._open.values()) >= MOST:
                peer.close()
                continue
            connection = Connection()
            task = asyncio.ensure_future(self._serve(peer, connection))
            self._open[task] = connection
            task.add_done_callback(self._open.pop)

    async def _serve(self, peer: socket.socket, connection: Connection) -> None:
        """Serve a connection to its end."""
        state: dict[str, Any] = {"connection": connection}
        make, handshake_s = partial(self._protocol, state), LIFE_S / 2 if self._tls else None
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError, ssl.SSLError):
                await loop.connect_accepted_socket(make, peer, ssl=self._tls, ssl_handshake_timeout=handshake_s)
                await connection.closed.wait()
        finally:
            connection.abort()

    async def close(self) -> None:
        """End all connections."""
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
