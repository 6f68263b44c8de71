"""Who may be in the federation now: which certificates are revoked, and which clients are listed.

The server has both in one folder, that of ``--tls`` or of ``--lists``, and reads them again while it runs, so that a
client can be taken out, and a new one let in, without a restart::

    ca.crl        the certificates that the authority has taken back, signed by it (X.509); `breakwater certs revoke`
    clients.txt   the names that may take part, one a line, # begins a comment; without this file every certified one

A file that is wrong ends a server that starts. One that goes wrong while it runs, or goes away, leaves in force what
was: a slip of the operator's must neither let in whom it has put out nor put out everybody.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Generic, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from foundation.errors import ConfigError
from foundation.text import TextError, decoded
from link.identity.certificates import certificates_in, common_name
from link.identity.tls import AUTHORITY_FILE, Identity
from link.seats import flaw_of_name

REVOKED_FILE, LISTED_FILE = "ca.crl", "clients.txt"

_ONE_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_T = TypeVar("_T")

_log = logging.getLogger("breakwater.link")


@dataclass(frozen=True)
class Revoked:
    """Which certificates are revoked.

    Args:
        when: since when, by issuer and serial number.
        numbers: the number of each issuer's list; a later one has a higher number.
    """

    when: Mapping[tuple[x509.Name, int], datetime] = field(default_factory=dict)
    numbers: Mapping[x509.Name, int] = field(default_factory=dict)


class Guests:
    """The lists in a server's folder. ``look`` reads again what has changed, ``flaw_of`` judges by what was read last.

    Args:
        folder: where the lists are, or will be.
        authorities: those that are trusted; each may have a list of revoked certificates.

    Raises:
        ConfigError: a list is there and cannot be used; one line that names the file.
    """

    def __init__(self, folder: Path, authorities: Sequence[x509.Certificate]) -> None:
        def revoked(path: Path, before: Revoked | None) -> Revoked:
            return read_revoked(path, authorities, before or Revoked())

        self._revoked: _Watched[Revoked] = _Watched(folder / REVOKED_FILE, revoked, _told_revoked)
        self._listed: _Watched[frozenset[str]] = _Watched(folder / LISTED_FILE, read_listed, _told_listed)

    @classmethod
    def of(cls, server: Identity, folder: Path | None = None) -> Self:
        """Return the lists of a server.

        Args:
            server: whose authorities are trusted.
            folder: where the lists are; None for that of the server's certificate.

        Raises:
            ConfigError: see the class.
        """
        origin = Path(server.origin)
        return cls(folder or origin, certificates_in(server.authority, str(origin / AUTHORITY_FILE)))

    def look(self) -> None:
        """Read again what has changed. Never raises: what cannot be used is logged once and changes nothing.

        A file counts as changed when it looks the same twice in a row, so that one that is being written is let alone.
        """
        self._revoked.look()
        self._listed.look()

    def flaw_of(self, certificate: bytes, *, watches: bool = False) -> str | None:
        """Say in words why the holder of a client's certificate may not take part now, or None if it may.

        Args:
            certificate: as PEM, of an issuer that TLS has checked.
            watches: its holder takes no part and only watches, for which it need not be listed.

        Returns:
            A line that begins with ``revoked: `` or ``not listed: ``.
        """
        shown = _read_certificate(certificate)
        if shown is None:
            return "revoked: this client's certificate cannot be read, so nobody can say that it is not"
        name, issuer, serial = shown
        when = self._revoked.value.when.get((issuer, serial)) if self._revoked.value else None
        if when is not None:
            return f"revoked: this certificate of {name!r} was taken back on {when:%Y-%m-%d %H:%M} UTC"
        listed = self._listed.value
        if listed is not None and name not in listed and not watches:
            return f"not listed: {name!r} is not in the server's {LISTED_FILE}"
        return None


class _Watched(Generic[_T]):
    """A file that may be there, and what it said when it last made sense; None if it never was."""

    def __init__(
        self, path: Path, read: Callable[[Path, _T | None], _T], told: Callable[[_T], str], value: _T | None = None
    ) -> None:
        self.value = value
        self._path = path
        self._read = read
        self._told = told
        self._judged = self._seen = _looks_of(path)  # before it is read: what changes meanwhile is seen later
        if self._judged != _ABSENT:
            self._take()

    def look(self) -> None:
        looks, before = _looks_of(self._path), self._seen
        self._seen = looks
        if looks == self._judged or looks != before:
            return
        self._judged = looks
        try:
            self._take()
        except ConfigError as error:
            _log.error("%s; what was in force stays so", error)

    def _take(self) -> None:
        self.value = self._read(self._path, self.value)
        _log.info("%s: %s", self._path, self._told(self.value))


_ABSENT = "no such file"


def _looks_of(path: Path) -> object:
    """Return what changes when a file does, or in words why it cannot be looked at."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        return str(error.strerror)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_revoked(path: Path, authorities: Sequence[x509.Certificate], before: Revoked) -> Revoked:
    """Read the lists of revoked certificates of a file, each signed by one of the authorities.

    When a list was due to be replaced (``nextUpdate``) is not looked at: one that is old locks nobody out.

    Args:
        path: of one PEM text, or several behind one another.
        authorities: those that are trusted.
        before: what is in force; a list that is older than it is refused.

    Raises:
        ConfigError: the file cannot be read or is not all well-formed; a list is of nobody who is trusted, needs what
            is not understood here, or is older.
    """
    raw = _bytes_of(path)
    texts = _ONE_LIST.findall(raw)
    if not texts or len(texts) != raw.count(b"-----BEGIN"):
        raise ConfigError(
            f"{path}: holds no list of revoked certificates (PEM, -----BEGIN X509 CRL-----), or a part of one"
        )
    when: dict[tuple[x509.Name, int], datetime] = {}
    numbers: dict[x509.Name, int] = {}
    for text in texts:
        try:
            revocations = x509.load_pem_x509_crl(text)
            issuer = revocations.issuer
            signed = any(_is_signed(revocations, authority) for authority in authorities)
            unknown = [extension.oid.dotted_string for extension in revocations.extensions if extension.critical]
            number = _number_of(revocations)
            entries = {(issuer, entry.serial_number): entry.revocation_date_utc for entry in revocations}
        except ValueError:
            raise ConfigError(f"{path}: a list of revoked certificates that cannot be read") from None
        if not signed:
            raise ConfigError(f"{path}: is not signed by an authority of {AUTHORITY_FILE}")
        if unknown:
            raise ConfigError(f"{path}: has a critical extension {unknown[0]}, which is not understood here")
        when |= entries
        numbers[issuer] = max(number, numbers.get(issuer, 0))
    for issuer, number in before.numbers.items():
        if numbers.get(issuer, -1) < number:
            raise ConfigError(f"{path}: is older than the list in force, number {number}: revocations are not undone")
    return Revoked(when, numbers)


