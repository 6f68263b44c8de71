"""Access control of a running federation: a list of revoked certificates (CRL) and an allow-list of clients.

The server has both in one folder, that of ``--tls`` or of ``--lists``, and reads changed files again while it runs, so
that clients can be revoked and admitted without a restart::

    ca.crl        the certificates that the authority has revoked, signed by it (X.509); `breakwater certs revoke`
    clients.txt   the clients that may take part, one name per line, # starts a comment; without it every certified one

An invalid file is fatal at start-up. Later, the last valid version stays in force, also if the file is removed: a
mistake of the operator must neither admit who was revoked nor disconnect everybody.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Generic, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from foundation.errors import ConfigError
from foundation.text import TextError, decoded
from link.identity.certificates import certificates_in, common_name, read_file
from link.identity.tls import AUTHORITY_FILE, Identity
from link.seats import flaw_of_name

REVOKED_FILE, LISTED_FILE = "ca.crl", "clients.txt"

_ONE_LIST = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
_GONE = "cannot be read: No such file or directory"
_T = TypeVar("_T", bound=Sized)

_log = logging.getLogger("breakwater.link")


@dataclass(frozen=True)
class Revoked:
    """The revoked certificates.

    Args:
        when: since when, by issuer and serial number.
        numbers: the number of each issuer's list; a later one has a higher number.
    """

    when: Mapping[tuple[x509.Name, int], datetime] = field(default_factory=dict)
    numbers: Mapping[x509.Name, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.when)


class AccessControl:
    """The lists in a server's folder. ``look`` reads what has changed, ``flaw_of`` judges by what was read last.

    Args:
        folder: where the lists are, or will be.
        authorities: the trusted ones; each may have a list of revoked certificates.

    Raises:
        ConfigError: a list cannot be used; one line that names the file.
    """

    def __init__(self, folder: Path, authorities: Sequence[x509.Certificate]) -> None:
        def revoked(path: Path, before: Revoked | None) -> Revoked:
            return read_revoked(path, authorities, Revoked() if before is None else before)

        self._revoked = _Watched(folder / REVOKED_FILE, revoked, "revoked certificates")
        self._listed = _Watched(folder / LISTED_FILE, read_listed, "clients that may take part")

    @classmethod
    def of(cls, server: Identity, folder: Path | None = None) -> Self:
        """Return the access control of a server.

        Args:
            server: its authorities are trusted.
            folder: where the lists are; None for the folder of the server's certificate.

        Raises:
            ConfigError: see the class.
        """
        origin = Path(server.origin)
        return cls(folder or origin, certificates_in(server.authority, str(origin / AUTHORITY_FILE)))

    @property
    def listed(self) -> frozenset[str]:
        """The clients of the allow-list; none without one."""
        return frozenset(self._listed.value or ())

    def look(self) -> None:
        """Read what has changed. Never raises: an invalid file is logged once and changes nothing.

        A file counts as changed when it looks the same twice in a row, so that no half-written file is read.
        """
        self._revoked.look()
        self._listed.look()

    def flaw_of(self, certificate: bytes, *, watches: bool = False) -> str | None:
        """Say why the holder of a client's certificate may not take part now, or None if it may.

        Args:
            certificate: as PEM, of an issuer that TLS has checked.
            watches: the holder only watches, for which it need not be listed.

        Returns:
            A line that begins with ``revoked: `` or ``not listed: ``.
        """
        if (shown := _read_certificate(certificate)) is None:
            return "revoked: this client's certificate cannot be read, so it cannot be checked"
        name, issuer, serial = shown
        when = self._revoked.value.when.get((issuer, serial)) if self._revoked.value else None
        if when is not None:
            return f"revoked: this certificate of {name!r} was revoked on {when:%Y-%m-%d %H:%M} UTC"
        listed = self._listed.value
        if listed is not None and name not in listed and not watches:
            return f"not listed: {name!r} is not in the server's {LISTED_FILE}"
        return None


class _Watched(Generic[_T]):
    """A file that may be there, and its last valid value; None if there never was one."""

    def __init__(self, path: Path, read: Callable[[Path, _T | None], _T], content: str) -> None:
        self.value: _T | None = None
        self._path = path
        self._read = read
        self._content = content
        self._judged = self._seen = _looks_of(path)  # before it is read, so that a change meanwhile is noticed later
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
            _log.error("%s; the last valid version stays in force", error)

    def _take(self) -> None:
        self.value = self._read(self._path, self.value)
        _log.info("%s: in force, %s: %d", self._path, self._content, len(self.value))


_ABSENT = "no such file"


def _looks_of(path: Path) -> object:
    """Return what changes when a file changes, or why it cannot be inspected."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        return str(error.strerror)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_revoked(path: Path, authorities: Sequence[x509.Certificate], before: Revoked) -> Revoked:
    """Read the lists of revoked certificates of a file, each signed by one of the authorities.

    ``nextUpdate`` is ignored: an old list excludes nobody.

    Args:
        path: a file of one or more PEM texts.
        authorities: the trusted ones.
        before: what is in force; an older list is refused.

    Raises:
        ConfigError: the file cannot be read or is malformed; a list is of no trusted authority, has an unknown
            critical extension, or is older.
    """
    raw = read_file(path, _GONE)
    texts = _ONE_LIST.findall(raw)
    if not texts or len(texts) != raw.count(b"-----BEGIN"):
        raise ConfigError(f"{path}: must hold whole lists of revoked certificates (PEM, -----BEGIN X509 CRL-----)")
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
            raise ConfigError(f"{path}: a list of revoked certificates cannot be read") from None
        if not signed:
            raise ConfigError(f"{path}: is not signed by an authority of {AUTHORITY_FILE}")
        if unknown:
            raise ConfigError(f"{path}: has the critical extension {unknown[0]}, which is not supported")
        when |= entries
        numbers[issuer] = max(number, numbers.get(issuer, 0))
    for issuer, number in before.numbers.items():
        if numbers.get(issuer, -1) < number:
            raise ConfigError(f"{path}: is older than the list in force, number {number}; revocations cannot be undone")
    return Revoked(when, numbers)


def read_listed(path: Path, before: frozenset[str] | None = None) -> frozenset[str]:
    """Read a list of clients.

    Args:
        path: a text file: one name per line, ``#`` starts a comment.
        before: ignored.

    Raises:
        ConfigError: the file cannot be read, lists nobody, or has a line that is no name.
    """
    try:
        text = decoded(read_file(path, _GONE))
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from None
    names = set()
    for number, line in enumerate(text.split("\n"), 1):
        name = line.partition("#")[0].strip()
        if (flaw := flaw_of_name(name) if name else None) is not None:
            raise ConfigError(f"{path}: line {number}: {flaw}")
        if name:
            names.add(name)
    if not names:
        raise ConfigError(f"{path}: lists nobody; write one name per line, or start the server without this file")
    return frozenset(names)


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
