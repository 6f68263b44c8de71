"""``breakwater certs``: an authority in a folder, and the certificates that it issues, one folder for each machine.

::

    DIR/ca.crt  DIR/ca.key                   the authority; its key stays here
    DIR/server/{ca.crt,tls.crt,tls.key}      all that goes to the server's machine
    DIR/NAME/{ca.crt,tls.crt,tls.key}        all that goes to the machine of the client NAME
"""

import os
from collections.abc import Sequence
from pathlib import Path

from link.authority import AUTHORITY_KEY_FILE, LEAF_DAYS, Authority
from link.errors import ConfigError
from link.seats import flaw_of_name
from link.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, Identity

SERVER = "server"
"""The folder of the server's certificate; no client can have this name."""


def init(folder: Path, hosts: Sequence[str], *, days: int = LEAF_DAYS, renew: bool = False) -> list[str]:
    """Make an authority and the server's certificate.

    Args:
        folder: where; made if it is not there.
        hosts: what clients reach the server by, see ``Authority.issue_server``.
        days: how long the server's certificate is valid.
        renew: keep the authority that is there, and replace the server's certificate.

    Returns:
        A line for the user about each thing that was made.

    Raises:
        ConfigError: there is an authority already, or with ``renew`` none; a host is none; nothing can be written.
    """
    lines = []
    if renew:
        authority = _authority(folder)
        server = authority.issue_server(hosts, days=days)
    else:
        for path in (folder / AUTHORITY_FILE, folder / AUTHORITY_KEY_FILE, folder / SERVER):
            if path.exists():
                raise ConfigError(f"{path}: exists; --renew keeps the authority and replaces the server's certificate")
        authority = Authority.create()
        server = authority.issue_server(hosts, days=days)
        _write(folder, {AUTHORITY_KEY_FILE: authority.key, AUTHORITY_FILE: authority.certificate})
        lines += [f"{folder}: a new authority; whoever has {folder / AUTHORITY_KEY_FILE} can be anybody: keep it here"]
    _write_identity(folder / SERVER, server)
    return [*lines, f"{folder / SERVER}: the server's certificate for {', '.join(hosts)}, {_until(server)}"]


def issue(folder: Path, names: Sequence[str], *, days: int = LEAF_DAYS, renew: bool = False) -> list[str]:
    """Issue certificates to clients, to all or to none.

    Args:
        folder: of the authority.
        names: of the clients.
        days: how long the certificates are valid.
        renew: replace those that are there; the replaced ones stay valid until they expire.

    Returns:
        A line for the user about each thing that was made.

    Raises:
        ConfigError: a name is none, has a certificate already, or with ``renew`` none; there is no authority.
    """
    authority = _authority(folder)
    for name in names:
        flaw = flaw_of_name(name)
        if flaw is not None or name in (SERVER, ".", ".."):
            raise ConfigError(flaw or f"name {name!r}: cannot be the folder of a client; choose another")
        exists = (folder / name).exists()
        if exists and not renew:
            raise ConfigError(f"{folder / name}: exists; --renew replaces the certificate of {name!r}")
        if renew and not exists:
            raise ConfigError(f"{folder / name}: there is nothing to renew; leave --renew out to issue a first one")
    issued = {name: authority.issue_client(name, days=days) for name in names}
    for name, identity in issued.items():
        _write_identity(folder / name, identity)
    return [f"{folder / name}: the certificate of client {name!r}, {_until(one)}" for name, one in issued.items()]


def _authority(folder: Path) -> Authority:
    certificate, key = (_read(folder, name) for name in (AUTHORITY_FILE, AUTHORITY_KEY_FILE))
    return Authority(certificate, key, str(folder))


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `breakwater certs init {folder} --host NAME` makes it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _write_identity(folder: Path, identity: Identity) -> None:
    files = {KEY_FILE: identity.key, CERTIFICATE_FILE: identity.certificate, AUTHORITY_FILE: identity.authority}
    _write(folder, files)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files that are whole whenever they are there; only their owner can read the keys."""
    keys = {KEY_FILE, AUTHORITY_KEY_FILE}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            draft = folder / f".{name}.new"
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            draft.chmod(0o600 if name in keys else 0o644)
            draft.replace(folder / name)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None


def _until(identity: Identity) -> str:
    return f"valid until {identity.valid_until:%Y-%m-%d}"
