"""Certificates for a federation: one authority, a certificate for its server and one for each client.

All in memory, so that a run can have an authority of its own; ``deploy/certs.py`` keeps one in files. Keys are of EC
P-256, which every TLS library takes.
"""

import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foundation.errors import ConfigError
from link.address import parse_host
from link.identity import certificates
from link.identity.certificates import WATCHER, CertificateRole, certificates_in, fits, flaw_of_authority, key_in
from link.identity.tls import AUTHORITY_FILE, Identity
from link.seats import flaw_of_name

AUTHORITY_KEY_FILE = "ca.key"
"""The authority's key, beside its ``ca.crt``; it stays where certificates are issued."""
AUTHORITY_DAYS = 3650
"""How long an authority is valid."""
LEAF_DAYS = 365
"""How long what it issues is valid, where nothing else is said."""

_SKEW = timedelta(hours=1)
"""Clocks of other machines may be behind by this much."""
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True)
class Authority:
    """Issues the certificates of a federation; its key can impersonate any participant.

    Args:
        certificate: as PEM; both ends trust it.
        key: as PEM, not encrypted.
        origin: the folder that they were read from, for messages; empty if there is none.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    origin: str = ""

    @classmethod
    def create(cls) -> Self:
        """Make a new authority, valid from now on for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"breakwater authority {secrets.token_hex(4)}")  # two of them never have the same name
        builder = _builder(name, key, name, certificates.now() + timedelta(days=AUTHORITY_DAYS), ca=True)
        return cls(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))

    def issue_server(self, hosts: Sequence[str], *, days: int = LEAF_DAYS) -> Identity:
        """Issue a certificate that its holder can be the server with.

        Args:
            hosts: the DNS names and IP addresses that clients reach the server by; at least one.
            days: how long it is valid, but never longer than the authority.

        Raises:
            ConfigError: a host is none, or the authority cannot issue.
        """
        if not hosts:
            raise ConfigError("a server's certificate without a host: clients would not know the server by it")
        names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
        return self._issue("server", names, CertificateRole.SERVER, days)

    def issue_client(self, name: str, *, days: int = LEAF_DAYS) -> Identity:
        """Issue a certificate that makes its holder the client ``name``.

        Args:
            name: see ``link.seats.flaw_of_name``.
            days: how long it is valid, but never longer than the authority.

        Raises:
            ConfigError: the name is none, or the authority cannot issue.
        """
        return self._issue_named(name, "urn:breakwater:client:", days)

    def issue_watcher(self, name: str, *, days: int = LEAF_DAYS) -> Identity:
        """Issue a certificate that its holder can watch runs with, and not take part in them.

        Args:
            name: see ``link.seats.flaw_of_name``.
            days: how long it is valid, but never longer than the authority.

        Raises:
            ConfigError: the name is none, or the authority cannot issue.
        """
        return self._issue_named(name, WATCHER, days)

    def _issue_named(self, name: str, kind: str, days: int) -> Identity:
        if (flaw := flaw_of_name(name)) is not None:
            raise ConfigError(flaw)
        # No DNS name: nothing that a client is called could ever be taken for the name of a server.
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(kind + name)])
        return self._issue(name, names, CertificateRole.CLIENT, days)

    def revocation_list(self, revoked: Mapping[int, datetime], number: int) -> bytes:
        """Return the signed list of the certificates that this authority has revoked (X.509 CRL, as PEM).

        Its next update is due when the authority expires: revocations stay, and an old list excludes nobody.

        Args:
            revoked: when, by serial number.
            number: of the list; a later one has a higher number.

        Raises:
            ConfigError: the authority cannot sign.
        """
        authority, signing_key = self._opened
        signer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(certificates.now() - _SKEW)
            .next_update(authority.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial, when in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _issue(self, name: str, names: x509.SubjectAlternativeName, role: CertificateRole, days: int) -> Identity:
        if not 1 <= days <= AUTHORITY_DAYS:
            raise ConfigError(f"a certificate for {days} days: must be 1 to {AUTHORITY_DAYS}")
        authority, signing_key = self._opened
        ends = min(certificates.now() + timedelta(days=days), authority.not_valid_after_utc)
        key = ec.generate_private_key(ec.SECP256R1())
        signer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(_name(name), key, authority.subject, ends, ca=False)
            .add_extension(x509.ExtendedKeyUsage([role.value]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
            .add_extension(names, critical=False)
        )
        return Identity(self.certificate, _pem(builder.sign(signing_key, hashes.SHA256())), _key_pem(key))

    @property
    def opened(self) -> x509.Certificate:
        """The certificate, once it is clear that it can issue.

        Raises:
            ConfigError: it cannot.
        """
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Certificate and key, once it is clear that they can issue."""
        certificate_path, key_path = (str(Path(self.origin) / name) for name in (AUTHORITY_FILE, AUTHORITY_KEY_FILE))
        certificate, *_ = certificates_in(self.certificate, certificate_path)
        key = key_in(self.key, key_path)
        if not fits(key, certificate) or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key_path}: is not the key of {certificate_path}, or none of an elliptic curve")
        if (flaw := flaw_of_authority(certificate)) is not None:
            raise ConfigError(f"{certificate_path}: {flaw}")
        return certificate, key


def _builder(
    name: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, ends: datetime, *, ca: bool
) -> x509.CertificateBuilder:
    """Return what all certificates have in common."""
    usages = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usages += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    granted = {"key_cert_sign", "crl_sign"} if ca else {"digital_signature"}
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificates.now() - _SKEW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.KeyUsage(**{usage: usage in granted for usage in usages}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it.

    Raises:
        ConfigError: it is neither an IP address nor a DNS name.
    """
    plain = parse_host(host, what="host")
    with suppress(ValueError):
        ip = ipaddress.ip_address(plain)
        if "%" in plain:
            raise ConfigError(f"host {plain!r}: leave out the zone; write {plain.partition('%')[0]}")
        return x509.IPAddress(ip)
    labels = plain.split(".")
    if len(plain) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ConfigError(f"host {plain[:80]!r}: must be a DNS name or an IP address")
    return x509.DNSName(plain)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(*form, serialization.NoEncryption())
