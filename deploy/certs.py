"""``breakwater certs``: an authority in a folder, and the certificates that it issues, one folder for each machine.

::

    DIR/ca.crt  DIR/ca.key                   the authority; its key stays here
    DIR/issued.txt  DIR/ca.crl               what it has issued; what it has revoked, for the server
    DIR/server/{ca.crt,tls.crt,tls.key}      all that goes to the server's machine, with ca.crl once there is one
    DIR/NAME/{ca.crt,tls.crt,tls.key}        all that goes to the machine of the client, or of the watcher, NAME
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.register import REGISTER_FILE, Entry, Register
from foundation.errors import ConfigError
from foundation.files import replacing
from link.identity import certificates
from link.identity.access import REVOKED_FILE, Revoked, read_revoked
from link.identity.authority import AUTHORITY_KEY_FILE, LEAF_DAYS, Authority
from link.identity.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Identity
from link.seats import flaw_of_name

SERVER = "server"
"""The folder of the server's certificate; no client can have this name."""


def init(folder: Path, hosts: Sequence[str], *, days: int = LEAF_DAYS, renew: bool = False) -> list[str]:
    """Make an authority and the server's certificate.

    Args:
        folder: of the authority; created if missing.
        hosts: what clients reach the server by, see ``Authority.issue_server``.
        days: how long the server's certificate is valid.
        renew: keep the authority that is there, and replace the server's certificate.

    Returns:
        A line for the user about each thing that was made.

    Raises:
        ConfigError: an authority exists already, or with ``renew`` does not; a host is invalid; a file cannot be
            written.
    """
    with _locked(folder):
        lines, names = [], (AUTHORITY_FILE, AUTHORITY_KEY_FILE, SERVER, REGISTER_FILE, REVOKED_FILE)
        there = next(filter(Path.exists, (folder / name for name in names)), None)
        if there is not None and not renew:
            raise ConfigError(f"{there}: exists; --renew keeps the authority and replaces the server's certificate")
        authority = _authority(folder) if renew else Authority.create()
        server = authority.issue_server(hosts, days=days)
        if not renew:
            _write(folder, {AUTHORITY_KEY_FILE: authority.key, AUTHORITY_FILE: authority.certificate})
            key = folder / AUTHORITY_KEY_FILE
            lines = [f"{folder}: a new authority; {key} can impersonate any participant: keep it here"]
        _write(folder, {REGISTER_FILE: bytes(Register.load(folder, authority.opened).plus(Entry.about(server)))})
        _write_identity(folder / SERVER, server)
        if (folder / REVOKED_FILE).exists():
            _write(folder / SERVER, {REVOKED_FILE: _read(folder, REVOKED_FILE)})
        return [*lines, f"{folder / SERVER}: the server's certificate for {', '.join(hosts)}, {_until(server)}"]


def issue(
    folder: Path, names: Sequence[str], *, days: int = LEAF_DAYS, renew: bool = False, watcher: bool = False
) -> list[str]:
    """Issue certificates to clients or watchers, to all of them or none.

    Args:
        folder: of the authority.
        names: of their holders; a client and a watcher cannot have the same.
        days: how long the certificates are valid.
        renew: replace those that are there; the replaced ones stay valid until they expire, unless they are revoked.
        watcher: the certificates allow watching runs, see ``link.watchers``, but not taking part.

    Returns:
        A line for the user about each thing that was made.

    Raises:
        ConfigError: a name is invalid, has a certificate already, or with ``renew`` none of this kind; there is no
            authority.
    """
    with _locked(folder):
        authority = _authority(folder)
        for name in names:
            _check_name(name)
            exists = (folder / name).exists()
            if exists and not renew:
                raise ConfigError(f"{folder / name}: exists; --renew replaces the certificate of {name!r}")
            if renew and not exists:
                raise ConfigError(f"{folder / name}: there is nothing to renew; leave --renew out to issue a first one")
            if renew and Identity.load(folder / name).watches != watcher:
                fix = "leave --watcher out" if watcher else "add --watcher"
                raise ConfigError(f"{folder / name}: is the certificate of a {_kind(not watcher)}; {fix} to renew it")
        made = authority.issue_watcher if watcher else authority.issue_client
        issued = {name: made(name, days=days) for name in names}
        lines = [Entry.about(identity) for identity in issued.values()]
        _write(folder, {REGISTER_FILE: bytes(Register.load(folder, authority.opened).plus(*lines))})
        for name, identity in issued.items():
            _write_identity(folder / name, identity)
        kind = _kind(watcher)
        return [f"{folder / name}: the certificate of {kind} {name!r}, {_until(one)}" for name, one in issued.items()]


