"""A page that is served, and bare requests to it, as a hostile peer would write them."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from link.address import Address
from server.monitor.web.options import WebOptions
from server.monitor.web.page import WebPage

SOON_S = 30.0


class State:
    """A state that a test changes, and how often it was asked for."""

    def __init__(self, **values: Any) -> None:
        self.values: dict[str, Any] = values
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return json.dumps(self.values)


@contextmanager
def served(
    state: State | None = None, *, tls: Path | None = None, token: str = "", port: int = 0, host: str = "127.0.0.1"
) -> Iterator[WebPage]:
    page = WebPage(WebOptions(address=Address(host, port), tls=tls), state or State(round=1), token)
    try:
        yield page
    finally:
        page.stop()


def port_of(page: WebPage) -> int:
    port = urlsplit(page.url).port
    assert port is not None
    return port


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str


def ask(
    page: WebPage,
    path: str,
    *headers: tuple[str, str],
    method: str = "GET",
    host: str | None = "localhost",
    trusted: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request with these headers and no others."""
    port = port_of(page)
    if trusted is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON_S)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SOON_S, context=trusted)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in (*headers, *(() if host is None else (("Host", host),))):
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()


def cookie_of(page: WebPage, trusted: ssl.SSLContext | None = None) -> tuple[str, str]:
    """Visit the page's URL, and return the cookie as a header."""
    parts = urlsplit(page.url)
    answer = ask(page, f"{parts.path}?{parts.query}", trusted=trusted)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    return "Cookie", answer.headers["set-cookie"].partition(";")[0]


class Stream:
    """An event stream that is read when a test says so."""

    def __init__(self, page: WebPage, cookie: tuple[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=SOON_S)
        self._connection.request("GET", "/events", headers=dict([cookie]))
        self._answer = self._connection.getresponse()
        self.status, self.kind = self._answer.status, self._answer.getheader("content-type")

    def event(self) -> tuple[str, dict[str, Any]]:
        """Return kind and data of the next event."""
        kind = "message"
        while line := self._answer.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            else:
                data = json.loads(value)
        return kind, data

    def ended(self) -> bool:
        """Read to the end of the stream."""
        return self._answer.read() == b""

    def close(self) -> None:
        self._answer.close()
        self._connection.close()
