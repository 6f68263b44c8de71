"""HOST:PORT, parsed in one place for every command, option and config that takes one.

An IPv6 address is written in brackets: ``[::1]:9090``. Any other form is refused, with a suggestion.
"""

import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from foundation.errors import ConfigError

EXAMPLE_PORT = 9090
"""The port in suggestions where none was given."""

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_FOREIGN = {
    "://": "it is a URL",
    "@": "leave out the user name",
    "/": "leave out the path",
    r"\s": "it contains a space",
}
"""What is around an address that does not belong to it, by its pattern."""
_MOST_SHOWN = 100


@dataclass(frozen=True)
class Address:
    """Where a server listens or is found.

    Args:
        host: a name, an IPv4 address or an IPv6 address, which may have a zone (``fe80::1%eth0``); without brackets.
        port: 0 for any free one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """The address as gRPC takes it, which reads a bare ``dns:9090`` as the host 9090, and a % as an escape."""
        return "dns:///" + str(self).replace("%", "%25")

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address; None for a name."""
        return _ip(self.host)

    @classmethod
    def parse(cls, text: str, *, listens: bool = False, what: str = "") -> Self:
        """Return the address that a user wrote.

        Args:
            text: HOST:PORT.
            listens: it is to be listened on, so that port 0 is any free one.
            what: the option or key that it was given with, for the message.

        Raises:
            ConfigError: it is none; one line that says what to write.
        """
        flaw = _flaw(text, listens)
        if flaw is None:
            host, port = _split(text)
            return cls(_plain(host), int(port))
        head, meant = f"{what} {_shown(text)!r}".lstrip(), _suggestion(text, listens)
        ports, write = f"from {0 if listens else 1} to 65535", f"; write {meant}" if meant else ""
        raise ConfigError(f"{head}: must be HOST:PORT with a port {ports}: {flaw}{write}")

    def try_to_bind(self) -> None:
        """Bind the address and release it again: gRPC does not report why it cannot.

        Raises:
            OSError: it cannot be bound.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except UnicodeError:  # a name that no DNS name can be
            raise OSError(None, "no such host name") from None
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)


def parse_host(text: str, *, what: str = "") -> str:
    """Return a host without a port, and without the brackets that an IPv6 address may have.

    Raises:
        ConfigError: it is none; one line that says what to write.
    """
    host = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    flaw = _flaw_of_host(host)
    if flaw is None:
        return _plain(host)
    meant = _host_meant(text)
    write = f"; write {meant}" if meant and meant != text else ""
    raise ConfigError(f"{what} {_shown(text)!r}: must be a host name or an IP address: {flaw}{write}".lstrip())


def _split(text: str) -> tuple[str, str]:
    """Return host, without brackets, and port of what has no flaw."""
    host, _, port = text.rpartition(":")
    return (host[1:-1] if host.startswith("[") else host), port


def _flaw(text: str, listens: bool) -> str | None:
    """Return what is wrong with an address, or None."""
    if (outer := _flaw_of_form(text)) is not None:
        return outer
    bracketed = text.startswith("[")
    host, port = _split(text) if ":" in text else (text, "")
    if bracketed:
        inside, bracket, rest = text[1:].partition("]")
        if not bracket:
            return "the bracket is not closed"
        if not isinstance(_ip(inside), ipaddress.IPv6Address):
            return "brackets are for an IPv6 address"
        if not rest.startswith(":"):
            return "the port is missing"
        host, port = inside, rest[1:]
    elif text.count(":") > 1:
        return "an IPv6 address needs brackets" if _bracketed(text) else "it has a colon too many"
    elif ":" not in text:
        return "the port is missing" if text else "it is empty"
    if host == "*" or not host:
        return "* is no host" if host else "the host is missing"
    flaw = None if bracketed else _flaw_of_host(host)
    if flaw is not None:
        return flaw
    if not port:
        return "the port is missing"
    if not re.fullmatch(r"[0-9]{1,9}", port):
        return f"the port {port[:20]!r} is no number"
    if int(port) == 0 and not listens:
        return "port 0 means any free one, which only a server can ask for"
    return None if int(port) <= 65535 else f"there is no port {port}"


def _flaw_of_form(text: str) -> str | None:
    """Return what is wrong around an address, or None."""
    return next((flaw for pattern, flaw in _FOREIGN.items() if re.search(pattern, text)), None)


def _flaw_of_host(host: str) -> str | None:
    """Return what is wrong with a host, without brackets, or None."""
    if (outer := _flaw_of_form(host)) is not None:
        return outer
    if not host:
        return "the host is missing"
    if _ip(host) is not None:
        return None
    if host == "*":
        return "* is no host"
    if ":" in host:
        return "leave out the port"
    try:
        labels = host.encode("idna").decode("ascii").removesuffix(".").split(".")
    except UnicodeError:
        return f"{_shown(host)!r} is no host name"
    if not all(map(_LABEL.fullmatch, labels)):
        return f"{_shown(host)!r} is no host name"
    if all(label.isdigit() for label in labels):
        try:
            socket.inet_aton(host)  # also takes 127.1, as many programs do
        except OSError:
            return f"{_shown(host)!r} is no IPv4 address"
    return None


def _suggestion(text: str, listens: bool) -> str:
    """Return what was probably meant, or nothing."""
    bare = _bare(text)
    meant = _bracketed(bare) or bare
    host, colon, port = meant.rpartition(":")
    if not colon or (meant.startswith("[") and meant.endswith("]")):
        host, port = meant, ""
    if host in ("", "*") and (listens or not host):
        host = "0.0.0.0" if listens else "127.0.0.1"  # noqa: S104  # a suggestion
    candidate = f"{host}:{port}"
    if _flaw(candidate, listens) is not None:
        candidate = f"{host}:{EXAMPLE_PORT}"
    return "" if _flaw(candidate, listens) is not None else candidate


def _host_meant(text: str) -> str:
    """Return the host that was probably meant where an address or a URL was given, or nothing."""
    bare = _bare(text)
    host = bare[1:].partition("]")[0] if bare.startswith("[") else bare
    if _flaw_of_host(host) is not None:
        host = host.partition(":")[0]
    return "" if _flaw_of_host(host) is not None else host


def _bare(text: str) -> str:
    """Return a text without scheme, user, path and blanks."""
    inner = "".join(text.split()).rpartition("@")[2].rpartition("://")[2]
    return re.split(r"[/?#]", inner, maxsplit=1)[0]


def _bracketed(text: str) -> str:
    """Return an IPv6 address that lacks its brackets with them, and with the port if one may follow; else nothing."""
    host, _, port = text.rpartition(":")
    if isinstance(_ip(host), ipaddress.IPv6Address) and port.isdecimal():
        return f"[{host}]:{port}"
    return f"[{text}]" if isinstance(_ip(text), ipaddress.IPv6Address) else ""


def _plain(host: str) -> str:
    """Return a host in ASCII."""
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def _shown(text: str) -> str:
    """Return a text for a message: short, and without what may be a password."""
    return re.sub(r"^(\w+://)?.*@", r"\1...@", text, flags=re.DOTALL)[:_MOST_SHOWN]