def revoke(folder: Path, names: Sequence[str]) -> list[str]:
    """Revoke all certificates of these clients; all of them or none.

    Args:
        folder: of the authority.
        names: of the clients. Revoking one again changes nothing, unless it has a new certificate.

    Returns:
        A line for the user about each name, and about the file that the server needs.

    Raises:
        ConfigError: a name is invalid or has no certificate; there is no authority; the CRL or the register of this
            folder cannot be read; a file cannot be written.
    """
    with _locked(folder):
        authority = _authority(folder)
        register = Register.load(folder, authority.opened)
        path = folder / REVOKED_FILE
        before = read_revoked(path, [authority.opened], Revoked()) if path.exists() else Revoked()
        revoked = {serial: when for (_, serial), when in before.when.items()} | register.revoked()
        when = certificates.now().replace(microsecond=0)
        lines, entries = [], []
        for name in dict.fromkeys(names):
            if name == SERVER:
                why = "clients read no list; make a new authority"
                raise ConfigError(f"the server's certificate cannot be revoked: {why}")
            _check_name(name)
            issued = register.of(name)
            if not issued:
                raise ConfigError(f"{name!r}: {folder / REGISTER_FILE} knows of no certificate of this name")
            new = [Entry("revoked", serial, name, when) for serial in issued if serial not in revoked]
            entries += new
            lines += [f"{name!r}: {_counted(len(new))} revoked" if new else f"{name!r}: was revoked already"]
            if any(entry.what == "found" for entry in issued.values()):
                fix = "they are still valid: if there were any, make a new authority"
                lines += [f"{name!r}: certificates replaced before {folder / REGISTER_FILE} existed are unknown; {fix}"]
        revoked |= {entry.serial: entry.time for entry in entries}
        number = max(int(when.timestamp()), *(before_number + 1 for before_number in before.numbers.values()), 1)
        signed = authority.revocation_list(revoked, number)
        _write(folder, {REGISTER_FILE: bytes(register.plus(*entries)), REVOKED_FILE: signed})
        lines += [f"{path}: the list of all that are revoked, {_counted(len(revoked))}"]
        if (folder / SERVER).is_dir():
            _write(folder / SERVER, {REVOKED_FILE: signed})
            copy = folder / SERVER / REVOKED_FILE
            lines += [f"{copy}: the same; a server that uses this folder reads it within seconds"]
        lines += [f"if the server's folder is elsewhere, copy {path} into it, beside tls.crt; no restart is needed"]
        return [*lines, "`certs issue --renew` makes a new certificate, which is valid"]


def _kind(watcher: bool) -> str:
    return "watcher" if watcher else "client"


def _counted(certificates: int) -> str:
    return f"{certificates} certificate{'' if certificates == 1 else 's'}"


def _check_name(name: str) -> None:
    flaw = flaw_of_name(name)
    if flaw is not None or name in (SERVER, REGISTER_FILE, REVOKED_FILE, ".", ".."):
        raise ConfigError(flaw or f"name {name!r}: cannot be the folder of a client; choose another")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder: two commands that change it together could lose lines of the register."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield  # it does not exist yet, or cannot be used, which the command will report
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _authority(folder: Path) -> Authority:
    certificate, key = (_read(folder, name) for name in (AUTHORITY_FILE, AUTHORITY_KEY_FILE))
    return Authority(certificate, key, str(folder))


def _read(folder: Path, name: str) -> bytes:
    missing = f"no such file; create it with `breakwater certs init {folder} --host NAME`"
    return certificates.read_file(folder / name, missing)


def _write_identity(folder: Path, identity: Identity) -> None:
    files = {KEY_FILE: identity.key, CERTIFICATE_FILE: identity.certificate, AUTHORITY_FILE: identity.authority}
    _write(folder, files)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write each file in one step; only the owner can read the keys."""
    keys = {KEY_FILE, AUTHORITY_KEY_FILE}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as draft:
                draft.unlink(missing_ok=True)
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                draft.chmod(0o600 if name in keys else 0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None


def _until(identity: Identity) -> str:
    return f"valid until {identity.valid_until:%Y-%m-%d}"
