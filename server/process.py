"""The ``breakwater server`` process: opens the link and runs one experiment over it."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from experiment.config import Config
from experiment.opened import open_config, try_out
from foundation.errors import ConfigError
from link.identity.access import AccessControl
from link.identity.tls import Identity, server_credentials
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import console_for, load_loops, run
from server.run_folder.checkpoints import resumed
from server.run_folder.manifest import RunCard
from server.run_folder.writer import Claim, RunFolder
from strategies.strategy import StalledError

log = logging.getLogger("breakwater.server")


class Terminated(KeyboardInterrupt):
    """Raised by the handler of a signal that ends this server, but not its run: clients stay and wait for the next."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What ``breakwater server`` was told.

    Args:
        config: the experiment, with overrides applied.
        listen: HOST:PORT; port 0 for any free one.
        out: the run folder.
        data: folder of data files.
        config_dir: folder of the config file, where a custom task is looked up.
        tls: folder of the server's certificate, see ``link.identity.tls.Identity``; None for an open port.
        lists: folder of the lists of who may take part, see ``link.identity.access``; None for that of the certificate.
        monitoring: what is shown of the run, and to whom.
        own: the clients are processes that the caller starts itself, so nothing is said of an open port.
        card: of the run in ``out`` that goes on; None for a new one.
    """

    config: Config
    listen: str
    out: Path
    data: Path | None = None
    config_dir: Path | None = None
    tls: Path | None = None
    lists: Path | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    own: bool = False
    card: RunCard | None = None

    @classmethod
    def of_run(
        cls,
        folder: Path,
        card: RunCard,
        config: Config,
        *,
        listen: str | None,
        data: Path | None,
        tls: Path | None,
        lists: Path | None = None,
        monitoring: Monitoring | None = None,
    ) -> Self:
        """Return the options of a run that goes on, as it was started but for what is given.

        Args:
            folder: the run folder.
            card: what is in it, of the server before this one.
            config: the experiment; what in it changes the models must be as it was, see
                ``server.run_folder.checkpoints``.
            listen: HOST:PORT.
            data: folder of data files.
            tls: folder of the server's certificate.
            lists: folder of the lists of who may take part.
            monitoring: see the class.
        """
        return cls(
            config=config,
            listen=listen or card.listen,
            out=folder,
            data=data or (Path(card.data) if card.data else None),
            config_dir=Path(card.config_dir) if card.config_dir else None,
            tls=tls or (Path(card.tls) if card.tls else None),
            lists=lists or (Path(card.lists) if card.lists else None),
            monitoring=monitoring or Monitoring(),
            card=card.next_life(),
        )


def serve(options: ServerOptions, on_listening: Callable[[str], None] | None = None) -> None:
    """Run one experiment, then tell the clients goodbye.

    Args:
        options: see there.
        on_listening: called with the bound address once clients can join.

    Raises:
        BreakwaterError: the config does not fit the task, the certificate or a list of clients cannot be used, the
            address cannot be bound, or the run folder cannot be used; one line.
        RunEndedError: too few clients came or answered.
    """
    with Claim(options.out.absolute(), goes_on=options.card is not None) as claim:
        _serve(options, on_listening, claim)


def _serve(options: ServerOptions, on_listening: Callable[[str], None] | None, claim: Claim) -> None:
    """Run the experiment in a folder that is ours."""
    identity = None if options.tls is None else Identity.load(options.tls)
    credentials = None if identity is None else server_credentials(identity)
    access = _access(identity, options.lists)
    options.monitoring.check()
    out = options.out.absolute()
    experiment = open_config(options.config, options.data, options.config_dir)
    try_out(experiment)
    # Before anybody joins: clients on the same machine then find on disk what they would all compile at once.
    load_loops(experiment, console_for(options.monitoring))
    card = options.card
    run_id = secrets.randbits(62) + 2 if card is None else card.run_id
    point = None if card is None else resumed(out, experiment)
    grid = open_link(experiment, run_id, credentials, access, {} if point is None else point[0].seats)
    address = grid.listen(options.listen)
    log.info("run %d listens on %s", run_id, address, extra={"run_id": run_id})
    card = RunCard(
        run_id=run_id,
        listen=address,
        data=None if options.data is None else str(options.data),
        config_dir=None if options.config_dir is None else str(options.config_dir),
        tls=None if options.tls is None else str(options.tls.absolute()),
        lives=1 if card is None else card.lives,
        lists=None if options.lists is None else str(options.lists.absolute()),
    )
    if credentials is None and not options.own:
        _warn_insecure(address)
    if on_listening:
        on_listening(address)
    reason, final = "the server stopped before the end of the run", True
    try:
        card.write(options.out, experiment.config.to_toml())
        with RunFolder(out, point[0] if point else None, claim) as folder:
            run(experiment, folder, grid, options.monitoring, point=point, life=card.lives)
        reason = "the run is over"
    except StalledError:
        reason = "the run stalled: too few clients answered"
        raise
    except Terminated:
        reason, final = "the server was stopped, and may go on", False
        raise
    finally:
        grid.close(reason, final=final)


def _access(server: Identity | None, folder: Path | None) -> AccessControl | None:
    """Return who may take part; None without TLS, where a name is the client's word."""
    if folder is not None and server is None:
        raise ConfigError(f"--lists {folder}: needs --tls; without it nobody's name is certain")
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lists {folder}: no such folder; it may be empty, and is read while the server runs")
    return None if server is None else AccessControl.of(server, folder)


def _warn_insecure(address: str) -> None:
    """Say what is lost without TLS; on loopback too, where every user of the machine can connect."""
    log.warning(
        "%s is open, without TLS (--tls): one client can claim as many names as there are seats (a Sybil attack), so "
        "federation.byzantine bounds nothing; and whoever is in between can read and change the models",
        address,
    )
