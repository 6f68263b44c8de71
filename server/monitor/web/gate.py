"""Who gets in: the token, its cookie, the Host header, and the headers that keep a browser from helping strangers.

Every answer forbids scripts of others, frames, referrers and caches. Without the token nothing is shown, also on
loopback: any user of the machine, and any page in the coordinator's browser, can send requests there.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from link.identity.certificates import is_for
from server.monitor.web.options import is_loopback

ENTER = "/enter"
"""Where a visitor shows the token, as ``?token=``."""
STREAM = "/events"
"""The only answer after which the connection stays open."""

_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""
_NO_ENTRY = "This page needs its token: open the address that was printed when the page was started.\n"
_OTHER_HOST = "This page is not served under this host name.\n"


def new_token() -> str:
    """Return a random token of 256 bits, in characters that need no escape in a URL."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def is_token(text: str) -> bool:
    """Return whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


class Gate:
    """ASGI middleware: passes GET requests with the cookie, or gives the cookie to who has the token.

    Args:
        app: what is behind it.
        token: see ``new_token``.
        hosts: names and addresses under which the page may be visited, beside those of loopback; a certificate's
            wildcards count.
        port: of the page; the cookie's name has it, as cookies know no ports.
        tls: the page is visited over TLS.
        complain: called with a peer and what was wrong with its request; never with the token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        hosts: Sequence[str],
        port: int,
        tls: bool,
        complain: Callable[[str, str], None],
    ) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = hosts
        self._tls = tls
        self._complain = complain
        self.cookie = f"__Host-breakwater-{port}" if tls else f"breakwater-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stays = scope["path"] == STREAM

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not stays or message["status"] != 200:
                    headers["Connection"] = "close"
            await send(message)

        answer = self._answer(Request(scope))
        await (self._app if answer is None else answer)(scope, receive, guarded)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to a request that does not pass; None if it does."""
        if request.method != "GET":
            return PlainTextResponse("Only GET.\n", 405, {"Allow": "GET"})
        if not self._is_ours(request.headers.getlist("host")):
            self._complain(_peer(request), "a request for another host name")
            return PlainTextResponse(_OTHER_HOST, 421)
        if request.scope["path"] == ENTER:
            return self._enter(request)
        if self._fits(request.cookies.get(self.cookie, "")):
            return None
        return PlainTextResponse(_NO_ENTRY, 401)

    def _enter(self, request: Request) -> Response:
        token = request.query_params.get("token", "")
        if not self._fits(token):
            self._complain(_peer(request), "a wrong token")
            return PlainTextResponse(_NO_ENTRY, 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, token, path="/", secure=self._tls, httponly=True, samesite="strict")
        return answer

    def _fits(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(errors="replace"), self._token)

    def _is_ours(self, hosts: Sequence[str]) -> bool:
        """Return whether a request names this page; else another site's name was made to lead here (DNS rebinding)."""
        if len(hosts) != 1:
            return False
        host = re.sub(r":\d*$", "", hosts[0]).removeprefix("[").removesuffix("]").lower()
        return is_loopback(host) or is_for(self._hosts, host)


def _peer(request: Request) -> str:
    return "unknown peer" if request.client is None else request.client.host
