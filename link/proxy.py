"""HTTP proxies that the environment names, as gRPC takes them.

gRPC uses the first of ``grpc_proxy``, ``https_proxy`` and ``http_proxy`` that is set, in lower case alone, for every
connection that ``no_grpc_proxy`` or ``no_proxy`` does not exclude; a connection to this machine is no exception to it.
No proxy leads back to this machine, so ours never use one for it. For other hosts gRPC's rules hold, and the message of
a connection that fails names the variable and the proxy.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from link.address import Address

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Which name a proxy; the first that is set counts, and means no proxy where it is empty."""
EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
"""Which exclude hosts; the first that is set counts."""

_DIRECT = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))


@dataclass(frozen=True)
class Route:
    """How a connection reaches a server.

    Args:
        proxy: HOST:PORT of the proxy, as its variable has it, without user and password; "" for none.
        variable: the variable that names it, or that names one that gRPC does not use.
        ignored: why that is not used; "" where it is.
    """

    proxy: str = ""
    variable: str = ""
    ignored: str = ""

    @property
    def options(self) -> Sequence[tuple[str, object]]:
        """Channel options that make gRPC take this route."""
        return () if self.proxy else _DIRECT

    def explain(self, failure: str) -> str:
        """Return why a connection failed, with the route if the environment decides it."""
        if self.proxy:
            source = f"the proxy {self.proxy} that {self.variable} names"
            return f"{failure} (through {source}; list the server in no_proxy to connect directly)"
        return f"{failure} (directly: {self.ignored})" if self.ignored else failure


def route_to(address: Address, environment: Mapping[str, str] = os.environ) -> Route:
    """Return how gRPC would connect to an address, but that this machine is reached directly.

    A name is looked up if a proxy is set that may be used for it, which can take seconds.
    """
    variable = next((name for name in VARIABLES if name in environment), "")
    if not variable:
        loud = next((name.upper() for name in VARIABLES if environment.get(name.upper())), "")
        if not loud or _excluded(address, environment.get("NO_PROXY", "")) or is_here(address):
            return Route()
        return Route(variable=loud, ignored=f"gRPC does not read {loud}, only {loud.lower()}")
    value = environment[variable]
    exceptions = next((environment[name] for name in EXCEPTIONS if name in environment), "")
    if not value or _excluded(address, exceptions) or is_here(address):
        return Route()
    host = _host_of(value)
    if host:
        return Route(proxy=host, variable=variable)
    return Route(variable=variable, ignored=f"{variable} is not http://HOST:PORT, the only proxies that gRPC uses")


def is_here(address: Address) -> bool:
    """Return whether an address is this machine's own loopback, also by name."""
    if address.ip is not None:
        return _loops(address.ip)
    host = address.host.lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # only the proxy may know it
        return False
    return all(_loops(ipaddress.ip_address(target[0])) for *_, target in found)


def _loops(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    plain = getattr(ip, "ipv4_mapped", None) or ip
    return bool(plain.is_loopback or plain.is_unspecified)


def _excluded(address: Address, exceptions: str) -> bool:
    """Return whether gRPC finds an address in a list: by the end of its name, or in a network."""
    for entry in filter(None, exceptions.split(",")):
        wanted = entry.strip().lower()
        if address.host.lower().endswith(wanted):
            return True
        with suppress(ValueError):  # it may be no network
            if address.ip is not None and "/" in wanted and address.ip in ipaddress.ip_network(wanted, strict=False):
                return True
    return False


def _host_of(value: str) -> str:
    """Return the host and port of a proxy's URL, or nothing where gRPC takes it for none."""
    try:
        url = urlsplit(value)
        if url.scheme != "http" or not url.hostname:
            return ""
        return value.rpartition("@")[2].rpartition("://")[2].partition("/")[0]  # whatever a password may hold
    except ValueError:
        return ""
