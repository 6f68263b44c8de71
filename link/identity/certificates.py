"""Reads certificates and keys, and explains what is wrong with one."""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.errors import ConfigError

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class CertificateRole(Enum):
    """The role that a certificate gives its holder."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


WATCHER = "urn:breakwater:watcher:"
"""Prefix of the alternative name in the certificate of a watcher, who takes no seat."""


def now() -> datetime:
    """Return the time by which certificates are judged."""
    return datetime.now(UTC)


def certificates_in(pem: bytes, where: str) -> list[x509.Certificate]:
    """Read all certificates of a PEM text, at least one.

    Raises:
        ConfigError: there is none; ``where`` says which file is at fault.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{where}: holds no certificate (PEM, -----BEGIN CERTIFICATE-----)") from None


def key_in(pem: bytes, where: str) -> PrivateKeyTypes:
    """Read the private key of a PEM text.

    Raises:
        ConfigError: there is none, or it is encrypted.
    """
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigError(f"{where}: the key is encrypted; give it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{where}: holds no private key (PEM, -----BEGIN PRIVATE KEY-----)") from None


def fits(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """Return whether a certificate belongs to this key."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Return an extension of a certificate, or None if it has none of that type.

    Raises:
        ValueError: the extensions cannot be read.
    """
    with suppress(x509.ExtensionNotFound):
        return certificate.extensions.get_extension_for_class(kind).value
    return None


def read_file(path: Path, missing: str = "no such file") -> bytes:
    """Return the content of a file.

    Args:
        path: of the file.
        missing: what to report if it does not exist.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: {missing}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def flaw_of_authority(certificate: x509.Certificate) -> str | None:
    """Return why a certificate cannot be an authority's, to follow its file name; None if it can."""
    with suppress(ValueError):
        constraints = extension(certificate, x509.BasicConstraints)
        if constraints is not None and constraints.ca:
            return flaw_of_time(certificate)
    return "is not an authority's certificate"


def flaw_of(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], role: CertificateRole
) -> str | None:
    """Return why the holder of a certificate cannot have this role, to follow its file name; None if it can.

    Args:
        certificate: the party's.
        authorities: the trusted ones; one of them must have issued it directly.
        role: the role that the party wants.
    """
    if not any(was_issued_by(certificate, authority) for authority in authorities):
        trusted = " or ".join(sorted({_shown(authority.subject) for authority in authorities}))
        return f"was issued by {_shown(certificate.issuer)}, but ca.crt is of {trusted}"
    usages = extension(certificate, x509.ExtendedKeyUsage)
    if usages is not None and role.value not in usages:
        return f"is not a {role.name.lower()}'s certificate"
    return flaw_of_time(certificate)


def was_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether an authority itself has signed a certificate."""
    with suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        certificate.verify_directly_issued_by(authority)
        return True
    return False


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the one common name of the holder, or None."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def is_watchers(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is for watching runs, and not for taking part in them."""
    with suppress(ValueError):
        names = extension(certificate, x509.SubjectAlternativeName)
        uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
        return any(uri.startswith(WATCHER) for uri in uris)
    return False


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and IP addresses that a server's certificate is for."""
    names = extension(certificate, x509.SubjectAlternativeName) or ()
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def is_for(hosts: Sequence[str], host: str) -> bool:
    """Return whether these names in a server's certificate cover ``host``; ``*.`` stands for one label."""
    host = host.lower()
    try:
        return str(ipaddress.ip_address(host)) in hosts
    except ValueError:
        allowed = {name.lower() for name in hosts}
        return host in allowed or f"*.{host.partition('.')[2]}" in allowed


def flaw_of_time(certificate: x509.Certificate) -> str | None:
    """Return why a certificate is not valid now, or None."""
    begins, ends, today = certificate.not_valid_before_utc, certificate.not_valid_after_utc, now()
    if today > ends:
        return f"expired on {ends:%Y-%m-%d %H:%M} UTC"
    if today < begins:
        return f"is not valid before {begins:%Y-%m-%d %H:%M} UTC, and here it is {today:%Y-%m-%d %H:%M} UTC"
    return None


def _shown(name: x509.Name) -> str:
    """Return a name on one line; an unknown peer may have chosen it, so it is cut and quoted."""
    return repr(name.rfc4514_string().removeprefix("CN=")[:80])
