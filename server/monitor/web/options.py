"""Where the page is served: address and certificate, checked before a run begins. It imports no web server."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cryptography import x509

from foundation.errors import ConfigError
from link.address import Address
from link.identity.certificates import (
    CertificateRole,
    certificates_in,
    extension,
    fits,
    flaw_of_time,
    hosts_of,
    key_in,
    read_file,
)
from link.identity.tls import CERTIFICATE_FILE, KEY_FILE

_BACKLOG = 64


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """Where the page is served.

    Args:
        address: to listen on; port 0 for any that is free.
        tls: folder of a server's certificate and key; None for plain HTTP, which is for loopback alone.
        option: what the user wrote the address after, for messages.
    """

    address: Address
    tls: Path | None = None
    option: str = "--web"

    def or_tls(self, folder: Path | None) -> Self:
        """Return the same, with this certificate where one is needed and none was given."""
        return self if self.tls or is_loopback(self.address.host) else replace(self, tls=folder)

    def check(self) -> None:
        """Make sure that the page can be served.

        Raises:
            ConfigError: the address cannot be bound or needs TLS, or the certificate cannot be used; one line.
        """
        self.bound().close()
        if self.tls is not None:
            certificate_in(self.tls)

    def bound(self) -> socket.socket:
        """Return a socket that listens.

        Raises:
            ConfigError: it cannot, or may not without TLS; one line.
        """
        where = f"{self.option}: {self.address}"
        try:
            made = listening(self.address)
        except OSError as error:
            raise ConfigError(f"{where} cannot be bound: {error.strerror or error}; choose another port") from None
        if self.tls is None and not is_loopback(made.getsockname()[0]):
            made.close()
            fix = "give --web-tls DIR with a server's certificate, or serve it on 127.0.0.1"
            raise ConfigError(f"{where} can be reached from other machines, which needs TLS: {fix}")
        return made


def is_loopback(host: str) -> bool:
    """Return whether a name or address, without a port, is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificate_in(folder: Path) -> tuple[ssl.SSLContext, list[str]]:
    """Return what serves TLS with the certificate in a folder, and the hosts that it is for.

    Raises:
        ConfigError: it cannot be used; one line that names the file.
    """
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    missing = f"no such file; the page needs {CERTIFICATE_FILE} and {KEY_FILE}"
    leaf = certificates_in(read_file(certificate, missing), str(certificate))[0]
    if not fits(key_in(read_file(key, missing), str(key)), leaf):
        raise ConfigError(f"{key}: is not the key of {certificate}; copy both from one folder")
    if (flaw := flaw_of_time(leaf)) is not None:
        raise ConfigError(f"{certificate}: {flaw}")
    usages = extension(leaf, x509.ExtendedKeyUsage)
    if usages is not None and CertificateRole.SERVER.value not in usages:
        raise ConfigError(
            f"{certificate}: is not a server's certificate; `breakwater certs init DIR --host NAME` makes one"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context, hosts_of(leaf)


def listening(address: Address) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        OSError: it cannot be bound.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError:  # a name that no DNS name can be
        raise OSError(None, "no such host name") from None
    family, kind, protocol, _, target = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(target)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
