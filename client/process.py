"""The ``breakwater client`` process: joins a federation and stays until it is over.

An honest client is one seat. An attacker may hold several: one process, N names, one brain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.preparation import Preparation, PreparationOptions
from experiment.code import code_fingerprint
from foundation.errors import ConfigError
from link.identity.tls import Identity
from link.node import join_as_many


@dataclass(frozen=True, kw_only=True)
class ClientOptions(PreparationOptions):
    """The options of ``breakwater client``.

    Args:
        connect: HOST:PORT of the server.
        name: the client's name; a coalition of N seats joins as NAME-0 .. NAME-(N-1).
        worker: which worker (part of the data) it wants to be, the first one of a coalition; None to be assigned.
        seats: how many seats to hold; more than one only for attackers.
        patience_s: seconds to keep trying to reach a server; None for ever.
        names: of the seats, where they are no NAME-0, NAME-1, ...
        tls: folder of the certificate of this name, see ``link.identity.tls.Identity``; a coalition's holds a folder
            for each of its names. None for an open port.
    """

    connect: str
    name: str
    worker: int | None = None
    seats: int = 1
    patience_s: float | None = None
    names: Sequence[str] = ()
    tls: Path | None = None


def run_client(options: ClientOptions) -> str:
    """Take part until the server says goodbye; return the reason it gave.

    Raises:
        BreakwaterError: the server refuses this client, its experiment cannot be run here, or the certificate cannot be
            used, or what was to be written is not: the ledger of a message, the final model.
    """
    n, first = options.seats, options.worker
    if n < 1 or (n > 1 and options.attack is None):
        raise ConfigError(f"--seats {n}: only a coalition (--attack KIND) holds more than one seat")
    names = list(options.names) or ([options.name] if n == 1 else [f"{options.name}-{i}" for i in range(n)])
    seats = {name: None if first is None else first + i for i, name in enumerate(names)}
    shown = None if options.tls is None else {name: _identity(options.tls, name, n) for name in names}
    code, prepare = code_fingerprint(), Preparation(replace(options, folders=_folders(options, names)))
    patience_s, witness = options.patience_s, options.observers
    reason = join_as_many(
        options.connect, seats, prepare, shown, fingerprint=code, patience_s=patience_s, witness=witness
    )
    if options.model is not None:
        options.model.check()
    return reason


def _folders(options: ClientOptions, names: list[str]) -> Mapping[int, Path] | None:
    """Return the data folder of each worker of a coalition: that of its name in ``--data``; None where it has none."""
    if options.folders is not None or options.data is None or len(names) == 1:
        return options.folders
    folders = [options.data / name for name in names]
    if not all(folder.is_dir() for folder in folders):
        return None
    if options.worker is None:
        raise ConfigError(
            f"--seats {len(names)} with a data folder for each: needs --worker I, the first of their seats"
        )
    return {options.worker + i: folder for i, folder in enumerate(folders)}


def _identity(folder: Path, name: str, seats: int) -> Identity:
    """Return the certificate of a name: the folder that was given, or one in it for each seat of a coalition."""
    identity = Identity.load(folder if seats == 1 else folder / name)
    if identity.name != name:
        raise ConfigError(f"--tls {identity.origin}: is the certificate of {identity.name!r}, and not of {name!r}")
    if identity.watches:
        raise ConfigError(f"--tls {identity.origin}: is a watcher's certificate, which takes no part; breakwater watch")
    return identity
