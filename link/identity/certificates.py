"""Reading certificates and keys, and saying in words what is wrong with one."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from foundation.errors import ConfigError


class Role(Enum):
    """What a certificate lets its holder be."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


WATCHER = "urn:breakwater:watcher:"
"""What the alternative name of a certificate begins with whose holder may watch runs, and take no seat."""


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
    """Say whether a certificate is for the holder of this key."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def flaw_of_authority(certificate: x509.Certificate) -> str | None:
    """Say in words, that follow the name of the certificate, why it cannot be an authority's; None if it can."""
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return _flaw_of_time(certificate)
    except (x509.ExtensionNotFound, ValueError):
        pass
    return "is no authority's certificate"


def flaw_of(certificate: x509.Certificate, authorities: Sequence[x509.Certificate], role: Role) -> str | None:
    """Say in words, that follow the name of the certificate, why its holder cannot have this role; None if it can.

    Args:
        certificate: the party's.
        authorities: those that are trusted; one of them must have issued it itself.
        role: what the party wants to be.
    """
    if not any(was_issued_by(certificate, authority) for authority in authorities):
        trusted = " or ".join(sorted({_shown(authority.subject) for authority in authorities}))
        return f"was issued by {_shown(certificate.issuer)}, but ca.crt is of {trusted}"
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = x509.ExtendedKeyUsage([role.value])
    if role.value not in usages:
        return f"is not a {role.name.lower()}'s certificate"
    return _flaw_of_time(certificate)


def was_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Say whether an authority itself has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def common_name(certificate: x509.Certificate) -> str | None:
    """Return the one common name of the holder, or None."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def is_watchers(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is for watching runs, and not for taking part in them."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return any(name.startswith(WATCHER) for name in names.get_values_for_type(x509.UniformResourceIdentifier))


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and IP addresses that a server's certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def is_for(hosts: Sequence[str], host: str) -> bool:
    """Say whether a server with these names in its certificate may be reached by ``host``; ``*.`` is one label."""
    host = host.lower()
    try:
        return str(ipaddress.ip_address(host)) in hosts
    except ValueError:
        allowed = {name.lower() for name in hosts}
        return host in allowed or f"*.{host.partition('.')[2]}" in allowed


def _flaw_of_time(certificate: x509.Certificate) -> str | None:
    """Say in words that a certificate is not valid now, or return None."""
    begins, ends, today = certificate.not_valid_before_utc, certificate.not_valid_after_utc, now()
    if today > ends:
        return f"expired on {ends:%Y-%m-%d %H:%M} UTC"
    if today < begins:
        return f"is not valid before {begins:%Y-%m-%d %H:%M} UTC, and here it is {today:%Y-%m-%d %H:%M} UTC"
    return None


def _shown(name: x509.Name) -> str:
    """Return a name on one line; it may be a stranger's, so it is cut and quoted."""
    return repr(name.rfc4514_string().removeprefix("CN=")[:80])
