"""Serves the coordinator's page from its own thread, so that no browser can hold up a round."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foundation.text import one_line
from link.address import Address
from link.guard import RateLimitedLog
from server.monitor.web.connections import Connections
from server.monitor.web.gate import ENTER, STREAM, Gate, is_token, new_token
from server.monitor.web.html import document
from server.monitor.web.options import WebOptions, certificate_in
from server.monitor.web.script import SCRIPT
from server.monitor.web.streams import Streams
from server.monitor.web.style import STYLE

log = logging.getLogger("breakwater.server")

TOKEN_FILE = "web-token"  # noqa: S105  # a file's name
"""In a run folder: the token, so that open pages still have access after the server was started again."""
_BYE_S = 1.0
"""Seconds to send the goodbyes at the end."""


def kept_token(folder: Path) -> str:
    """Return the token of a run, from its folder or new; only the owner can read the file."""
    path = folder / TOKEN_FILE
    with suppress(OSError, UnicodeError):
        if is_token(text := path.read_text(encoding="ascii").strip()):
            return text
    token = new_token()
    try:
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(file, "w", encoding="ascii") as kept:
            kept.write(token + "\n")
    except OSError as error:
        effect = "open pages lose their access when the server is started again"
        log.warning("%s: cannot be written: %s; %s", path, error.strerror or error, effect)
    return token


def forget_token(folder: Path) -> None:
    """Remove the token of a run that is over."""
    with suppress(OSError):
        (folder / TOKEN_FILE).unlink(missing_ok=True)


class WebPage:
    """Serves the page until ``stop``. ``url`` is where a visitor gets in; unlike ``address`` it holds the token.

    Args:
        options: where.
        state: returns the state as one line of JSON; called on the page's thread.
        token: see ``server.monitor.web.gate``; "" for a new one.

    Raises:
        ConfigError: it cannot be served; one line.
    """

    def __init__(self, options: WebOptions, state: Callable[[], str], token: str = "") -> None:
        token = token or new_token()
        certified: list[str] = []
        self._tls = None
        if options.tls is not None:
            self._tls, certified = certificate_in(options.tls)
        self._listener = options.bound()
        bound, port = self._listener.getsockname()[:2]
        self._state = state
        self._suspicious = RateLimitedLog()
        every = bound in ("0.0.0.0", "::")  # noqa: S104  # compared, not bound
        host = next((name for name in certified if "*" not in name), "localhost") if every else options.address.host
        self.address = f"http{'s' if self._tls else ''}://{Address(host, port)}"
        self.url = f"{self.address}{ENTER}?token={token}"
        self._hosts, self._token, self._port = certified if every else [*certified, options.address.host], token, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def streams(self) -> int:
        """How many browsers have an event stream."""
        return self._streams.open

    @property
    def connections(self) -> int:
        """How many connections there are, event streams too."""
        return self._connections.open

    def stop(self) -> None:
        """Send open pages the last state, and end."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(2 * _BYE_S + 1)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # no flaw of the page may end a run
            log.exception("the page has ended; the run goes on without it")
        finally:
            self._listener.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_ignore)
        streams = self._streams = Streams(self._state)
        gate = Gate(
            _site(streams),
            token=self._token,
            hosts=self._hosts,
            port=self._port,
            tls=self._tls is not None,
            complain=lambda peer, flaw: self._suspicious.warn("page: %s: %s", one_line(peer), flaw),
        )
        connections = self._connections = Connections(gate, self._listener, self._tls)
        accepting = asyncio.ensure_future(connections.accept())
        self._ready.set()
        await self._over.wait()
        accepting.cancel()
        await streams.close(_BYE_S)
        await connections.close()


def _site(streams: Streams) -> Starlette:
    """Return the page behind the gate."""
    fixed = {
        "/": (document(), "text/html"),
        "/page.css": (STYLE, "text/css"),
        "/page.js": (SCRIPT, "text/javascript"),
    }

    async def file(request: Request) -> Response:
        text, kind = fixed[request.scope["path"]]
        return Response(text, media_type=kind)

    async def state(_: Request) -> Response:
        return Response(streams.current(), media_type="application/json")

    routes = [*(Route(path, file) for path in fixed), Route("/state", state), Route(STREAM, streams)]
    return Starlette(routes=routes)


def _ignore(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Log what goes wrong with a connection, such as a handshake with a peer that speaks no TLS, only for debugging."""
    log.debug("page: %s: %s", context.get("message"), context.get("exception"))