def read_listed(path: Path, before: frozenset[str] | None = None) -> frozenset[str]:
    """Read a list of clients.

    Args:
        path: of a text: one name a line, ``#`` begins a comment.
        before: is not looked at.

    Raises:
        ConfigError: the file cannot be read, names nobody, or a line is no name.
    """
    try:
        text = decoded(_bytes_of(path))
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None
    names = set()
    for number, line in enumerate(text.split("\n"), 1):
        name = line.partition("#")[0].strip()
        flaw = flaw_of_name(name) if name else None
        if flaw is not None:
            raise ConfigError(f"{path}: line {number}: {flaw}")
        if name:
            names.add(name)
    if not names:
        raise ConfigError(
            f"{path}: names nobody; write one client's name a line, or start the server without this file"
        )
    return frozenset(names)


def _told_revoked(revoked: Revoked) -> str:
    return f"in force, certificates that are revoked: {len(revoked.when)}"


def _told_listed(listed: frozenset[str]) -> str:
    return f"in force, clients that may take part: {len(listed)}"


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _is_signed(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    if revocations.issuer != authority.subject:
        return False
    try:
        # A key of a kind that cannot sign raises TypeError.
        return revocations.is_signature_valid(authority.public_key())  # type: ignore[arg-type]  # see the line above
    except (TypeError, UnsupportedAlgorithm):
        return False


def _number_of(revocations: x509.CertificateRevocationList) -> int:
    try:
        return revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


@lru_cache(maxsize=4096)
def _read_certificate(certificate: bytes) -> tuple[str, x509.Name, int] | None:
    """Return name, issuer and serial number of a client's certificate, or None if it cannot be read."""
    try:
        (leaf,) = x509.load_pem_x509_certificates(certificate)
        name = common_name(leaf)
        return None if name is None else (name, leaf.issuer, leaf.serial_number)
    except ValueError:
        return None
