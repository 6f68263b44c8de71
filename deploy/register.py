"""The register of an authority: what it has issued and revoked, so that a name can be revoked without its files.

::

    DIR/issued.txt    issued  SERIAL  NAME  the end of its validity
                      found   SERIAL  NAME  the end of its validity    lay there when the register was begun
                      revoked SERIAL  NAME  since when

It holds no secret. Every certificate is recorded before it is written, so the register is complete, except for
certificates that were replaced before it existed.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from cryptography import x509

from foundation.errors import ConfigError
from foundation.text import TextError, read_text
from link.identity.certificates import certificates_in, common_name, was_issued_by
from link.identity.tls import CERTIFICATE_FILE, Identity

REGISTER_FILE = "issued.txt"

What = Literal["issued", "found", "revoked"]
_WHATS: dict[str, What] = {"issued": "issued", "found": "found", "revoked": "revoked"}

_HEAD = "# What this authority has issued and revoked; `breakwater certs revoke` needs it. Nothing here is secret.\n"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Entry:
    """One line of the register.

    Args:
        what: happened.
        serial: number of the certificate.
        name: whose it is.
        time: when it ends, or when it was revoked.
    """

    what: What
    serial: int
    name: str
    time: datetime

    def __str__(self) -> str:
        return f"{self.what:<7} {self.serial:040x} {self.name} {self.time:{_TIME}}"

    @classmethod
    def about(cls, identity: Identity) -> Self:
        """Return the line about what is issued now."""
        leaf = certificates_in(identity.certificate, identity.origin)[0]
        return cls("issued", leaf.serial_number, str(common_name(leaf)), leaf.not_valid_after_utc)


@dataclass(frozen=True)
class Register:
    """All lines, in the order in which they were written."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def load(cls, folder: Path, authority: x509.Certificate) -> Self:
        """Read the register of a folder; without one, begin it with the certificates in the folder.

        Args:
            folder: of the authority.
            authority: its certificate.

        Raises:
            ConfigError: it cannot be read; one line that names file and line.
        """
        path = folder / REGISTER_FILE
        try:
            text = read_text(path)
        except FileNotFoundError:
            return cls(tuple(_found(folder, authority)))
        except TextError as error:
            raise ConfigError(f"{path}: {error}") from None
        lines = enumerate(text.split("\n"), 1)
        return cls(tuple(_entry(path, number, line) for number, line in lines if line and not line.startswith("#")))

    def plus(self, *entries: Entry) -> "Register":
        """Return the register with further lines."""
        return Register((*self.entries, *entries))

    def __bytes__(self) -> bytes:
        """Return the file."""
        return (_HEAD + "".join(f"{entry}\n" for entry in self.entries)).encode()

    def of(self, name: str) -> dict[int, Entry]:
        """Return what was issued to a name, by serial number."""
        return {entry.serial: entry for entry in self.entries if entry.name == name and entry.what != "revoked"}

    def revoked(self) -> dict[int, datetime]:
        """Return since when certificates are revoked, by serial number."""
        return {entry.serial: entry.time for entry in reversed(self.entries) if entry.what == "revoked"}


def _found(folder: Path, authority: x509.Certificate) -> Iterable[Entry]:
    """Yield the certificates in the folders of an authority that it has issued."""
    for path in sorted(folder.glob(f"*/{CERTIFICATE_FILE}")):
        with suppress(ConfigError, OSError):  # skip files that are no certificates or cannot be read
            leaf = certificates_in(path.read_bytes(), str(path))[0]
            name = common_name(leaf)
            if name is not None and was_issued_by(leaf, authority):
                yield Entry("found", leaf.serial_number, name, leaf.not_valid_after_utc)


def _entry(path: Path, number: int, line: str) -> Entry:
    try:
        what, serial, name, time = line.split()
        if what not in _WHATS or not name:
            raise ValueError
        return Entry(_WHATS[what], int(serial, 16), name, datetime.strptime(time, _TIME).replace(tzinfo=UTC))
    except ValueError:
        form = "issued, found or revoked, serial, name and time"
        raise ConfigError(f"{path}: line {number}: {line[:80]!r}: must be {form}; restore it from a copy") from None
