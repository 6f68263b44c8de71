"""TLS on the link: each end shows a certificate of the same authority, and a client's certificate is its name.

An Identity is one party's folder in memory. ``channel_credentials`` and ``server_credentials`` turn it into what gRPC
takes, once it is clear that it can work; ``what_is_wrong`` says in words why a stream could not be opened.
"""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from cryptography import x509

from foundation.errors import ConfigError
from link.address import Address
from link.identity.certificates import (
    CertificateRole,
    certificates_in,
    common_name,
    fits,
    flaw_of,
    flaw_of_authority,
    hosts_of,
    is_for,
    is_watchers,
    key_in,
    read_file,
)
from link.proxy import Route
from link.seats import flaw_of_name

AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.crt", "tls.crt", "tls.key"
_FILES = AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
"""The files of a party's folder; a Kubernetes Secret of type kubernetes.io/tls names them so."""

_PROBE_S = 3.0
"""Seconds that the inspection of a server may take."""
_PLAIN = "it speaks no TLS; start it with --tls, or this client without it on a network that you trust"
_SPEAKS_TLS = "it speaks TLS; give this client its certificate with --tls DIR"
_DECLINED = "its certificate is good, so perhaps it does not take this client's: of another authority, or expired?"


@dataclass(frozen=True)
class Identity:
    """The certificates and key of one party, as PEM.

    Args:
        authority: the trusted certificates, usually one.
        certificate: the party's own, issued by one of these.
        key: its private key, not encrypted.
        origin: the folder that they were read from, for messages; empty if there is none.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    origin: str = ""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a party's folder.

        Raises:
            ConfigError: it is none, or a file of it cannot be read.
        """
        if not folder.is_dir():
            raise ConfigError(f"--tls {folder}: no such folder; `breakwater certs` makes it")
        missing = f"no such file; a folder for --tls holds {', '.join(_FILES)}"
        authority, certificate, key = (read_file(folder / name, missing) for name in _FILES)
        return cls(authority, certificate, key, str(folder))

    @cached_property
    def name(self) -> str:
        """The client's name that is certified.

        Raises:
            ConfigError: there is no certificate, or it names no client.
        """
        name = common_name(self._leaf)
        flaw = "it has no common name" if name is None else flaw_of_name(name)
        if name is None or flaw is not None:
            raise ConfigError(f"{self._path(CERTIFICATE_FILE)}: is no client's certificate: {flaw}")
        return name

    @property
    def watches(self) -> bool:
        """Whether the certificate is for watching runs, and not for taking part in them."""
        return is_watchers(self._leaf)

    @property
    def valid_until(self) -> datetime:
        """The end of the certificate."""
        return self._leaf.not_valid_after_utc

    def check(self, role: CertificateRole) -> None:
        """Check that this can be used in a role, now.

        Raises:
            ConfigError: it cannot; one line that names the file.
        """
        leaf, authorities = self._leaf, self._authorities
        where = self._path(CERTIFICATE_FILE)
        if not fits(key_in(self.key, self._path(KEY_FILE)), leaf):
            raise ConfigError(f"{self._path(KEY_FILE)}: is not the key of {where}; copy both from one folder")
        flaws = [flaw_of_authority(authority) for authority in authorities]
        if all(flaws):  # while one authority follows another the older one may have expired
            raise ConfigError(f"{self._path(AUTHORITY_FILE)}: {flaws[0]}")
        if (flaw := flaw_of(leaf, authorities, role)) is not None:
            raise ConfigError(f"{where}: {flaw}")
        if role is CertificateRole.CLIENT:
            _ = self.name

    def flaw_of_server(self, certificate: bytes, host: str) -> str | None:
        """Return why a server that shows this certificate (DER) is not accepted, or None if it is."""
        try:
            leaf = x509.load_der_x509_certificate(certificate)
            flaw, hosts = flaw_of(leaf, self._authorities, CertificateRole.SERVER), hosts_of(leaf)
        except Exception:  # bytes of an unknown peer, parsed lazily: anything may be raised
            return "the server's certificate cannot be read"
        if flaw is not None:
            return f"the server's certificate {flaw}"
        if not is_for(hosts, host):
            return f"the server's certificate is for {_shown(hosts)}, and not for {host!r}"
        return None

    @cached_property
    def _leaf(self) -> x509.Certificate:
        return certificates_in(self.certificate, self._path(CERTIFICATE_FILE))[0]

    @cached_property
    def _authorities(self) -> list[x509.Certificate]:
        return certificates_in(self.authority, self._path(AUTHORITY_FILE))

    def _path(self, name: str) -> str:
        return str(Path(self.origin) / name)


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Return the credentials of a server that takes only clients with a certificate of its authority.

    Raises:
        ConfigError: see ``Identity.check``.
    """
    identity.check(CertificateRole.SERVER)
    pair = identity.key, identity.certificate
    return grpc.ssl_server_credentials([pair], root_certificates=identity.authority, require_client_auth=True)


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Return the credentials of a client that takes only a server with a certificate of its authority, for its host.

    Raises:
        ConfigError: see ``Identity.check``.
    """
    identity.check(CertificateRole.CLIENT)
    return grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)


def peer_name(context: Any) -> str | None:
    """Return the name in the certificate that the peer of a gRPC stream has shown, or None without one."""
    names = context.auth_context().get("x509_common_name", ())
    return names[0].decode(errors="replace") if len(names) == 1 else None


def peer_certificate(context: Any) -> bytes:
    """Return the certificate (PEM) that the peer of a gRPC stream has shown, or nothing without one."""
    shown = context.auth_context().get("x509_pem_cert", ())
    return bytes(shown[0]) if len(shown) == 1 else b""


def may_watch(certificate: bytes) -> bool:
    """Return whether a certificate that a peer has shown (PEM) is for watching; one that cannot be read is not."""
    with suppress(ValueError):
        (leaf,) = x509.load_pem_x509_certificates(certificate)
        return is_watchers(leaf)
    return False


async def what_is_wrong(address: Address, identity: Identity | None, route: Route) -> str | None:
    """Inspect a server to which no stream could be opened: gRPC does not report what is wrong with its certificate.

    Only the beginning of a TLS handshake is sent, and nothing that is received is trusted.

    Args:
        address: of the server.
        identity: what this client shows and trusts; None if it speaks no TLS.
        route: how it is reached. A server behind a proxy is not inspected.

    Returns:
        What is likely wrong; None if it is not clear.
    """
    if route.proxy:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # to see also what we would not take
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except ssl.SSLError as error:
        # Something was said that is no TLS; to hang up or to send an alert is another matter.
        plain = not isinstance(error, ssl.SSLEOFError) and "ALERT" not in str(error.reason)
        return _PLAIN if plain and identity is not None else None
    except (OSError, TimeoutError, UnicodeError):  # the last for a host that no DNS name can be
        return None
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    if identity is None:
        return _SPEAKS_TLS
    return identity.flaw_of_server(certificate or b"", address.host) or _DECLINED


def _shown(hosts: list[str]) -> str:
    """Return the first few names; an unknown peer may have chosen them."""
    shown = ", ".join(repr(host[:80]) for host in hosts[:5])
    return f"{shown}, ..." if len(hosts) > 5 else shown or "no host"
